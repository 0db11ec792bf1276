"""A signal to some ranks or to all, at any moment, stops all of them at the same step with one good checkpoint."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from support import processes
import psutil
import pytest

from n2n_dist.signals import ECHO_SECONDS

SETTINGS = ("train.steps=6", "checkpoint.every=3", "data.workers=1", "train.log_every=100")
VALIDATED = ("data.validation=shards/demo/validation", "validate.every=4", "validate.images=4")


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("interruptions") / "whole"
    processes.train(f"run.dir={run_dir}", *SETTINGS, *VALIDATED, world=2).checked()
    return run_dir


@pytest.mark.parametrize(
    ("seam", "call", "ranks", "saved"),
    [
        ("data", 1, [1], None),
        ("data", 1, [0, 1], None),
        ("step", 2, [0], {2, 3}),
        ("step", 5, [1], {5, 6}),  # fast steps: the ranks agree with the next save
        ("step", 5, [0, 1], {5, 6}),
        ("save", 1, [1], {4}),  # the validation of step 4 waits for the save of step 3
        ("save", 1, [0, 1], {4}),
        ("validation", 1, [1], {4}),
        ("validation", 1, [0, 1], {4}),
    ],
)
def test_all_ranks_stop_at_the_same_step_and_go_on_to_the_same_bits(
    whole: Path, tmp_path: Path, seam: str, call: int, ranks: list[int], saved: set[int] | None
) -> None:
    run_dir = tmp_path / "run"
    hold = processes.Hold(seam, call, tmp_path / "held", rank=0 if seam == "save" else None)
    with processes.training(f"run.dir={run_dir}", *SETTINGS, *VALIDATED, world=2, hold=hold) as running:
        running.wait_at(hold)
        running.signal(signal.SIGUSR1, *ranks)
        hold.release()
        finished = running.finish().checked()
    assert "Traceback" not in "".join(finished.err)
    assert sum(err.count("a second signal stops without saving") for err in finished.err) == (0 in ranks)
    line = (run_dir / "PREEMPTED").read_text()
    assert finished.out[0].endswith(line)
    if saved is None:
        assert line.startswith("stopped by SIGUSR1: before the first step, nothing to save, ")
        assert not (run_dir / "checkpoints").exists()
    else:
        step = int(checkpoints(run_dir)[-1].removeprefix("step-"))
        assert step in saved
        assert line.startswith(f"stopped by SIGUSR1: saved after step {step}, ")
        assert (run_dir / "best.safetensors").exists() == (step > 4), "a validation that was cut short chooses nothing"
    assert not (run_dir / "last.safetensors").exists()

    processes.train(f"run.dir={run_dir}", *SETTINGS, *VALIDATED, world=2).checked()
    assert not (run_dir / "PREEMPTED").exists()
    for name in ("best.safetensors", "last.safetensors"):
        assert (run_dir / name).read_bytes() == (whole / name).read_bytes(), name
    there, here = processes.curves(whole), processes.curves(run_dir)
    for name in there:
        assert list(here[name]) == sorted(here[name]), name
        if name.startswith("validation/"):
            assert list(here[name].items()) == list(there[name].items()), name


def test_slow_steps_are_not_waited_for(tmp_path: Path) -> None:
    # without an agreement by time the others would notice only with the log or the checkpoint, after 20 steps
    hold = processes.Hold("step", 4, tmp_path / "held", seconds=1.2)
    settings = ("train.steps=40", "train.log_every=100", "checkpoint.every=100")
    with processes.training(f"run.dir={tmp_path / 'run'}", *settings, world=2, hold=hold) as running:
        running.wait_at(hold)
        running.signal(signal.SIGTERM, 1)
        hold.release()
        running.finish().checked()
    step = int(checkpoints(tmp_path / "run")[0].removeprefix("step-"))
    assert 4 <= step <= 6


def test_a_second_signal_to_a_rank_that_waits_for_another_one_exits_at_once(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    hold = processes.Hold("step", 5, tmp_path / "held", rank=1)
    with processes.training(f"run.dir={run_dir}", *SETTINGS, world=2, hold=hold) as running:
        running.wait(lambda: hold.calls(1) == 5)
        time.sleep(0.5)  # rank 0 has come to the gradients and waits, deep in the library
        running.signal(signal.SIGTERM, 0)
        time.sleep(ECHO_SECONDS + 0.5)
        running.signal(signal.SIGTERM, 0)
        running.ranks[0].join(5)
        assert running.ranks[0].exitcode == 1
    assert checkpoints(run_dir) == ["step-00000003"]
    assert not (run_dir / "PREEMPTED").exists()


@pytest.mark.slow
def test_zero_stops_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    hold = processes.Hold("step", 2, tmp_path / "held")
    with processes.training(f"run.dir={run_dir}", *SETTINGS, world=2, zero=1, hold=hold) as running:
        running.wait_at(hold)
        running.signal(signal.SIGTERM, 1)
        hold.release()
        finished = running.finish().checked()
    assert (run_dir / "PREEMPTED").read_text().startswith("stopped by SIGTERM: saved after step ")
    assert finished.out[0].endswith("the same command continues\n")
    again = processes.train(f"run.dir={run_dir}", *SETTINGS, world=2, zero=1).checked()
    assert "continuing after step " in again.out[0]
    processes.train(f"run.dir={whole}", *SETTINGS, world=2, zero=1).checked()
    assert (run_dir / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_the_launcher_passes_signals_on_with_the_variables_of_the_documents(
    tmp_path: Path, number: signal.Signals
) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file=launch/backends/cpu.yaml"]
    command += [f"--main_process_port={processes.free_port()}", "launch/train.py", *processes.TINY]
    command += [f"run.dir={run_dir}", "train.steps=100000", "checkpoint.every=2", "data.workers=1"]
    environment = os.environ | processes.WITHOUT_GPU | processes.signal_variables()
    log = tmp_path / "log"
    with log.open("w") as file:
        launcher = subprocess.Popen(
            command, cwd=processes.ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            end = time.monotonic() + 120
            while not (run_dir / "checkpoints" / "step-00000004").exists():
                assert launcher.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            os.killpg(launcher.pid, number)  # as a terminal does
            assert launcher.wait(60) == 1, "which is why there is a marker"
        finally:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
    said = log.read_text()
    assert (run_dir / "PREEMPTED").read_text().startswith(f"stopped by {number.name}: saved after step "), said
    assert (run_dir / "PREEMPTED").read_text() in said
    assert "DataLoader worker" not in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_whose_launcher_has_ended_saves_and_ends(tmp_path: Path, number: signal.Signals) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    command = [sys.executable, "-m", "accelerate.commands.launch", "launch/train.py", *processes.TINY]
    command += [f"run.dir={run_dir}", "train.steps=100000", "checkpoint.every=2"]
    with log.open("w") as file:
        launcher = subprocess.Popen(
            command, cwd=processes.ROOT, env=os.environ | processes.WITHOUT_GPU, stdout=file, stderr=file
        )
        trainer: list[psutil.Process] = []
        try:
            end = time.monotonic() + 120
            while not (run_dir / "checkpoints" / "step-00000002").exists():
                assert launcher.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            trainer = psutil.Process(launcher.pid).children()
            launcher.send_signal(number)
            _, alive = psutil.wait_procs(trainer, timeout=60)
            assert not alive, log.read_text()
        finally:
            for process in [launcher, *trainer]:
                if process.poll() is None if isinstance(process, subprocess.Popen) else process.is_running():
                    process.kill()
    assert (run_dir / "PREEMPTED").read_text().startswith("stopped by the end of its launcher: saved after step ")
