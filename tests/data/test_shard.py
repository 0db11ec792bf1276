import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from images import random_pixels

from n2n_dist.data.image import encode, write_image
from n2n_dist.data.indexing import verify, write_index
from n2n_dist.data.shard import Index, read_pixels
from n2n_dist.errors import Refusal


def read_whole(index: Index, number: int) -> np.ndarray:
    tar, sample = index.sample(number)
    return read_pixels(tar, sample, sample.captures[0], (0, 0, *sample.shape[:2]))


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def png(shape: tuple[int, ...] = (20, 16, 3), seed: int = 0) -> bytes:
    return encode(random_pixels(shape, seed=seed), ".png")


@pytest.mark.parametrize("folder", ["scene", "scène", "long" * 40, "é" * 80])
def test_tar_written_by_webdataset_is_indexed_and_read(tmp_path: Path, folder: str) -> None:
    images = [random_pixels((20, 16, 3), np.uint16, seed) for seed in range(3)]
    with webdataset.ShardWriter(str(tmp_path / "part-%03d.tar"), maxcount=2, verbose=0) as writer:
        for number, pixels in enumerate(images):
            writer.write({"__key__": f"{folder}/{number}", "npy": pixels, "cls": 7})
    write_index(tmp_path)
    index = Index([tmp_path])
    assert index.sizes.tolist() == [2, 1]
    assert [index.sample(number)[1].key for number in range(3)] == [f"{folder}/{number}" for number in range(3)]
    for number, pixels in enumerate(images):
        np.testing.assert_allclose(read_whole(index, number), pixels / 65535, rtol=1e-6)


@pytest.mark.parametrize("argument", [".", "sub"])
@pytest.mark.parametrize(("form", "length"), [("gnu", 20), ("pax", 20), ("ustar", 20), ("gnu", 40), ("pax", 40)])
def test_tar_written_by_tar_is_indexed_and_read(tmp_path: Path, argument: str, form: str, length: int) -> None:
    """`tar -cf x.tar .` gives names that start with `./`."""
    images = {f"scène-{'long' * length}-{n}": random_pixels((20, 16, 1), np.uint8, n) for n in range(2)}
    for name, pixels in images.items():
        write_image(tmp_path / "in" / "sub" / f"{name}.png", pixels)
        (tmp_path / "in" / "sub" / f"{name}.json").write_text('{"black": 10, "white": 110, "more": [1]}')
    (tmp_path / "out").mkdir()
    command = ["tar", f"--format={form}", "--sort=name", "-cf", str(tmp_path / "out" / "a.tar"), argument]
    subprocess.run(command, cwd=tmp_path / "in", check=True)
    write_index(tmp_path / "out")
    index = Index([tmp_path / "out"])
    assert [index.sample(number)[1].key for number in range(2)] == [f"sub/{name}" for name in images]
    for number, pixels in enumerate(images.values()):
        np.testing.assert_allclose(read_whole(index, number), (pixels.astype(float) - 10) / 100, atol=1e-6)


def test_extensions_in_capitals_are_read(tmp_path: Path) -> None:
    pixels = random_pixels((20, 16, 3))
    members = [(f"a.{n}.{suffix}", encode(pixels, f".{suffix.lower()}")) for n, suffix in enumerate(("PNG", "Tif"))]
    write_tar(tmp_path / "s" / "a.tar", [*members, ("b.NPY", encode(pixels, ".npy"))])
    write_index(tmp_path / "s")
    index = Index([tmp_path / "s"])
    for number, captures in ((0, 2), (1, 1)):
        tar, sample = index.sample(number)
        assert len(sample.captures) == captures
        for member in sample.captures:
            found = read_pixels(tar, sample, member, (3, 2, 10, 9))
            np.testing.assert_allclose(found, pixels[3:13, 2:11] / 255, rtol=1e-6)


def test_captures_and_reference_are_told_apart(tmp_path: Path) -> None:
    captures = [random_pixels((20, 16, 1), seed=seed) for seed in range(11)]
    clean = random_pixels((20, 16, 1), seed=99)
    members = [(f"a.{n}.png", encode(captures[n], ".png")) for n in reversed(range(11))]
    mask = ("a.mask.png", png((5, 5, 3)))  # something of the owner's, which is left alone
    write_tar(tmp_path / "s" / "a.tar", [*members, ("a.clean.npy", encode(clean, ".npy")), mask])
    write_index(tmp_path / "s")
    index = Index([tmp_path / "s"])
    tar, sample = index.sample(0)
    assert (index.shards[0].captures, index.shards[0].clean) == (11, True)
    for member, pixels in zip([*sample.captures, sample.clean], [*captures, clean], strict=True):
        window = read_pixels(tar, sample, member, (3, 2, 10, 9))
        np.testing.assert_allclose(window, pixels[3:13, 2:11] / 255, rtol=1e-6)


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


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"format": 1, "shards": [{"name": "a"}]}'])
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
    (folder / "index.json").write_text(json.dumps(content | {"shards": []}))
    refuse_index(folder, "lists no shard")
    refuse_index(tmp_path / "none", str(tmp_path / "none"), "shards/build.py")


