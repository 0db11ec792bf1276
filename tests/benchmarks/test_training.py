import re

import pytest

from benchmarks import training


def test_the_loop_is_compared_with_bare_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(training, "STEPS", 2)
    tiny = ["model.width=8", "model.depths=[1,1]", "data.crop=32", "data.batch=8", "data.workers=0"]
    training.loop(1, [*tiny, "loss.perceptual=0", "train.precision=fp32", "train.threads=2"])
    said = capsys.readouterr().out
    ratio = re.search(r"loop: time of a step / bare step ([0-9.]+) ", said)
    waiting = re.search(r"loop: share of time waiting for data ([0-9.]+) ", said)
    assert ratio is not None
    assert waiting is not None
    assert 0 < float(ratio[1]) < 100
    assert 0 <= float(waiting[1]) <= 1


def test_memory_of_denoising_a_large_image_is_that_of_its_process(capsys: pytest.CaptureFixture[str]) -> None:
    training.denoise(megapixels=0.01, width=8)
    found = re.search(r"denoise: 0.01 megapixels, width 8: ([0-9.]+) GiB at most", capsys.readouterr().out)
    assert found is not None
    assert 0.05 < float(found[1]) < 3
