import time
from typing import Any

import pytest

from benchmarks import training
from n2n_dist import train


def test_the_loop_is_compared_with_bare_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    step = train.train_step

    def slow_step(*arguments: Any, **options: Any) -> Any:
        time.sleep(1)
        return step(*arguments, **options)

    monkeypatch.setattr(train, "train_step", slow_step)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(training, "STEPS", 2)
    tiny = ["model.width=8", "model.depths=[1,1]", "data.crop=32", "data.batch=8", "data.workers=0"]
    settings = [*tiny, "loss.perceptual=0", "train.precision=fp32", "train.threads=2"]
    ratio, waiting = training.loop("demo", settings, 1)
    assert ratio.median > 1.5, "a bare step takes less than the second that was put on those of the loop"
    assert 0 <= waiting.median < 0.5, "that second is no time of waiting for data"


def test_memory_of_denoising_a_large_image_is_that_of_its_process() -> None:
    memory, seconds = training.denoise("demo", ["model.width=8"], megapixels=0.01)
    assert memory.name.startswith("0.01 megapixels, 0.0")
    assert 0.05 < memory.median < 3
    assert seconds.median > 0
