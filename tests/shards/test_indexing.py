import contextlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from support.images import big_png, big_tiff, random_pixels
from support.tars import png, read_whole, write_tar

from n2n_dist.errors import UserError
from n2n_dist.images.codecs import encode
from n2n_dist.images.image import write_image
from n2n_dist.shards.index import Index
from n2n_dist.shards.indexing import verify, write_index
from n2n_dist.shards.reading import read_pixels


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


@pytest.mark.parametrize("content", [b'{"files": []}', b"", b"\xff\xfe"])
def test_index_of_another_program_is_not_replaced(make_shards: Callable[..., Path], content: bytes) -> None:
    folder = make_shards(2)
    write_index(folder)  # its own, it does
    (folder / "index.json").write_bytes(content)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=rf"{folder / 'index.json'}: not written by this package"):
        write_index(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_verify_finds_one_flipped_byte(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(4, shard_samples=2)
    verify(folder)
    tar = folder / "shard-000001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(UserError, match=str(tar)):
        verify(folder)


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
    with pytest.raises(UserError, match=f"{tar}: truncated"):
        write_index(tmp_path / "s")


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png", "./../a.png"])
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / "s" / "a.tar", [(name, png())])
    with pytest.raises(UserError, match="leads outside"):
        write_index(tmp_path / "s")


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_links_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png())
    (os.symlink if kind == "symbolic" else os.link)(tmp_path / "in" / "a.png", tmp_path / "in" / "b.png")
    (tmp_path / "s").mkdir()
    subprocess.run(["tar", "-cf", str(tmp_path / "s" / "a.tar"), "a.png", "b.png"], cwd=tmp_path / "in", check=True)
    with pytest.raises(UserError, match=r"b\.png.*link"):
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
        ([("a.0.png", png()), ("a.0.npy", encode(random_pixels((20, 16, 3)), ".npy"))], "two images for KEY.0 "),
        ([("a.0.png", png()), ("a.00.png", png())], "two images for KEY.0 "),
        ([("a.png", png()), ("a.npy", encode(random_pixels((20, 16, 3)), ".npy"))], "two images for KEY "),
        ([("a.0.png", png()), ("a.clean.png", png()), ("a.clean.tif", b"")], "two images for KEY.clean "),
        *(([(f"a.{extension}", b"")], "damaged") for extension in ("png", "npy", "tif")),
        ([("a.npy", encode(random_pixels((8, 8, 1)), ".npy") + b"x")], "193 bytes for uint8"),
        (with_settings(""), "sample 'a'"),
        (with_settings("[" * 100_000), "sample 'a'"),
        (with_settings('{"white": Infinity}'), "not above black"),
        ([], "no sample"),
    ],
)
def test_samples_that_cannot_be_used_are_refused_by_name(
    tmp_path: Path, members: list[tuple[str, bytes]], what: str
) -> None:
    write_tar(tmp_path / "s" / "a.tar", members)
    with pytest.raises(UserError, match=what) as caught:
        write_index(tmp_path / "s")
    assert str(tmp_path / "s" / "a.tar") in str(caught.value)
    assert not (tmp_path / "s" / "index.json").exists()


def test_array_in_fortran_order_is_refused_rather_than_scrambled(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, random_pixels((20, 16)).T)
    write_tar(tmp_path / "s" / "a.tar", [("a.npy", buffer.getvalue())])
    with pytest.raises(UserError, match="Fortran"):
        write_index(tmp_path / "s")


def test_folder_without_tars_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        write_index(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"])
def test_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "s").mkdir()
    with tarfile.open(tmp_path / "s" / "a.tar", "w") as archive:
        info = tarfile.TarInfo("b.png")
        info.type = kind
        archive.addfile(info)
    with pytest.raises(UserError, match=r"b\.png.*a device"):
        write_index(tmp_path / "s")


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_members_with_holes_are_refused_rather_than_read_shifted(tmp_path: Path, form: str) -> None:
    (tmp_path / "s").mkdir()
    with (tmp_path / "a.npy").open("wb") as file:
        file.write(encode(np.full((1, 8, 1), 7, np.uint8), ".npy"))
        file.truncate(1 << 20)
    command = ["tar", f"--format={form}", "-S", "-cf", str(tmp_path / "s" / "a.tar"), "a.npy"]
    subprocess.run(command, cwd=tmp_path, check=True)
    if (tmp_path / "s" / "a.tar").stat().st_size > 1 << 20:
        pytest.skip("this file system keeps no holes")
    with pytest.raises(UserError, match=r"a\.npy.*sparse"):
        write_index(tmp_path / "s")


def test_images_that_are_no_captures_are_left_alone(tmp_path: Path) -> None:
    others = [(f"a.{name}", png((5, 5, 1))) for name in ("mask.png", "0.mask.png", "cleaner.png")]
    write_tar(tmp_path / "s" / "a.tar", [("a.0.png", png()), *others, ("a.mask.npy", b"")])
    (shard,) = write_index(tmp_path / "s")
    assert (shard.samples, shard.captures, shard.clean) == (1, 1, False)


def claims(extension: str) -> bytes:
    """A small file that says that it holds 10^12 pixels."""
    if extension == "npy":
        buffer = io.BytesIO()
        header = {"descr": "|u1", "fortran_order": False, "shape": (1_000_000, 1_000_000)}
        np.lib.format.write_array_header_1_0(buffer, header)
        return buffer.getvalue()
    if extension == "tif":
        return big_tiff(1_000_000)
    return big_png(1_000_000, 16 if extension == "16.png" else 8)


@pytest.mark.parametrize("extension", ["npy", "tif", "8.png", "16.png"])
def test_decompression_bombs_are_refused_by_what_they_claim(tmp_path: Path, extension: str) -> None:
    write_tar(tmp_path / "s" / "a.tar", [(f"a.{extension.rpartition('.')[2]}", claims(extension))])
    with pytest.raises(UserError, match=r"sample 'a': .*1,?000,?000,?000,?000 pixels"):
        write_index(tmp_path / "s")


@settings(max_examples=150)
@given(st.data())
def test_flipped_bytes_are_indexed_or_refused_but_are_no_surprise(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        tar = Path(name) / "a.tar"
        pixels = random_pixels((9, 8, 1), np.uint16)
        members = [(f"{extension}.{extension}", encode(pixels, f".{extension}")) for extension in ("npy", "png", "tif")]
        write_tar(tar, [*members, ("png.json", b'{"black": 0, "white": 65535}')])
        content = bytearray(tar.read_bytes())
        for place in data.draw(st.lists(st.integers(0, 5000), min_size=1, max_size=4)):
            content[place] = data.draw(st.integers(0, 255))
        tar.write_bytes(content)
        with contextlib.suppress(UserError):
            write_index(Path(name))
            index = Index([Path(name)])
            for number in range(len(index)):
                assert read_whole(index, number).ndim == 3
