"""The signals of one process; tests/dist/test_interruptions.py has several."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support import processes

from n2n_dist import signals

SETTINGS = ("train.steps=6", "checkpoint.every=3")
SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


def settings(run_dir: Path, *others: object) -> tuple[object, ...]:
    return (f"run.dir={run_dir}", *SETTINGS, *others)


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def stopped(finished: processes.Finished, run_dir: Path) -> str:
    """Check that a run was stopped as it should, and return what it says."""
    finished.checked()
    assert "Traceback" not in "".join(finished.err)
    assert not (run_dir / "error.txt").exists()
    line = (run_dir / "PREEMPTED").read_text().rstrip("\n")
    assert line.endswith("the same command continues")
    assert finished.out[0].splitlines()[-1] == line
    return line


def lives(process: psutil.Process) -> bool:
    """Return whether a process runs; one that has ended may wait for a parent that asks how."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    processes.train(*settings(run_dir)).checked()
    return run_dir


@pytest.fixture
def hold(tmp_path: Path) -> Callable[[str, int], processes.Hold]:
    return lambda seam, call: processes.Hold(seam, call, tmp_path / "held")


def test_it_imports_nothing_that_is_slow() -> None:
    slow = "{'torch', 'numpy', 'omegaconf', 'PIL'} & set(sys.modules)"
    code = f"import sys, n2n_dist.signals; from n2n_dist.errors import run_command; sys.exit(bool({slow}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=processes.ROOT, check=False).returncode == 0


