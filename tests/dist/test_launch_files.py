"""The launch files start what they say, and evaluation does not depend on the number of processes."""

import csv
import socket
from pathlib import Path

import numpy as np
import PIL.Image
from support import processes
import pytest
import skimage.data
import yaml


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("launch") / "alone"
    processes.train(f"run.dir={run_dir}", "train.steps=4").checked()
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "name"), [("cpu", "DDP"), ("zero1", "ZeRO-1")])
def test_a_launch_file_trains_what_one_process_trains(tmp_path: Path, alone: Path, backend: str, name: str) -> None:
    run_dir = tmp_path / "run"
    done = processes.accelerate_launch(
        backend, "launch/train.py", *processes.TINY, f"run.dir={run_dir}", "train.steps=4"
    )
    assert done.returncode == 0, done.stderr
    assert f"world    {name}: 2 process(es) on {socket.gethostname()}, cpu" in done.stdout
    assert (run_dir / "checkpoints" / "step-00000004").is_dir()
    there, here = (list(processes.curves(folder)["train/total"].values()) for folder in (alone, run_dir))
    assert here == pytest.approx(there, rel=1e-5)


def test_the_file_for_zero_2_differs_from_that_for_zero_1_in_the_stage_alone() -> None:
    one, two = (
        yaml.safe_load((processes.ROOT / f"launch/backends/{name}.yaml").read_text()) for name in ("zero1", "zero2")
    )
    stages = [file["deepspeed_config"].pop("zero_stage") for file in (one, two)]
    assert stages == [1, 2]
    assert one == two


@pytest.mark.slow
def test_ddp_is_not_taken_for_zero(tmp_path: Path) -> None:
    settings = (*processes.TINY, f"run.dir={tmp_path / 'run'}")
    variables = {"ACCELERATE_USE_CPU": "true"}
    done = processes.accelerate_launch("zero1", "launch/train.py", *settings, timeout=60, variables=variables)
    assert done.returncode != 0
    assert "error: ACCELERATE_USE_CPU: Accelerate takes DDP for ZeRO-1 where it is true; unset it, or use" in done.stderr


@pytest.mark.slow
def test_a_refusal_under_accelerate_launch(tmp_path: Path) -> None:
    settings = (*processes.TINY, "data.batch=3", f"run.dir={tmp_path / 'run'}")
    done = processes.accelerate_launch("cpu", "launch/train.py", *settings, timeout=60)
    assert done.returncode != 0
    assert done.stderr.count("data.batch 3: not divisible by 2 processes; try data.batch=") == 1
    assert not (tmp_path / "run").exists()


def test_evaluation_gives_the_same_numbers_in_one_and_two_processes(tmp_path: Path, alone: Path) -> None:
    (tmp_path / "images").mkdir()
    for number, size in enumerate((64, 80, 72)):
        picture = skimage.data.astronaut()[: size + 8, 100 : 100 + size]
        PIL.Image.fromarray(np.ascontiguousarray(picture)).save(tmp_path / "images" / f"{number}.png")
    tables = []
    for world in (0, 2):
        output = tmp_path / str(world)
        arguments = ("--run", alone, "--images", tmp_path / "images", "--output", output)
        processes.run("launch/evaluate.py", *arguments, world=world).checked()
        with (output / "scores.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    assert [row["image"] for row in tables[0]] == ["0.png", "1.png", "2.png", "mean of 3"]
    for one, two in zip(*tables, strict=True):
        assert one.pop("image") == two.pop("image")
        assert [float(value) for value in two.values()] == pytest.approx([float(v) for v in one.values()], abs=1e-3)
    assert (tmp_path / "0/comparison.png").read_bytes() == (tmp_path / "2/comparison.png").read_bytes()
