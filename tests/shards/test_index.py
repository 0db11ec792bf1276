import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tars import png, write_tar

from n2n_dist.errors import UserError
from n2n_dist.shards.index import Index
from n2n_dist.shards.indexing import write_index
from n2n_dist.version import __version__


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
    with pytest.raises(UserError) as caught:
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
    [None, "", "[]", "{}", '{"format": 3, "shards": [{"name": "a"}]}'],
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
    (folder / "index.json").write_text(json.dumps(content | {"format": 99, "version": "9.8.7"}))
    refuse_index(folder, f"format 99 of n2n_dist 9.8.7; n2n_dist {__version__} reads format 3; ", "build.py index")
    (folder / "index.json").write_text('{"format": 2, "shards": [{"name": "a"}]}')
    refuse_index(folder, "format 2 of an older n2n_dist; ", "build.py index")
    (folder / "index.json").write_text(json.dumps(content | {"shards": []}))
    refuse_index(folder, "lists no shard")
    refuse_index(tmp_path / "none", str(tmp_path / "none"), "shards/build.py")


def test_missing_list_of_members_is_refused_at_once(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(4, shard_samples=2)
    (folder / "shard-000001.index.json").unlink()
    refuse_index(folder, str(folder / "shard-000001.index.json"), "missing", "build.py index")


def test_every_sample_must_have_the_channels_of_the_network(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    one, grey = make_shards(2, "one"), make_shards(2, "grey", size=(20, 20, 1))
    Index([one]).require("data.shards", channels=3)
    with pytest.raises(UserError, match=rf"data\.shards: {grey}.*of 1 channels.*model\.channels is 3"):
        Index([one, grey]).require("data.shards", 3)
    write_tar(tmp_path / "s" / "a.tar", [("a.0.png", png()), ("a.1.png", png()), ("b.png", png((20, 16, 1)))])
    write_index(tmp_path / "s")
    with pytest.raises(UserError, match=r"1 and 3 channels"):
        Index([tmp_path / "s"]).require("data.shards", 3)


def test_a_folder_without_tars_is_told_from_one_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}: no \*\.tar file in it; .*build\.py"):
        Index([tmp_path])


def test_index_and_lists_name_the_version_that_wrote_them(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(3, shard_samples=2)
    for name, samples in (("index", 2), ("shard-000000.index", 2), ("shard-000001.index", 1)):
        content = json.loads((folder / f"{name}.json").read_text())
        assert (content["format"], content["version"]) == (3, __version__)
        assert len(content["shards" if name == "index" else "samples"]) == samples