def test_signals_wait_while_they_are_held() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: came.append(number))
    try:
        with signals.held():
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            assert came == []
        assert came == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_the_loop(whole: Path, tmp_path: Path, hold: Callable, number: signal.Signals) -> None:
    run_dir, place = tmp_path / "run", hold("step", 5)
    with processes.training(*settings(run_dir), hold=place) as running:
        running.wait_at(place)
        running.signal(number, 0)
        place.release()
        finished = running.finish()
    line = stopped(finished, run_dir)
    assert line.startswith(f"stopped by {number.name}: saved after step 5, ")
    assert " s after the signal; a grace period of 60 s leaves 5" in line
    assert f"{number.name}: stopping soon; a second signal stops without saving" in finished.err[0]
    assert checkpoints(run_dir) == ["step-00000003", "step-00000005"]
    assert not (run_dir / "last.safetensors").exists()

    continued = processes.train(*settings(run_dir)).checked()
    assert "continuing after step 5 of 6" in continued.out[0]
    assert not (run_dir / "PREEMPTED").exists()
    assert (run_dir / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()
    there, here = processes.curves(whole), processes.curves(run_dir)
    for name in ("train/total", "train/gradient_norm", "train/learning_rate"):
        assert list(here[name].items()) == list(there[name].items()), name


def test_a_signal_at_the_start(whole: Path, tmp_path: Path, hold: Callable) -> None:
    place = hold("data", 1)
    with processes.training(*settings(tmp_path / "run"), hold=place) as running:
        running.wait_at(place)
        running.signal(signal.SIGTERM, 0)
        place.release()
        finished = running.finish()
    line = stopped(finished, tmp_path / "run")
    assert line.startswith("stopped by SIGTERM: before the first step, nothing to save, ")
    assert not (tmp_path / "run" / "checkpoints").exists()
    processes.train(*settings(tmp_path / "run")).checked()
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()


def test_a_signal_during_a_save_lets_it_end(tmp_path: Path, hold: Callable) -> None:
    run_dir, place = tmp_path / "run", hold("save", 1)
    with processes.training(*settings(run_dir), "train.steps=12", hold=place) as running:
        running.wait_at(place)
        assert checkpoints(run_dir) == ["step-00000003.tmp"]
        running.signal(signal.SIGTERM, 0)
        place.release()
        finished = running.finish()
    line = stopped(finished, run_dir)
    saved = next(step for step in range(3, 7) if f"saved after step {step}, " in line)
    assert checkpoints(run_dir) == [f"step-{step:08d}" for step in sorted({3, saved})]
    assert place.calls(0) == len({3, saved})


def test_a_signal_in_the_last_save_changes_nothing(whole: Path, tmp_path: Path, hold: Callable) -> None:
    run_dir, place = tmp_path / "run", hold("save", 2)
    with processes.training(*settings(run_dir), hold=place) as running:
        running.wait_at(place)
        running.signal(signal.SIGTERM, 0)
        place.release()
        finished = running.finish().checked()
    assert "done: 6 steps" in finished.out[0]
    assert not (run_dir / "PREEMPTED").exists()
    assert (run_dir / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()


def test_a_validation_is_cut_short_and_made_up_for(tmp_path: Path, hold: Callable) -> None:
    validated = (
        "train.steps=4",
        "validate.every=2",
        "validate.images=4",
        "data.validation=shards/demo/validation",
    )
    processes.train(f"run.dir={tmp_path / 'whole'}", *validated).checked()
    run_dir = tmp_path / "run"
    for held, step in ((2, 2), (6, 4)):  # the second of four images, in the first validation and in the last
        place = processes.Hold("validation", held, tmp_path / f"held-{step}")
        with processes.training(f"run.dir={run_dir}", *validated, hold=place) as running:
            running.wait_at(place)
            running.signal(signal.SIGTERM, 0)
            place.release()
            finished = running.finish()
        assert f"saved after step {step}, " in stopped(finished, run_dir)
        assert f"step {step}: " not in finished.out[0]
        assert place.calls(0) == held
        assert step not in processes.curves(run_dir).get("validation/psnr", {})
        assert not (run_dir / "last.safetensors").exists()
    continued = processes.train(f"run.dir={run_dir}", *validated).checked()
    assert "step 4: validation/noisy_psnr" in continued.out[0]
    there, here = processes.curves(tmp_path / "whole"), processes.curves(run_dir)
    for name in there:
        if name.startswith(("train/", "validation/")):
            assert list(here[name].items()) == list(there[name].items()), name
    for name in ("best.safetensors", "last.safetensors"):
        assert (run_dir / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    # nothing is owed any more
    again = processes.train(f"run.dir={run_dir}", *validated).checked()
    assert "step 4: " not in again.out[0]


def test_a_signal_to_the_workers_too_leaves_them_at_work_and_none_behind(
    whole: Path, tmp_path: Path, hold: Callable
) -> None:
    run_dir, place = tmp_path / "run", hold("step", 2)
    with processes.training(*settings(run_dir, "data.workers=2"), hold=place) as running:
        running.wait_at(place)
        workers = psutil.Process(running.ranks[0].pid).children(recursive=True)
        assert len(workers) == 2
        for process in workers:
            for number in SIGNALS:
                process.send_signal(number)
                process.send_signal(number)
        time.sleep(0.2)
        assert all(lives(process) for process in workers)
        running.signal(signal.SIGTERM, 0)
        running.signal(signal.SIGTERM, 0)  # as a launcher that got it too
        place.release()
        finished = running.finish()
    assert "saved after step 2, " in stopped(finished, run_dir)
    assert not any(lives(process) for process in workers)
    processes.train(*settings(run_dir)).checked()
    assert (run_dir / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()


def test_a_second_signal_exits_at_once_and_the_last_checkpoint_stays(
    whole: Path, tmp_path: Path, hold: Callable
) -> None:
    run_dir, place = tmp_path / "run", hold("step", 5)
    with processes.training(*settings(run_dir, "data.workers=1"), hold=place) as running:
        running.wait_at(place)  # and stay there: the process cannot finish the step
        workers = psutil.Process(running.ranks[0].pid).children(recursive=True)
        running.signal(signal.SIGTERM, 0)
        time.sleep(signals.ECHO_SECONDS + 0.5)
        running.signal(signal.SIGTERM, 0)
        running.ranks[0].join(5)
        assert running.ranks[0].exitcode == 1
        time.sleep(0.2)
        assert not any(lives(process) for process in workers)
    assert checkpoints(run_dir) == ["step-00000003"]
    assert not (run_dir / "PREEMPTED").exists()
    processes.train(*settings(run_dir)).checked()
    assert (run_dir / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()


def test_a_start_that_is_refused_removes_the_marker(tmp_path: Path) -> None:
    for wrong in ("data.shards=nowhere", "data.batch=many"):  # refused by the run, and before it
        (tmp_path / "PREEMPTED").write_text("stopped")
        assert processes.train(*settings(tmp_path, wrong)).codes == [2]
        assert not (tmp_path / "PREEMPTED").exists()


def test_a_dry_run_has_nothing_to_save_and_ends_at_the_first_signal(tmp_path: Path, hold: Callable) -> None:
    place = hold("step", 1)
    (tmp_path / "PREEMPTED").write_text("stopped")
    with processes.training("--dry-run", *settings(tmp_path), hold=place) as running:
        running.wait_at(place)
        os.kill(running.ranks[0].pid, signal.SIGTERM)
        assert running.finish().codes == [-signal.SIGTERM]
    assert (tmp_path / "PREEMPTED").exists()
