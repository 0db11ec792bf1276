"""Damaged samples are replaced by the same ones in one process and in several, in training and validation."""

import json
import shutil
from pathlib import Path

from support import processes
import pytest
from support.images import big_png

STALE = "is not the tar that was indexed; index anew with: python shards/build.py index"
SETTINGS = ("train.steps=8", "data.max_bad=0.9", "validate.every=8", "validate.images=8")


def damaged(folder: Path, name: str) -> Path:
    """Copy shards of the demo and damage samples of every tar in other ways, each of which leaves its size."""
    shards = Path(shutil.copytree(processes.ROOT / "shards/demo" / name, folder / name))
    for tar in shards.glob("*.tar"):
        samples = json.loads(tar.with_suffix(".index.json").read_text())["samples"]
        data = bytearray(tar.read_bytes())
        for number, change in enumerate((bytes(500), b"\xff" * 3, big_png(100_000, 8), big_png(100_000, 16))):
            offset = samples[2 * number + 1]["captures"][0]["offset"] + (300 if number == 1 else 0)
            data[offset : offset + len(change)] = change
        tar.write_bytes(data)
    if name == "train":  # the index of another tar
        (shards / "shard-000001.tar").write_bytes(
            (shards / "shard-000000.tar").read_bytes().ljust((shards / "shard-000001.tar").stat().st_size, b"\0")
        )
    return shards


def replaced(finished: processes.Finished, what: str) -> list[str]:
    """Messages of all ranks; one may follow the progress bar on its line."""
    start = f"replaced an unreadable {what}: "
    said = [line for out in finished.out for line in out.splitlines()]
    return sorted(line.partition(start)[2] for line in said if start in line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage")
    damaged(path, "train")
    damaged(path, "validation")
    return path


@pytest.fixture(scope="module")
def alone(folder: Path) -> processes.Finished:
    return trained(folder, "alone")


def trained(folder: Path, name: str, *settings: str, world: int = 0) -> processes.Finished:
    shards = (f"data.shards={folder}/train", f"data.validation={folder}/validation", f"run.dir={folder / name}")
    return processes.train(*SETTINGS, *shards, *settings, world=world, pairs=folder / f"{name}-pairs").checked()


@pytest.mark.parametrize(("world", "workers"), [(2, 0), (2, 2)])
def test_ranks_and_workers_replace_alike(folder: Path, alone: processes.Finished, world: int, workers: int) -> None:
    name = f"{world}-{workers}"
    finished = trained(folder, name, f"data.workers={workers}", world=world)
    expected = processes.pairs_by_position(folder / "alone-pairs")
    assert list(expected) == list(range(64))
    assert processes.pairs_by_position(folder / f"{name}-pairs") == expected
    for what in ("sample", "sample of data.validation validation"):
        assert replaced(finished, what) == replaced(alone, what)
    there, here = processes.curves(folder / "alone"), processes.curves(folder / name)
    assert here["validation/noisy_psnr"] == pytest.approx(there["validation/noisy_psnr"])


def test_every_damaged_sample_is_named_in_an_epoch(folder: Path, alone: processes.Finished) -> None:
    named = replaced(alone, "sample")
    assert len(named) == 3 * 4 + 16
    assert len(set(named)) == 3 * 4 + 1
    assert named.count(f"{folder}/train/shard-000001.tar: {STALE} {folder}/train") == 16
    assert len(set(replaced(alone, "sample of data.validation validation"))) == 4
