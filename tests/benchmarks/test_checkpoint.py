import json
import subprocess
from pathlib import Path

import pytest
from support import processes

from benchmarks import checkpoint


def test_two_processes_measure_their_saves_and_loads(tmp_path: Path) -> None:
    processes.run("benchmarks/checkpoint.py", tmp_path, "--rounds", 1, world=2).checked()
    figures = {figure.pop("name"): figure for figure in json.loads((tmp_path / checkpoint.FIGURES).read_text())}
    assert all(value > 0 for figure in figures.values() for value in figure["values"])
    held = figures["a save holds the loop for"]["values"][0] * sorted(figures["a step"]["values"])[2]
    assert held < figures["a save that is waited for"]["values"][0]
    for rank in range(2):
        written, staged = (figures[f"{verb} by rank {rank}"] for verb in ("written", "staged"))
        assert float(written["note"].split()[0]) == pytest.approx(1, abs=0.1)
        assert staged["values"][0] == pytest.approx(written["values"][0], rel=0.1)
    assert len(list((tmp_path / "checkpoints").glob("step-*/rank-0001.safetensors"))) == 2


def test_new_and_continued_runs_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        finished = processes.run(*command[1:])  # forked from one that has imported torch
        seconds.append(finished.seconds)
        return subprocess.CompletedProcess(command, finished.codes[0], "".join(finished.out), "".join(finished.err))

    monkeypatch.setattr(checkpoint.subprocess, "run", run)
    new, continued, more = (figure.median for figure in checkpoint.start("demo", [], tmp_path, 1))
    assert [new, continued] == pytest.approx(seconds, abs=0.2)
    assert more == pytest.approx(continued - new, abs=0.002)
    assert not list(tmp_path.iterdir())
