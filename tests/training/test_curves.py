import math
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from support import processes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from n2n_dist.training.curves import Curves, duration

EVERY_STEP = (
    "train/total",
    "train/pixel",
    "train/perceptual",
    "train/gradient_norm",
    "train/learning_rate",
    "speed/images_per_second",
    "speed/minutes_per_epoch",
    "speed/waiting_for_data",
    "memory/peak_gib",
)


def test_a_continued_run_shows_every_curve_once_and_without_a_zigzag(interrupted_run: Path) -> None:
    curves = processes.curves(interrupted_run)
    expected = {name: [1, 2, 3, 4, 5, 6] for name in EVERY_STEP} | {
        f"validation/{name}/{metric}": [2, 4, 6]
        for name in ("demo", "again")
        for metric in ("noisy_psnr", "psnr", "ssim", "lpips")
    }
    assert {name: list(curve) for name, curve in curves.items()} == expected
    for name, curve in curves.items():
        assert all(math.isfinite(value) for value in curve.values()), name
    for step in curves["train/total"]:
        parts = curves["train/pixel"][step] + 0.01 * curves["train/perceptual"][step]
        assert curves["train/total"][step] == pytest.approx(parts, rel=1e-5)
        assert curves["speed/images_per_second"][step] > 0
        assert 0 <= curves["speed/waiting_for_data"][step] <= 1
        assert 0.1 < curves["memory/peak_gib"][step] < 8
    assert curves["validation/demo/psnr"] == curves["validation/again/psnr"]


def test_strips_and_the_configuration_are_shown(interrupted_run: Path) -> None:
    events = EventAccumulator(str(interrupted_run / "tensorboard"), {"images": 0, "tensors": 0}).Reload()
    assert set(events.Tags()["images"]) == {f"{name}: noisy, denoised, reference" for name in ("demo", "again")}
    for name in events.Tags()["images"]:
        assert [event.step for event in events.Images(name)] == [2, 4, 6]
    text = events.Tensors("configuration/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "crop: 32" in text
    assert "weight_decay: 0.0001" in text
    for step in (2, 4, 6):
        with PIL.Image.open(interrupted_run / "samples" / f"demo-{step:08d}.png") as picture:
            assert picture.size == (3 * 256 + 2 * 4, 2 * 256 + 4)  # two samples of three images


def _redate(folder: Path, seconds: int) -> Path:
    """Date the event file of a folder that is not dated ahead yet, with a name that comes last in its second."""
    return min(folder.iterdir()).rename(folder / f"events.out.tfevents.{int(time.time()) + seconds:010d}.~")


@pytest.mark.parametrize("late", [False, True])
def test_points_beyond_the_step_that_is_continued_disappear(tmp_path: Path, late: bool) -> None:
    for first, last, value in ((0, 5, 1.0), (3, 6, 2.0)):
        tracker = Curves(tmp_path, first, 10, main=True)
        for step in range(first + 1, last + 1):
            tracker.scalars(step, {"curve": value})
        tracker.close()
        if late and first == 0:
            _redate(tmp_path / "tensorboard", seconds=1)  # the next machine's clock is behind
    assert processes.curves(tmp_path)["curve"] == {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0, 5: 2.0, 6: 2.0}


def test_a_clock_that_is_far_behind_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seconds in (3600, 4600):
        Curves(tmp_path, 0, 10, main=True).close()
        last = _redate(tmp_path / "tensorboard", seconds)
        capsys.readouterr()
    tracker = Curves(tmp_path, 3, 10, main=True)
    tracker.scalars(4, {"curve": 1.0})
    tracker.close()
    out = capsys.readouterr().out
    assert out.count("ahead of this machine's clock") == 1
    assert f"{last}: dated 4" in out


def test_other_ranks_than_0_write_and_print_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Curves(tmp_path, 0, 10, main=False)
    tracker.scalars(1, {"curve": 1.0})
    tracker.text("name", "text")
    tracker.panels(1, {"set": [[torch.zeros(3, 4, 4)] * 3]})
    tracker.say("nothing")
    tracker.close()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_a_strip_is_a_picture_beside_a_picture(tmp_path: Path) -> None:
    tracker = Curves(tmp_path, 0, 10, main=True)
    noisy, denoised, reference = (torch.full((3, 6, 5), value) for value in (-0.5, 0.5, 1.5))
    tracker.panels(3, {"set": [[noisy, denoised, reference]], "empty": []})
    tracker.close()
    with PIL.Image.open(tmp_path / "samples" / "set-00000003.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (6, 3 * 5 + 2 * 4, 3)
    assert [pixels[0, column, 0] for column in (0, 9, 18)] == [0, 128, 255]
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["set-00000003.png"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own
def test_a_run_goes_on_without_curves_and_pictures_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # files of one second are read in the order of the names, where a tenth writer stands before a ninth
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    tracker = Curves(run_dir, 0, 10, main=True)
    tracker.scalars(1, {"curve": 1.0})
    (run_dir / "samples").write_text("in the way")
    start = time.monotonic()
    for _ in range(10):
        tracker.panels(3, {"set": [[torch.zeros(3, 6, 5)] * 3]})
    assert time.monotonic() - start < 5, "each waited for the next second"
    said = [line for line in capsys.readouterr().out.splitlines() if "cannot be written" in line]
    assert [line.partition(" (")[0].removeprefix("\x1b[A") for line in said] == [
        f"{run_dir}: curves and pictures cannot be written"
    ]
    (run_dir / "samples").unlink()
    tracker.panels(4, {"set": [[torch.zeros(3, 6, 5)] * 3]})
    tracker.scalars(4, {"curve": 4.0})
    assert (run_dir / "samples" / "set-00000004.png").is_file()
    run_dir.rename(tmp_path / "elsewhere")
    for step in (5, 6):
        tracker.panels(step, {"set": [[torch.zeros(3, 6, 5)] * 3]})
    tracker.close()
    time.sleep(0.1)  # its thread has died
    assert not run_dir.exists()
    assert processes.curves(tmp_path / "elsewhere")["curve"] == {1: 1.0, 4: 4.0}


def test_a_run_begins_without_curves_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    tracker = Curves(tmp_path, 3, 10, main=True)
    tracker.scalars(4, {"curve": 4.0})
    assert capsys.readouterr().out.count("curves and pictures cannot be written (") == 1
    (tmp_path / "tensorboard").unlink()
    tracker.scalars(5, {"curve": 5.0})
    tracker.close()
    assert processes.curves(tmp_path)["curve"] == {5: 5.0}


@pytest.mark.parametrize(
    ("seconds", "text"), [(6, "6.0 seconds"), (120, "2.0 minutes"), (5000, "83.3 minutes"), (5400, "1.5 hours")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
