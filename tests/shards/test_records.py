import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.tars import png, read_whole, write_tar

from n2n_dist.errors import UserError
from n2n_dist.images.codecs import encode
from n2n_dist.shards import open_files
from n2n_dist.shards.index import Index
from n2n_dist.shards.indexing import write_index
from n2n_dist.shards.reading import read_pixels, read_window


@pytest.mark.parametrize("content", ["", "[]", "[1, 2]", '{"a": 1}', '[{"key": "a"}]', None])
def test_damaged_list_of_members_is_refused_by_name(make_shards: Callable[..., Path], content: str | None) -> None:
    folder = make_shards(2)
    path = folder / "shard-000000.index.json"
    path.write_text(path.read_text().replace("255", "254") if content is None else content)
    with pytest.raises(UserError, match=r"shard-000000\.index\.json.*build\.py index"):
        Index([folder]).sample(0)


def test_a_list_of_members_that_is_rewritten_in_place_gives_no_wrong_pixels(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(3)
    path, index = folder / "shard-000000.index.json", Index([folder])
    index.sample(0)
    with path.open("r+") as file:  # stays the same file, as with cp
        text = file.read()
        file.seek(0)
        file.write(text.replace('"key":"', '"key":"longer', 1))
    with pytest.raises(UserError, match=r"shard-000000\.index\.json.*changed in place.*build\.py index"):
        index.sample(0)


@pytest.mark.parametrize("kind", ["keys", "member sizes", "no tar"])
def test_another_tar_of_the_same_size_is_refused_on_first_use(tmp_path: Path, kind: str) -> None:
    tar = tmp_path / "s" / "a.tar"
    write_tar(tar, [(f"{number}.png", png(seed=number)) for number in range(3)])
    write_index(tmp_path / "s")
    size = tar.stat().st_size
    others = {
        "keys": [(f"{number + 3}.png", png(seed=number)) for number in range(3)],
        "member sizes": [("0.txt", b"x"), *((f"{number}.png", png((19, 16, 3))) for number in range(3))],
        "no tar": [],
    }[kind]
    write_tar(tar, others)
    tar.write_bytes(tar.read_bytes()[:size].ljust(size, b"\0"))
    index = Index([tmp_path / "s"])
    with pytest.raises(UserError, match=rf"{tar}: is not the tar that was indexed.*build\.py index"):
        index.sample(0)


def test_shards_that_were_mixed_up_are_refused(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(4, shard_samples=2)
    first, second = (folder / f"shard-00000{number}.tar" for number in range(2))
    assert first.stat().st_size == second.stat().st_size
    shutil.copy(first, second)
    index = Index([folder])
    index.sample(0)
    with pytest.raises(UserError, match=f"{second}: is not the tar"):
        index.sample(2)


def test_tar_that_was_removed_since_is_refused_by_name(make_shards: Callable[..., Path]) -> None:
    index = Index([make_shards(2)])
    index.paths[0].unlink()
    with pytest.raises(UserError, match=str(index.paths[0])):
        index.sample(0)


def test_shards_that_were_built_again_are_read_anew(tmp_path: Path) -> None:
    for value in (7, 200):
        write_tar(tmp_path / "s" / "a.tar", [("a.npy", encode(np.full((8, 8, 1), value, np.uint8), ".npy"))])
        write_index(tmp_path / "s")
        tar, sample = Index([tmp_path / "s"]).sample(0)
        assert read_pixels(tar, sample, sample.captures[0], (0, 0, 8, 8)).max() == np.float32(value) / np.float32(255)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_tar_that_is_replaced_is_noticed_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    monkeypatch.setattr(open_files, "TRUSTED", 0.0)
    tars = []
    for name, value in (("s", 7), ("other", 200)):
        write_tar(tmp_path / name / "a.tar", [("a.npy", encode(np.full((8, 8, 1), value, np.uint8), ".npy"))])
        tars.append(tmp_path / name / "a.tar")
    write_index(tmp_path / "s")
    index = Index([tmp_path / "s"])
    read = []
    for _ in range(2):
        tar, sample = index.sample(0)
        read.append(read_window(tar, sample, sample.captures[0], (0, 0, 8, 8)).max())
        if in_place:
            tars[0].write_bytes(tars[1].read_bytes())
        elif tars[1].exists():
            tars[1].replace(tars[0])
    assert read == [7, 200]


def test_a_tar_of_another_layout_in_its_place_is_refused_while_it_is_read(
    make_shards: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "TRUSTED", 0.0)
    index = Index([make_shards(2)])
    tar, sample = index.sample(1)
    before = read_window(tar, sample, sample.captures[0], (0, 0, 8, 8))
    write_tar(tmp_path / "other.tar", [("a.json", b"{}"), ("a.npy", encode(np.zeros((900, 90, 3), np.uint8), ".npy"))])
    (tmp_path / "other.tar").replace(tar)
    # what was described before the change is read from the tar of then
    np.testing.assert_array_equal(read_window(tar, sample, sample.captures[0], (0, 0, 8, 8)), before)
    for _ in range(2):
        with pytest.raises(UserError, match=f"{tar}: is not the tar that was indexed"):
            index.sample(1)


def test_a_tar_that_cannot_be_opened_for_a_moment_is_refused_and_then_read(
    make_shards: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "TRUSTED", 0.0)
    index = Index([make_shards(2)])
    read_whole(index, 0)
    shutil.copy(index.paths[0], tmp_path / "copy.tar")
    (tmp_path / "copy.tar").replace(index.paths[0])
    with monkeypatch.context() as patch:

        def fail(*_: object) -> int:
            raise OSError("too many open files")

        patch.setattr(os, "open", fail)
        with pytest.raises(UserError, match="too many open files"):
            index.sample(0)
    read_whole(index, 0)


def test_reading_does_not_ask_for_the_file_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "s" / "a.tar", [("a.png", png())])
    write_index(tmp_path / "s")
    index = Index([tmp_path / "s"])
    read_whole(index, 0)
    asked: list[str] = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **named: (asked.append(str(path)), stat(path, **named))[1])
    monkeypatch.setattr(open_files.time, "monotonic", lambda: 0.0)  # no time passes
    for _ in range(20):
        read_whole(index, 0)
    assert not [path for path in asked if path.endswith((".tar", ".json"))]
