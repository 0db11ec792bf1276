import re
import subprocess
from pathlib import Path

import pytest
from support import processes

from benchmarks import checkpoint


def test_two_processes_measure_their_saves_and_loads(tmp_path: Path) -> None:
    script = ("benchmarks/checkpoint.py", "demo", tmp_path, "--rounds", 1)
    finished = processes.run(*script, world=2).checked()
    title, *lines = finished.out[0].splitlines()
    assert re.fullmatch(r"checkpoint: demo network, 0\.\d M parameters, DDP x 2", title)
    times = {line[2:30].strip(): float(line[30:38]) for line in lines if " s (median of " in line}
    assert list(times)[:4] == [
        "a step takes",
        "a save holds the loop for",
        "a step beside its writing",
        "a save that is waited for",
    ]
    assert all(seconds > 0 for seconds in times.values())
    assert times["a save holds the loop for"] < times["a save that is waited for"]
    shares = [re.fullmatch(r"  rank (\d) writes ([\d.]+) MB, ([\d.]+) of .* stages ([\d.]+) MB", s) for s in lines[-2:]]
    for rank, match in enumerate(shares):
        assert match
        assert int(match[1]) == rank
        assert float(match[3]) == pytest.approx(1, abs=0.1)
        assert float(match[4]) == pytest.approx(float(match[2]), rel=0.1)
    assert not finished.out[1]
    assert len(list((tmp_path / "checkpoints").glob("step-*/__1_0.distcp"))) == 2


def test_new_and_continued_runs_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        finished = processes.run(*command[1:])  # forked from one that has imported torch
        seconds.append(finished.seconds)
        return subprocess.CompletedProcess(command, finished.codes[0], "".join(finished.out), "".join(finished.err))

    monkeypatch.setattr(checkpoint.subprocess, "run", run)
    checkpoint.start("demo", tmp_path, 1)
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "checkpoint: demo network, runs of one step from start to end"
    new, continued, more = (float(line[30:38]) for line in lines)
    assert [new, continued] == pytest.approx(seconds, abs=0.2)
    assert more == pytest.approx(continued - new, abs=0.002)
    assert not list(tmp_path.iterdir())