def test_missing_list_of_members_is_refused_at_once(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(4, shard_samples=2)
    (folder / "shard-000001.index.json").unlink()
    refuse_index(folder, str(folder / "shard-000001.index.json"), "missing", "build.py index")


@pytest.mark.parametrize("content", ["", "[]", "[1, 2]", '{"a": 1}', '[{"key": "a"}]'])
def test_damaged_list_of_members_is_refused_by_name(make_shards: Callable[..., Path], content: str) -> None:
    folder = make_shards(2)
    (folder / "shard-000000.index.json").write_text(content)
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


@pytest.mark.parametrize("content", [b'{"files": []}', b"", b"\xff\xfe"])
def test_index_of_another_program_is_not_replaced(make_shards: Callable[..., Path], content: bytes) -> None:
    folder = make_shards(2)
    write_index(folder)  # its own, it does
    (folder / "index.json").write_bytes(content)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(Refusal, match=rf"{folder / 'index.json'}: not written by this package"):
        write_index(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_verify_finds_one_flipped_byte(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(4, shard_samples=2)
    verify(folder)
    tar = folder / "shard-000001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(Refusal, match=str(tar)):
        verify(folder)


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


def cut(data: bytes, where: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        third = archive.getmembers()[2]
    return {
        "in data": data[: third.offset_data + 100],
        "in a header": data[: third.offset + 100],
        "before a header": data[: third.offset],
        "flipped header": data[: third.offset] + b"\xff" + data[third.offset + 1 :],
        "no tar": b"something else" * 1000,
        "empty": b"",
    }[where]


@pytest.mark.parametrize("where", ["in data", "in a header", "before a header", "flipped header", "no tar", "empty"])
def test_damaged_tar_is_not_indexed_as_a_shorter_one(tmp_path: Path, where: str) -> None:
    tar = tmp_path / "s" / "a.tar"
    write_tar(tar, [(f"{number}.png", png()) for number in range(4)])
    write_index(tmp_path / "s")
    tar.write_bytes(cut(tar.read_bytes(), where))
    with pytest.raises(Refusal, match=f"{tar}: truncated"):
        write_index(tmp_path / "s")


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png", "./../a.png"])
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / "s" / "a.tar", [(name, png())])
    with pytest.raises(Refusal, match="leads outside"):
        write_index(tmp_path / "s")


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_links_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png())
    (os.symlink if kind == "symbolic" else os.link)(tmp_path / "in" / "a.png", tmp_path / "in" / "b.png")
    (tmp_path / "s").mkdir()
    subprocess.run(["tar", "-cf", str(tmp_path / "s" / "a.tar"), "a.png", "b.png"], cwd=tmp_path / "in", check=True)
    with pytest.raises(Refusal, match=r"b\.png.*link"):
        write_index(tmp_path / "s")


def with_settings(settings: str) -> list[tuple[str, bytes]]:
    return [("a.png", png()), ("a.json", settings.encode())]


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ([("a.png", png()), ("./a.png", png())], "twice"),
        ([("a.txt", b"x")], "has no image"),
        ([("a.0.png", png()), ("a.1.png", png((20, 17, 3)))], "differ"),
        ([("a.0.png", png()), ("a.clean.png", png((20, 16, 1)))], "differ"),
        ([("a.png", b"not an image")], "damaged"),
        ([("a.npy", encode(np.zeros((8, 8, 5), np.uint8), ".npy"))], "shape"),
        (with_settings("{"), "sample 'a'"),
        (with_settings("[1]"), "sample 'a'"),
        (with_settings('{"white": "much"}'), "sample 'a'"),
        (with_settings('{"black": 9, "white": 9}'), "not above black"),
        ([], "no sample"),
    ],
)
def test_samples_that_cannot_be_used_are_refused_by_name(
    tmp_path: Path, members: list[tuple[str, bytes]], what: str
) -> None:
    write_tar(tmp_path / "s" / "a.tar", members)
    with pytest.raises(Refusal, match=what) as caught:
        write_index(tmp_path / "s")
    assert str(tmp_path / "s" / "a.tar") in str(caught.value)
    assert not (tmp_path / "s" / "index.json").exists()


def test_array_in_fortran_order_is_refused_rather_than_scrambled(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, random_pixels((20, 16)).T)
    write_tar(tmp_path / "s" / "a.tar", [("a.npy", buffer.getvalue())])
    with pytest.raises(Refusal, match="Fortran"):
        write_index(tmp_path / "s")


def test_folder_without_tars_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=str(tmp_path)):
        write_index(tmp_path)
