import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from images import random_pixels
from tars import png, read_whole, write_tar

from n2n_dist.data.image import encode
from n2n_dist.data.indexing import write_index
from n2n_dist.data.members import read_pixels
from n2n_dist.data.shard import Index
from n2n_dist.errors import Refusal


@pytest.mark.parametrize("extension", ["npy", "png"])
def test_every_window_is_the_slice_of_the_whole(tmp_path: Path, extension: str) -> None:
    pixels = random_pixels((9, 7, 2), np.uint8)
    write_tar(tmp_path / "s" / "a.tar", [(f"a.0.{extension}", encode(pixels, f".{extension}"))])
    write_index(tmp_path / "s")
    tar, sample = Index([tmp_path / "s"]).sample(0)
    for top in range(9):
        for left in range(7):
            height, width = 9 - top, min(3, 7 - left)
            found = read_pixels(tar, sample, sample.captures[0], (top, left, height, width))
            np.testing.assert_allclose(found, pixels[top:, left : left + width] / 255, rtol=1e-6)


def test_several_folders_are_numbered_through(make_shards: Callable[..., Path]) -> None:
    first, second = make_shards(3, "one", shard_samples=2), make_shards(2, "two")
    index = Index([first, second])
    assert len(index) == 5
    assert index.sizes.tolist() == [2, 1, 2]
    assert index.sample(2)[0] == first / "shard-000001.tar"
    assert index.sample(3)[0] == second / "shard-000000.tar"


def test_fingerprint_is_that_of_the_content(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    one, other = make_shards(3, "one"), make_shards(4, "other")
    before = Index([one]).fingerprint
    one.rename(tmp_path / "moved")
    assert Index([tmp_path / "moved"]).fingerprint == before
    assert len({before, Index([other]).fingerprint, Index([tmp_path / "moved", other]).fingerprint}) == 3
    assert (
        Index([other, tmp_path / "moved"]).fingerprint != Index([tmp_path / "moved", other]).fingerprint
    )  # another order gives other batches


def refuse_index(folder: Path, *words: str) -> None:
    with pytest.raises(Refusal) as caught:
        Index([folder])
    for word in words:
        assert word in str(caught.value)


def test_tar_that_is_not_the_indexed_one_is_refused(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(4, shard_samples=2)
    tar = folder / "shard-000001.tar"
    data = tar.read_bytes()
    tar.write_bytes(data[:-1000])
    refuse_index(folder, str(tar), f"{len(data):,}", f"{len(data) - 1000:,}", "build.py index")
    tar.unlink()
    refuse_index(folder, str(tar), "missing", "build.py index")


@pytest.mark.parametrize(
    "content",
    [None, "", "[]", "{}", '{"format": 2, "shards": [{"name": "a"}]}'],
)
def test_missing_or_damaged_index_is_refused(make_shards: Callable[..., Path], content: str | None) -> None:
    folder = make_shards(2)
    (folder / "index.json").unlink()
    if content is not None:
        (folder / "index.json").write_text(content)
    refuse_index(folder, str(folder / "index.json"), "build.py index")


def test_index_of_another_format_or_without_shards_is_refused(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_shards(2)
    content = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(content | {"format": 99}))
    refuse_index(folder, "format 99")
    (folder / "index.json").write_text('{"format": 1, "shards": [{"name": "a"}]}')
    refuse_index(folder, "format 1, this version reads 2", "build.py index")
    (folder / "index.json").write_text(json.dumps(content | {"shards": []}))
    refuse_index(folder, "lists no shard")
    refuse_index(tmp_path / "none", str(tmp_path / "none"), "shards/build.py")


def test_missing_list_of_members_is_refused_at_once(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(4, shard_samples=2)
    (folder / "shard-000001.index.json").unlink()
    refuse_index(folder, str(folder / "shard-000001.index.json"), "missing", "build.py index")


@pytest.mark.parametrize("content", ["", "[]", "[1, 2]", '{"a": 1}', '[{"key": "a"}]', None])
def test_damaged_list_of_members_is_refused_by_name(make_shards: Callable[..., Path], content: str | None) -> None:
    folder = make_shards(2)
    path = folder / "shard-000000.index.json"
    path.write_text(path.read_text().replace("255", "254") if content is None else content)
    with pytest.raises(Refusal, match=r"shard-000000\.index\.json.*build\.py index"):
        Index([folder]).sample(0)


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
    with pytest.raises(Refusal, match=rf"{tar}: is not the tar that was indexed.*build\.py index"):
        index.sample(0)


def test_shards_that_were_mixed_up_are_refused(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(4, shard_samples=2)
    first, second = (folder / f"shard-00000{number}.tar" for number in range(2))
    assert first.stat().st_size == second.stat().st_size
    shutil.copy(first, second)
    index = Index([folder])
    index.sample(0)
    with pytest.raises(Refusal, match=f"{second}: is not the tar"):
        index.sample(2)


def test_tar_that_has_gone_since_is_refused_by_name(make_shards: Callable[..., Path]) -> None:
    index = Index([make_shards(2)])
    index.paths[0].unlink()
    with pytest.raises(Refusal, match=str(index.paths[0])):
        index.sample(0)


def test_what_every_sample_must_hold(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    one, grey = make_shards(2, "one"), make_shards(2, "grey", size=(20, 20, 1))
    Index([one]).require("data.shards", channels=3, captures=1)
    with pytest.raises(Refusal, match=rf"data\.shards: {grey}.*of 1 channels.*model\.channels is 3"):
        Index([one, grey]).require("data.shards", 3, 1)
    with pytest.raises(Refusal, match=rf"data\.validation: {one}.*one capture.*--captures"):
        Index([one]).require("data.validation", 3, 2)
    write_tar(tmp_path / "s" / "a.tar", [("a.0.png", png()), ("a.1.png", png()), ("b.png", png((20, 16, 1)))])
    write_index(tmp_path / "s")
    with pytest.raises(Refusal, match=r"1 and 3 channels"):
        Index([tmp_path / "s"]).require("data.shards", 3, 1)


def test_changed_member_is_refused_by_sample(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(2, encoding="png")
    index = Index([folder])
    tar, sample = index.sample(1)
    with tar.open("r+b") as file:
        file.seek(sample.captures[0].offset)
        file.write(b"damage")
    read_whole(index, 0)
    with pytest.raises(Refusal, match=f"{tar}: sample {sample.key}"):
        read_whole(index, 1)


def test_shards_that_were_built_again_are_read_anew(tmp_path: Path) -> None:
    for value in (7, 200):
        write_tar(tmp_path / "s" / "a.tar", [("a.npy", encode(np.full((8, 8, 1), value, np.uint8), ".npy"))])
        write_index(tmp_path / "s")
        tar, sample = Index([tmp_path / "s"]).sample(0)
        assert read_pixels(tar, sample, sample.captures[0], (0, 0, 8, 8)).max() == np.float32(value) / np.float32(255)


def test_values_that_are_not_finite_are_refused_where_they_are_read(tmp_path: Path) -> None:
    pixels = random_pixels((8, 8, 1), np.float32)
    pixels[6, 5] = np.nan
    write_tar(tmp_path / "s" / "a.tar", [("a.npy", encode(pixels, ".npy"))])
    write_index(tmp_path / "s", white=1.0)
    tar, sample = Index([tmp_path / "s"]).sample(0)
    read_pixels(tar, sample, sample.captures[0], (0, 0, 6, 8))
    with pytest.raises(Refusal, match=f"{tar}: sample a: values that are not finite"):
        read_pixels(tar, sample, sample.captures[0], (2, 2, 6, 6))
