import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from n2n_dist.errors import UserError
from n2n_dist.models.resunet import ResUNet, ResUNetSettings
from n2n_dist.models.weights import (
    BEST,
    LAST,
    TYPES,
    find_weights,
    load_model,
    save_model,
    trained_steps,
    write_tensors,
)


def make_model(seed: int = 0) -> ResUNet:
    torch.manual_seed(seed)
    model = ResUNet(ResUNetSettings(channels=2, width=8, depths=[1, 2], unshuffle=1), crop=24)
    for layer in (model.head, model.local_filter):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return model


def test_a_loaded_model_is_the_saved_one(tmp_path: Path) -> None:
    model = make_model()
    save_model(tmp_path / LAST, model)
    loaded = load_model(tmp_path / LAST, torch.device("cpu"))
    assert loaded.settings == model.settings
    assert loaded.crop == 24
    x = torch.rand(1, 2, 50, 60)  # larger than the crop, so that the windows matter
    torch.testing.assert_close(loaded(x), model(x))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


def test_a_model_is_loaded_onto_the_named_device_or_the_gpu_if_there_is_one(tmp_path: Path) -> None:
    save_model(tmp_path / LAST, make_model())
    default = torch.device("cuda" if torch.cuda.is_available() else "cpu").type
    assert {value.device.type for value in load_model(tmp_path).state_dict().values()} == {default}
    assert load_model(tmp_path, torch.device("cpu")).head.weight.device.type == "cpu"


def test_weights_in_channels_last_and_an_older_file_under_the_name_are_no_obstacle(tmp_path: Path) -> None:
    save_model(tmp_path / LAST, make_model(seed=1))
    model = make_model().to(memory_format=torch.channels_last)
    save_model(tmp_path / LAST, model)
    for name, value in load_model(tmp_path / LAST, torch.device("cpu")).state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_a_run_folder_gives_its_best_weights_or_else_its_last(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}: no weights"):
        find_weights(tmp_path)
    save_model(tmp_path / LAST, make_model())
    assert find_weights(tmp_path) == tmp_path / LAST
    save_model(tmp_path / BEST, make_model())
    assert find_weights(tmp_path) == tmp_path / BEST
    assert find_weights(tmp_path / LAST) == tmp_path / LAST


def test_files_that_are_not_our_weights_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match=f"{path}: no weights"):
        load_model(path)
    save_model(path, make_model())
    whole, tensors = path.read_bytes(), safetensors.torch.load_file(path)
    for data in (b"", b"text", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"{path}: not weights"):
            load_model(path)
    for metadata in (
        None,
        {"n2n_dist": "{"},
        {"n2n_dist": "[]"},
        {"n2n_dist": "{}"},
        {"n2n_dist": json.dumps({"network": "resunet", "version": ResUNet.version})},
        {"n2n_dist": json.dumps(make_model().metadata() | {"settings": {"x": 1}})},
        {"n2n_dist": json.dumps(make_model().metadata() | {"network": ["resunet"]})},
    ):
        safetensors.torch.save_file(tensors, path, metadata)
        with pytest.raises(UserError, match=f"{path}: not weights"):
            load_model(path)


def test_weights_of_another_version_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_model(path, make_model())
    tensors = safetensors.torch.load_file(path)
    for changed, message in (
        ({"version": ResUNet.version - 1}, f"network resunet of version {ResUNet.version - 1}: this version of .* has"),
        ({"network": "unet++"}, "network 'unet\\+\\+': unknown, known are resunet; use the version"),
        ({"network": 6}, "network 6: unknown"),
    ):
        safetensors.torch.save_file(tensors, path, {"n2n_dist": json.dumps(make_model().metadata() | changed)})
        with pytest.raises(UserError, match=f"{path}: {message}"):
            load_model(path)


def test_tensors_that_do_not_fit_their_metadata_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_model(path, make_model())
    with safetensors.safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = safetensors.torch.load_file(path)
    del tensors["local_filter.weight"]
    safetensors.torch.save_file(tensors, path, about)
    with pytest.raises(UserError, match=rf"{path}: not weights .*damaged .*local_filter\.weight"):
        load_model(path)


def test_weights_know_the_step_at_which_they_were_saved(tmp_path: Path) -> None:
    save_model(tmp_path / LAST, make_model(), 7)
    assert trained_steps(tmp_path / LAST) == 7
    assert trained_steps(tmp_path / "nowhere") is None
    (tmp_path / BEST).write_bytes((tmp_path / LAST).read_bytes()[:100])
    assert trained_steps(tmp_path / BEST) is None
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert trained_steps(tmp_path / "other.safetensors") is None


def test_weights_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        save_model(tmp_path / "nowhere" / LAST, make_model())
    assert caught.value.filename == str(tmp_path / "nowhere" / LAST)
    (tmp_path / LAST).mkdir()
    with pytest.raises(OSError, match="directory"):
        save_model(tmp_path / LAST, make_model())
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


def test_tensors_of_every_type_are_read_back_by_the_library(tmp_path: Path) -> None:
    tensors = {f"a.{dtype}": torch.arange(3).to(dtype) for dtype in TYPES}
    tensors |= {"scalar": torch.tensor(7), "empty": torch.empty(0, 3), "matrix": torch.rand(2, 3)}
    path = tmp_path / "a.safetensors"
    write_tensors(path, tensors, {"key": "text"})
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"key": "text"}
    write_tensors(path, {})
    assert safetensors.torch.load_file(path) == {}


def test_weights_may_be_read_by_whom_other_files_may(tmp_path: Path) -> None:
    save_model(tmp_path / LAST, make_model())
    (tmp_path / "other").touch()
    assert (tmp_path / LAST).stat().st_mode == (tmp_path / "other").stat().st_mode
