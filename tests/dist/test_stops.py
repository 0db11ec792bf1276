"""What stops a run stops all of its processes, soon, with one message."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from support import processes
import pytest

SOON = 30
"""Seconds, on a busy machine; a rank that waits for one that is gone would wait for half an hour."""


def refused(*settings: object, zero: int = 0) -> str:
    return message_of(processes.train(*settings, world=2, zero=zero))


def message_of(finished: processes.Finished) -> str:
    assert finished.codes == [2, 2], finished
    assert finished.seconds < SOON
    messages = [line for err in finished.err for line in err.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, finished.err
    assert "Traceback" not in "".join(finished.err)
    return messages[0].removeprefix("error: ")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("stops") / "run"
    processes.train(f"run.dir={run_dir}", "train.steps=2").checked()
    return run_dir


def test_another_configuration(finished_run: Path) -> None:
    before = (finished_run / "last.safetensors").read_bytes(), (finished_run / "config.yaml").read_bytes()
    message = refused(f"run.dir={finished_run}", "train.steps=2", "run.seed=7", "noise.sigma=30")
    assert "run.seed is 0 there and 7 here" in message
    assert "noise.sigma is 25.0 there and 30 here" in message
    assert (finished_run / "error.txt").read_text().strip() == message
    assert ((finished_run / "last.safetensors").read_bytes(), (finished_run / "config.yaml").read_bytes()) == before


def test_all_checkpoints_damaged(finished_run: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(finished_run, tmp_path / "run")
    weights = next((run_dir / "checkpoints").glob("*/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    message = refused(f"run.dir={run_dir}", "train.steps=4")
    assert "all checkpoints are damaged" in message
    assert (run_dir / "error.txt").read_text().strip() == message


def test_a_loss_that_is_not_finite_stops_all_ranks_with_nothing_bad_saved(tmp_path: Path) -> None:
    # one step of this size and the network overflows; the check comes with the checkpoint
    settings = ("optim.lr=1e30", "optim.clip=0", "train.steps=8", "checkpoint.every=2", "train.log_every=100")
    message = refused(f"run.dir={tmp_path / 'run'}", *settings, "data.validation=shards/demo/validation")
    assert message.startswith("step 2: ")
    assert "train/total" in message
    assert "not finite, with the samples at positions 8 to 11 (rank 0), 12 to 15 (rank 1); the largest value" in message
    assert (tmp_path / "run" / "error.txt").read_text().strip() == message
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("zero", [0, 2])
def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(tmp_path: Path, zero: int) -> None:
    # the loss of the third batch is fine; ZeRO would skip its step without a word
    settings = ("train.steps=8", "checkpoint.every=2", "train.log_every=100")
    finished = processes.train(f"run.dir={tmp_path / 'run'}", *settings, world=2, zero=zero, break_at=2 * 8 + 4)
    message = message_of(finished)
    assert message.startswith("step 3: ")
    assert "train/gradient_norm is not finite, with the samples at positions 16 to 19 (rank 0), 20 to 23" in message
    assert "The last checkpoint is good" in message
    assert (tmp_path / "run" / "error.txt").read_text().strip() == message
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_full_disk_is_told_by_all_ranks_and_ends_the_run_at_its_last_save(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        run_dir = folder / "run"
        settings = ("train.steps=8", "checkpoint.every=2", "data.validation=shards/demo/validation", "validate.every=4")
        finished = processes.train(f"run.dir={run_dir}", *settings, "validate.images=2", world=2)
        error = (run_dir / "error.txt").read_text()
        names = [path.name for path in (run_dir / "checkpoints").iterdir()]
        left = {path.name for path in run_dir.iterdir()}
    finally:
        subprocess.run(["umount", folder], check=True)
    assert finished.codes == [1, 1], finished
    told = [line for line in finished.err[0].splitlines() if line.startswith("error: ")]
    assert "curves and pictures cannot be written (No space left on device); going on without them" in finished.out[0]
    assert any("could not be saved (No space left on device" in line for line in told[:-1])
    assert all("the next save tries again" in line for line in told[:-1])
    assert "step 8 could not be saved" in told[-1]
    assert error.strip() in told[-1], "there may be no room for it"
    assert names == ["step-00000002"]
    assert not left & {"PREEMPTED", "last.safetensors", "best.safetensors"}
    assert not finished.err[1].replace("error: ", "").strip()


def test_a_rank_that_dies_takes_the_others_with_it(tmp_path: Path) -> None:
    # positions 4 to 7 of the third batch belong to rank 1
    finished = processes.train(f"run.dir={tmp_path}", "train.steps=9", world=2, kill_at=2 * 8 + 4)
    assert finished.codes == [1, -9]
    assert finished.seconds < SOON
    message = (tmp_path / "error.txt").read_text()
    assert message.startswith("another process of this run was lost (")
    assert finished.err[0].endswith(f"error: {message}")
    assert "Traceback" not in finished.err[0]


def test_samples_that_only_one_rank_cannot_read(tmp_path: Path) -> None:
    shards = Path(shutil.copytree(processes.ROOT / "shards/demo/train", tmp_path / "shards"))
    tar = shards / "shard-000002.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    message = refused(f"run.dir={tmp_path / 'run'}", f"data.shards={shards}", "data.workers=1")
    assert "samples cannot be read, named above; check the shards with" in message
    assert (tmp_path / "run" / "error.txt").read_text().strip() == message


def test_an_image_that_only_one_rank_cannot_use(
    finished_run: Path, tmp_path: Path, write_images: Callable[..., Path]
) -> None:
    write_images("0.png", "2.png")
    images = write_images("1.png", size=(40, 36, 1))
    arguments = ("--run", finished_run, "--images", images, "--output", tmp_path / "scores")
    message = message_of(processes.run("launch/evaluate.py", *arguments, world=2))
    assert "1.png: has 1 channels, these weights are for 3" in message
