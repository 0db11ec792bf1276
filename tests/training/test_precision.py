from pathlib import Path

import pytest
import safetensors.torch
import torch
from support import processes

from n2n_dist.devices import autocast
from n2n_dist.distributed.backend import Backend
from n2n_dist.errors import UserError
from n2n_dist.models.resunet import ResUNet, ResUNetSettings
from n2n_dist.models.weights import load_model
from n2n_dist.training.precision import TrainSettings, autocast_type, memory_format, prepare_models


def network() -> ResUNet:
    torch.manual_seed(0)
    model = ResUNet(ResUNetSettings(width=8, depths=[1, 1]), crop=32)
    torch.nn.init.normal_(model.head.weight, std=0.1)
    return model


def test_names_of_precisions() -> None:
    assert autocast_type("fp32") is None
    assert autocast_type("bf16") is torch.bfloat16


@pytest.mark.parametrize(("native", "chosen"), [(True, torch.bfloat16), (False, None)])
def test_auto_is_bf16_on_a_gpu_that_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, chosen: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert autocast_type("auto") is chosen


def test_auto_is_bf16_on_a_processor_that_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (information := Path("/proc/cpuinfo")).exists():
        pytest.skip("needs /proc/cpuinfo")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    native = {"avx512_bf16", "amx_tile"} & set(information.read_text().split())
    assert autocast_type("auto") is (torch.bfloat16 if native else None)


def test_bf16_computes_inside_and_returns_float32() -> None:
    model, images = network(), torch.rand(2, 3, 32, 32)
    exact = model(images)
    with autocast(torch.device("cpu"), torch.bfloat16):
        assert (images.flatten(1) @ images.flatten(1).T).dtype is torch.bfloat16
        rounded = model(images)
    assert rounded.dtype is torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0.02)
    with autocast(torch.device("cpu"), None):
        assert torch.equal(model(images), exact)


def test_channels_last_changes_the_layout_and_nothing_else(backend: Backend) -> None:
    model, images = network(), torch.rand(2, 3, 32, 32)
    expected, names = model(images), list(model.state_dict())
    prepare_models(model, None, TrainSettings(channels_last=True, compile="off"), backend)
    assert model.encoder[0][0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images.contiguous(memory_format=torch.channels_last)), expected)
    assert list(model.state_dict()) == names
    assert memory_format(TrainSettings(channels_last=False)) is torch.contiguous_format


def test_a_run_in_bf16_keeps_float32_weights_near_those_of_float32(tmp_path: Path) -> None:
    for precision in ("bf16", "fp32"):
        processes.train(f"run.dir={tmp_path / precision}", "train.steps=3", f"train.precision={precision}").checked()
    half, full = (processes.curves(tmp_path / p)["train/total"] for p in ("bf16", "fp32"))
    assert half != full
    assert list(half.values()) == pytest.approx(list(full.values()), rel=0.01)
    weights = safetensors.torch.load_file(tmp_path / "bf16" / "last.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.slow
def test_compiled_blocks_train_the_same_network_under_the_same_names(tmp_path: Path) -> None:
    settings = ("train.steps=2", "model.depths=[1]", "data.crop=16", "data.batch=2")
    for choice in ("on", "off"):
        processes.train(f"run.dir={tmp_path / choice}", *settings, f"train.compile={choice}", timeout=280).checked()
    compiled, eager = (safetensors.torch.load_file(tmp_path / c / "last.safetensors") for c in ("on", "off"))
    assert list(compiled) == list(eager)
    there, here = (list(processes.curves(tmp_path / c)["train/total"].values()) for c in ("off", "on"))
    assert here == pytest.approx(there, rel=1e-4)
    load_model(tmp_path / "on")


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"micro_batch": 0},
        {"threads": 0},
        {"log_every": 0},
        {"timeout": 0.0},
        {"precision": "fp16"},
        {"compile": "yes"},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match=rf"train\.{next(iter(wrong))} .*: must be"):
        TrainSettings(**wrong)
