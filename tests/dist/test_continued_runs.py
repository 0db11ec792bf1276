"""A killed run goes on where its newest checkpoint stands, and ends with the same bits as one that was never killed."""

import signal
from pathlib import Path

from support import processes
import pytest

SETTINGS = ("train.steps=6", "checkpoint.every=3", "data.workers=1")
BATCH = 8


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path: Path, world: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    processes.train(f"run.dir={whole}", *SETTINGS, world=world, pairs=tmp_path / "whole-pairs").checked()

    # every rank dies in the fifth step, two steps after the checkpoint and without a word
    died = processes.train(f"run.dir={killed}", *SETTINGS, world=world, kill_at=4 * BATCH)
    assert -signal.SIGKILL in died.codes
    assert 0 not in died.codes
    assert [path.name for path in (killed / "checkpoints").iterdir()] == ["step-00000003"]

    pairs = tmp_path / "killed-pairs"
    continued = processes.train(f"run.dir={killed}", *SETTINGS, world=world, pairs=pairs).checked()
    assert "continuing after step 3 of 6" in continued.out[0]
    expected = processes.pairs_by_position(tmp_path / "whole-pairs")
    assert processes.pairs_by_position(pairs) == {p: pair for p, pair in expected.items() if p >= 3 * BATCH}
    curves = processes.curves(killed)
    for name in ("train/total", "train/pixel", "train/gradient_norm", "train/learning_rate"):
        assert curves[name] == processes.curves(whole)[name], name
    assert (killed / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    processes.train(f"run.dir={whole}", *SETTINGS, world=1).checked()
    processes.train(f"run.dir={moved}", *SETTINGS, world=2, kill_at=4 * BATCH)
    processes.train(f"run.dir={moved}", *SETTINGS, "train.micro_batch=4", world=1).checked()
    there, here = (list(processes.curves(folder)["train/total"].values()) for folder in (whole, moved))
    assert here == pytest.approx(there, rel=1e-5)


def test_a_run_killed_within_a_save_goes_on_from_the_one_before(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = ("train.steps=6", "checkpoint.every=2")
    processes.train(f"run.dir={whole}", *settings, world=2).checked()
    hold = processes.Hold("save", 2, tmp_path / "held", rank=0)
    with processes.training(f"run.dir={killed}", *settings, world=2, hold=hold) as running:
        running.wait_at(hold)
        running.signal(signal.SIGKILL, 0, 1)
        assert running.finish().codes == [-signal.SIGKILL] * 2
    names = {path.name for path in (killed / "checkpoints").iterdir()}
    assert names == {"step-00000002", "step-00000004.tmp"}
    again = processes.train(f"run.dir={killed}", *settings, world=2).checked()
    assert "continuing after step 2 of 6" in again.out[0]
    assert {path.name for path in (killed / "checkpoints").iterdir()} == {"step-00000004", "step-00000006"}
    assert (killed / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()
