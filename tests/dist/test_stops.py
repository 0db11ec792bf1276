"""What stops a run stops all of its processes, soon, with one message."""

import shutil
from collections.abc import Callable
from pathlib import Path

import processes
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
    weights = next((run_dir / "checkpoints").glob("*/*.distcp"))
    weights.write_bytes(weights.read_bytes()[:-1])
    message = refused(f"run.dir={run_dir}", "train.steps=4")
    assert "all checkpoints are damaged" in message
    assert (run_dir / "error.txt").read_text().strip() == message


def test_zero_does_not_continue_and_says_so_before(finished_run: Path) -> None:
    weights = (finished_run / "last.safetensors").read_bytes()
    message = refused(f"run.dir={finished_run}", "train.steps=4", zero=1)
    assert "ZeRO-1 cannot continue" in message
    assert (finished_run / "last.safetensors").read_bytes() == weights


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


def test_a_rank_that_dies_takes_the_others_with_it(tmp_path: Path) -> None:
    # positions 4 to 7 of the third batch belong to rank 1
    finished = processes.train(f"run.dir={tmp_path}", "train.steps=9", world=2, kill_at=2 * 8 + 4)
    assert finished.codes == [1, -9]
    assert finished.seconds < SOON
    message = (tmp_path / "error.txt").read_text()
    assert message.startswith("another process of this run is gone (")
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
