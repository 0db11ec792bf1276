import re
import time
from typing import Any

import pytest

from benchmarks import training
from n2n_dist import train


def test_the_loop_is_compared_with_bare_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = train.train_step

    def slow_step(*arguments: Any, **options: Any) -> Any:
        time.sleep(1)
        return step(*arguments, **options)

    monkeypatch.setattr(train, "train_step", slow_step)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(training, "STEPS", 2)
    tiny = ["model.width=8", "model.depths=[1,1]", "data.crop=32", "data.batch=8", "data.workers=0"]
    training.loop(1, [*tiny, "loss.perceptual=0", "train.precision=fp32", "train.threads=2"])
    said = capsys.readouterr().out
    ratio = re.search(r"loop: time of a step / bare step ([0-9.]+) ", said)
    waiting = re.search(r"loop: share of time waiting for data ([0-9.]+) ", said)
    assert ratio is not None
    assert waiting is not None
    assert float(ratio[1]) > 1.5, "a bare step takes less than the second that was put on those of the loop"
    assert 0 <= float(waiting[1]) < 0.5, "that second is no time of waiting for data"


def test_memory_of_denoising_a_large_image_is_that_of_its_process(capsys: pytest.CaptureFixture[str]) -> None:
    training.denoise(megapixels=0.01, width=8)
    found = re.search(r"denoise: 0.01 megapixels, width 8: ([0-9.]+) GiB at most", capsys.readouterr().out)
    assert found is not None
    assert 0.05 < float(found[1]) < 3
