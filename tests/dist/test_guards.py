"""What a run does about its other processes and about its folder."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from support import processes
import pytest

from n2n_dist.distributed.stragglers import STRAGGLER_SECONDS


def test_a_rank_that_hangs_is_named_and_the_run_goes_on_later(tmp_path: Path) -> None:
    settings = (f"run.dir={tmp_path}", "train.steps=6", "checkpoint.every=3", "train.timeout=8")
    hold = processes.Hold("step", 5, tmp_path / "held", rank=1)
    with processes.training(*settings, world=2, hold=hold) as running:
        running.wait(lambda: hold.calls(1) == 5 and (tmp_path / "checkpoints/step-00000003").exists())
        running.signal(signal.SIGSTOP, 1)
        running.ranks[0].join(30)
        assert running.ranks[0].exitcode == 1
        message = f"no answer from rank 1 on {socket.gethostname()}: it is stopped or has died"
        said = "".join(running.texts(".err"))
        assert f"error: train.timeout 8: no progress for so many seconds, and {message}" in said
        assert message in (tmp_path / "error.txt").read_text()
        hold.release()
        running.signal(signal.SIGCONT, 1)
        assert running.finish().codes == [1, 1], "it wakes up alone"
    assert "Traceback" not in "".join(running.texts(".err"))
    again = processes.train(*settings, world=2).checked()
    assert "continuing after step 3 of 6" in again.out[0]
    assert not (tmp_path / "error.txt").exists()


def test_a_thread_that_hangs_in_a_save_ends_the_run_at_the_next_one(tmp_path: Path) -> None:
    settings = (f"run.dir={tmp_path}", "train.steps=6", "checkpoint.every=3", "train.timeout=8")
    hold = processes.Hold("save", 1, tmp_path / "held", rank=0)
    with processes.training(*settings, world=2, hold=hold) as running:
        assert running.finish(60).codes == [1, 1]
        said = "".join(running.texts(".err"))
    assert "although all processes are alive: one of them waits for its storage" in said
    assert "Traceback" not in said
    assert list(processes.curves(tmp_path)["train/total"]) == [1, 2, 3, 4, 5, 6], "the training went on meanwhile"
    assert not list(tmp_path.glob("checkpoints/step-????????"))


def test_a_slow_rank_is_named_with_its_host(tmp_path: Path) -> None:
    steps = int(STRAGGLER_SECONDS) + 6
    settings = (f"run.dir={tmp_path}", f"train.steps={steps}", "train.log_every=2")
    hold = processes.Hold("step", 1000, tmp_path / "held", rank=1, seconds=1.0)
    slow = processes.train(*settings, world=2, hold=hold).checked()
    assert slow.out[0].count(f"rank 1 on {socket.gethostname()} is slow, and all wait for it") == 1
    ratios = list(processes.curves(tmp_path)["speed/slowest_rank"].values())
    assert median(ratios) > 1.5


def test_a_second_run_is_refused_and_a_run_whose_folder_is_removed_ends(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    settings = (f"run.dir={run_dir}", "train.steps=100", "checkpoint.every=3")
    hold = processes.Hold("step", 5, tmp_path / "held")
    with processes.training(*settings, world=2, hold=hold) as running:
        running.wait_at(hold)
        running.wait((run_dir / "checkpoints/step-00000003").exists)
        (run_dir / "PREEMPTED").write_text("a job looks for it")
        before = sorted(run_dir.rglob("*"))
        for wrong in ("data.batch=many", "data.shards=nowhere"):  # refused with the configuration, and after it
            assert processes.train(*settings, wrong, world=1).codes == [2]
            assert processes.train("--dry-run", *settings, wrong).codes == [2]
            assert sorted(run_dir.rglob("*")) == before
        second = processes.train(*settings, world=1)
        assert second.codes == [2]
        assert f"run.dir {run_dir}: in use by process {running.ranks[0].pid} on {socket.gethostname()}" in second.err[0]
        assert sorted(run_dir.rglob("*")) == before, "the folder is the other's"
        processes.train("--dry-run", *settings).checked()
        assert sorted(run_dir.rglob("*")) == before

        shutil.rmtree(run_dir)
        hold.release()
        ended = running.finish()
    assert ended.codes == [2, 2]
    assert "owner.json: it or its folder was removed during the run, which stops and saves nothing" in ended.err[0]
    assert not (run_dir / "checkpoints").exists()


@pytest.mark.slow
def test_the_launcher_restarts_a_run_from_its_last_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file=launch/backends/cpu.yaml"]
    command += [f"--main_process_port={processes.free_port()}", "--max_restarts=1", "launch/train.py", *processes.TINY]
    command += [f"run.dir={tmp_path / 'run'}", "train.steps=200", "checkpoint.every=20", "train.log_every=20"]
    log = tmp_path / "log"
    environment = os.environ | processes.WITHOUT_GPU
    with log.open("w") as file:
        launcher = subprocess.Popen(
            command, cwd=processes.ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            end = time.monotonic() + 120
            while not (tmp_path / "run" / "checkpoints" / "step-00000020").exists():
                assert launcher.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.02)
            children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
            os.kill(int(children[1]), signal.SIGKILL)
            assert launcher.wait(120) == 0, log.read_text()
        finally:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
    said = log.read_text()
    assert "error: another process of this run was lost (" in said
    assert "of 200" in said.partition("continuing after step ")[2], said
    assert list(processes.curves(tmp_path / "run")["train/total"]) == list(range(20, 201, 20))
