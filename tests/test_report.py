import math
import socket
from pathlib import Path

import pytest
import torch

from n2n_dist import report
from n2n_dist.checkpoint.format import TrainState
from n2n_dist.config import load
from n2n_dist.data.order import Order
from n2n_dist.distributed.backend import Backend
from n2n_dist.errors import UserError
from n2n_dist.shards.index import Index


def progress(steps: int = 100) -> TrainState:
    return TrainState(step=1234, samples_seen=9872, best=30.256, steps=steps, data="", identity={})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["loss.form=matched"],
            [
                "noise    gaussian, pairs synthetic",
                "loss l1 + 0.01 * VGG-16 (matched)",
                "learns   the median of noisy targets (noise gaussian): the clean image",
            ],
        ),
        (["loss.perceptual=0", "loss.pixel=l2", "pairs.supervised=true"], ["synthetic (clean targets)", "loss l2"]),
        (["loss.perceptual=0", "loss.pixel=l2", "pairs.name=captures"], ["of the captures", "pairs captures"]),
        (["loss.perceptual=0", "loss.pixel=l2", "pairs.name=neighbours"], ["taken as they are, pairs neighbours"]),
    ],
)
def test_start_says_what_is_trained(backend: Backend, settings: list[str], expected: list[str]) -> None:
    config = load(None, ["run.dir=runs/mine", *settings])
    index = Index([Path(__file__).parents[1] / "shards/demo/train"])
    order = Order(index.sizes, 0, 16)
    text = report.start(config, backend, index, order, torch.nn.Linear(1000, 1000))
    assert text.count("\n") == 6
    for part in (
        f"world    single process: 1 process(es) on {socket.gethostname()}, cpu, fp32",
        "data     64 samples in 4 shards, 4 steps an epoch",
        "ResUNet of 1.00 M parameters",
        "watch it with: tensorboard --logdir runs",
        *expected,
    ):
        assert part in text
    plan = report.plan(config, backend, index, order, torch.nn.Linear(1, 1), seconds_per_step=1.8)
    assert "time     1.800 s a step, 7.2 seconds an epoch, 5.0 hours for 10,000 steps without validation" in plan
    assert "GiB at most on rank 0" in plan


def test_start_warns_of_what_is_not_the_clean_image(backend: Backend) -> None:
    config = load(None, ["noise.name=poisson"])
    index = Index([Path(__file__).parents[1] / "shards/demo/train"])
    order = Order(index.sizes, 0, 16)
    *_, first, second = report.start(config, backend, index, order, torch.nn.Linear(1, 1)).splitlines()
    assert first.startswith("warning: loss.pixel l1 learns the median of noise poisson, ")
    assert second.startswith("warning: loss.form plain: features of noisy targets are biased")


def test_continuing_mentions_another_number_of_steps() -> None:
    assert report.continuing(progress(2000), 2000) == "continuing after step 1,234 of 2,000"
    assert "now ends at step 3,000" in report.continuing(progress(2000), 3000)


def test_scores_stand_on_one_line() -> None:
    line = report.scores(1000, {"a/psnr": 30.123456, "a/ssim": 0.987654})
    assert line == "step 1,000: a/psnr 30.12, a/ssim 0.9877"
    line = report.scores(9, {"a/upsnr": 45.2, "a/upsnr_low": 45.2, "a/upsnr_high": math.inf})
    assert line == "step 9: a/upsnr >= 45.2, a/upsnr_low 45.2, a/upsnr_high inf"


def test_the_end_says_what_to_run_next(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights"):
        report.end(tmp_path, progress(), validated=False)
    (tmp_path / "last.safetensors").write_bytes(b"")
    text = report.end(tmp_path, progress(), validated=False)
    assert "done: 1,234 steps, 9,872 samples, best validation score 30.26 dB" in text
    assert f"weights: {tmp_path / 'last.safetensors'}\n" in text
    assert f"next: python launch/denoise.py --run {tmp_path} NOISY_FOLDER DENOISED_FOLDER" in text
    assert f"pictures: {tmp_path / 'samples'}" in report.end(tmp_path, progress(), validated=True)
