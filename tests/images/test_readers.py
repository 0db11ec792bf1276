"""What holds for every format, and the table of docs/files.md."""

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tifffile
from astropy.io import fits
from support.images import dicom, random_pixels
from support.processes import ROOT

from n2n_dist.errors import UserError
from n2n_dist.images.axes import Region, whole
from n2n_dist.images.format import Format, StoredArray
from n2n_dist.images.image import find_images, read_image, write_image
from n2n_dist.images.readers import READERS, create_file, find_suffix, format_names, open_file, output_name


def test_suffixes_are_found_whatever_their_case() -> None:
    assert find_suffix(Path("a/b.TIF")) == ".tif"
    assert find_suffix(Path("a/b.ome.tif")) == ".tif"
    assert find_suffix(Path("a/b.bmp")) == ".bmp"


def test_results_are_named_after_the_format_that_can_be_written() -> None:
    assert output_name(Path("a/b.JPG")) == Path("a/b.png")
    assert output_name(Path("a/b.tiff")) == Path("a/b.tiff")
    for suffix, reader in READERS.items():
        assert READERS[find_suffix(output_name(Path(f"a{suffix}")))].create is not None, reader.name


class Raw:
    """A format of somebody else: 8-bit rows of 16 pixels, read by rows."""

    @staticmethod
    def open(file: io.BufferedReader) -> list[StoredArray]:
        height = file.seek(0, 2) // 16

        def load(region: Region) -> np.ndarray:
            file.seek(16 * region[0].start)
            rows = np.frombuffer(file.read(16 * (region[0].stop - region[0].start)), np.uint8)
            return rows.reshape(-1, 16)[:, region[1]]

        return [StoredArray((height, 16), np.dtype(np.uint8), load, "YX", range=(0.0, 200.0))]


def test_a_format_of_the_users_own_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, ".raw8", Format("Raw", (".raw8",), Raw.open, written_as=".tif"))
    pixels = random_pixels((5, 16))
    (tmp_path / "a.raw8").write_bytes(pixels.tobytes())
    assert find_images(tmp_path) == [tmp_path / "a.raw8"]
    image = read_image(tmp_path / "a.raw8")
    np.testing.assert_array_equal(image.pixels[..., 0], pixels)
    assert image.white == 200
    assert output_name(tmp_path / "a.raw8") == tmp_path / "a.tif"
    assert "Raw" in format_names()


def test_a_folder_can_be_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_folder(path: Path) -> list[StoredArray]:
        return [StoredArray.of(np.load(path / "values.npy"), "YX")]

    monkeypatch.setitem(READERS, ".box", Format("Box", (".box",), open_folder, folder=True))
    pixels = random_pixels((5, 6))
    (tmp_path / "a.box").mkdir()
    np.save(tmp_path / "a.box" / "values.npy", pixels)
    assert find_images(tmp_path) == [tmp_path / "a.box"]
    np.testing.assert_array_equal(read_image(tmp_path / "a.box").pixels[..., 0], pixels)


def test_a_format_without_regions_is_decoded_once(tmp_path: Path) -> None:
    calls = []

    def load(region: Region) -> np.ndarray:
        calls.append(region)
        return np.arange(12).reshape(3, 4)

    array = StoredArray((3, 4), np.dtype(np.int64), load, regions=False)
    assert array.read((slice(1, 2), slice(0, 2))).tolist() == [[4, 5]]
    assert array.read((slice(2, 3), slice(3, 4))).tolist() == [[11]]
    assert calls == [whole((3, 4))]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tif", ".png"])
def test_a_file_that_is_not_completed_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    pixels = random_pixels((6, 5))

    def interrupted(path: Path) -> None:
        with create_file(path, [StoredArray.of(pixels, "YX")]) as file:
            file.write(0, whole(pixels.shape), pixels)
            assert not path.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.tif: cannot be written"):
        write_image(tmp_path / "file" / "a.tif", random_pixels((4, 4, 1)))


@pytest.mark.parametrize("suffix", [".jpg", ".dcm", ".bmp"])
def test_formats_that_are_not_written_are_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UserError, match=rf"a\{suffix}: cannot write"):
        write_image(tmp_path / f"a{suffix}", random_pixels((4, 4, 1)))


def test_opening_many_pixels_leaves_the_limit_of_pillow_alone() -> None:
    assert PIL.Image.MAX_IMAGE_PIXELS == 89478485  # its own default


def test_arrays_are_opened_without_being_decoded(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", random_pixels((9, 7, 3), np.uint16))
    with open_file(tmp_path / "a.png") as (array,):
        assert (array.shape, array.dtype, array.axes) == ((9, 7, 3), np.uint16, "YXS")
        assert dataclasses.replace(array, axes="YXC").known_axes == "YXC"


ROWS = re.findall(
    r"^\| ([A-Z.]+) \| (.*?) \| .*? \| (yes|no) \| (.*?) \| .*? \| (.*?) \| (.*?) \|$",
    (ROOT / "docs" / "files.md").read_text(),
    re.MULTILINE,
)


def test_the_table_of_the_documents_is_that_of_the_formats() -> None:
    formats = list(dict.fromkeys(READERS.values()))
    assert [row[0] for row in ROWS] == [reader.name for reader in formats]
    for (_, suffixes, _, written, _, metadata), reader in zip(ROWS, formats, strict=True):
        assert re.findall(r"`(.*?)`", suffixes) == list(reader.suffixes)
        assert re.findall(r"`(.*?)`", written) == ([reader.written_as] if reader.written_as else list(reader.suffixes))
        assert metadata == reader.metadata


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_table_says_which_formats_read_regions_and_name_axes(tmp_path: Path, row: tuple[str, ...]) -> None:
    pixels, path = random_pixels((8, 8)), tmp_path / f"a{row[1].split('`')[1]}"
    match row[0]:
        case "PNG" | "JPEG":
            PIL.Image.fromarray(pixels).save(path)
        case "TIFF":
            tifffile.imwrite(path, pixels)
        case "NPY":
            np.save(path, pixels)
        case "NPZ":
            np.savez(path, pixels)
        case "FITS.FZ":
            fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(pixels)]).writeto(path)
        case "FITS" | "FITS.GZ":
            fits.writeto(path, pixels)
        case "DICOM":
            path.write_bytes(dicom(pixels, 8))
    with open_file(path) as (array,):
        assert array.regions == (row[2] == "yes")
        assert array.axes is None if row[4] == "unknown" else "`YX`" in row[4] or row[4] == "those in the file"


def test_the_example_of_the_documents_is_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "files.md").read_text(), re.DOTALL)
    monkeypatch.setattr("n2n_dist.images.readers.READERS", READERS.copy())
    values: dict = {}
    exec(example, values)
    frames = random_pixels((2, 480, 640), np.uint16) % 4096
    (tmp_path / "a.raw").write_bytes(frames.astype("<u2").tobytes())
    with open_file(tmp_path / "a.raw") as (array,):
        region = (slice(1, 2), slice(3, 5), slice(0, 640))
        np.testing.assert_array_equal(array.read(region), frames[region])
