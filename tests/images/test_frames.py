import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile
from astropy.io import fits
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from support.images import dicom, random_pixels

from n2n_dist.errors import UserError
from n2n_dist.images import frames
from n2n_dist.images.format import Range
from n2n_dist.images.frames import as_type, declared_range, list_frames, open_frames
from n2n_dist.images.readers import open_arrays


def opened(data: bytes, suffix: str) -> tuple[list[np.ndarray], Range | None]:
    """Read all frames, after their sizes were compared with what was known before decoding."""
    listed = list_frames(open_arrays(io.BytesIO(data), suffix))
    pixels = [frame.read() for frame in listed]
    assert [frame.size for frame in listed] == [frame.shape[:2] for frame in pixels]
    return pixels, declared_range(listed)


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def fits_file(*arrays: np.ndarray | None, compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    images = [(fits.CompImageHDU if compressed else fits.ImageHDU)(array) for array in arrays]
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "options",
    [{}, {"tile": (16, 16)}, {"compression": "lzw"}, {"compression": "zlib", "predictor": True}, {"bigtiff": True}],
    ids=str,
)
def test_tiff_of_every_layout(dtype: type, channels: int, options: dict) -> None:
    pixels = random_pixels((40, 33, channels), dtype)
    kind = {"photometric": "rgb" if channels > 2 else "minisblack", "planarconfig": "contig" if channels > 1 else None}
    (frame,), range_ = opened(tiff(pixels if channels > 1 else pixels[..., 0], **kind, **options), ".tif")
    assert frame.dtype == dtype
    np.testing.assert_array_equal(frame, pixels)
    assert range_ == {"uint8": (0, 255), "uint16": (0, 65535), "float32": None}[np.dtype(dtype).name]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_pages_of_a_tiff_are_frames(dtype: type) -> None:
    stack = random_pixels((5, 12, 9), dtype)
    for data in (
        tiff(stack, photometric="minisblack"),
        tiff(stack, imagej=True),
        tiff(stack, bigtiff=True, metadata=None),
    ):
        frames, _ = opened(data, ".tiff")
        np.testing.assert_array_equal(np.stack(frames)[..., 0], stack)


def test_axes_of_a_microscope_become_frames_and_channels() -> None:
    stack = random_pixels((2, 3, 2, 12, 9), np.uint16)  # times, slices, channels
    frames, _ = opened(tiff(stack, imagej=True, metadata={"axes": "TZCYX"}), ".tif")
    np.testing.assert_array_equal(np.stack(frames), np.moveaxis(stack, 2, -1).reshape(6, 12, 9, 2))
    frames, _ = opened(tiff(random_pixels((5, 12, 9)), imagej=True, metadata={"axes": "CYX"}), ".tif")
    assert [frame.shape for frame in frames] == [(12, 9, 1)] * 5  # more than four channels


def test_axes_that_say_nothing_become_frames() -> None:
    stack = random_pixels((2, 5, 12, 9), np.uint16)
    frames, _ = opened(tiff(stack, photometric="minisblack"), ".tif")
    np.testing.assert_array_equal(np.stack(frames)[..., 0], stack.reshape(10, 12, 9))


def test_a_file_of_a_set_gives_its_own_pages(tmp_path: Path) -> None:
    """Every file of a multi-file OME-TIFF names the planes of all."""
    planes = {"a": random_pixels((12, 9), np.uint16, 0), "b": random_pixels((12, 9), np.uint16, 1)}
    entries = "".join(
        f'<TiffData FirstT="{time}" IFD="0" PlaneCount="1"><UUID FileName="{name}.ome.tif">{name}</UUID></TiffData>'
        for time, name in enumerate(planes)
    )
    for name, pixels in planes.items():
        about = (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{name}">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="9" SizeY="12"'
            f' SizeC="1" SizeZ="1" SizeT="2"><Channel ID="Channel:0:0"/>{entries}</Pixels></Image></OME>'
        )
        data = tiff(pixels, description=about, metadata=None, photometric="minisblack")
        (tmp_path / f"{name}.ome.tif").write_bytes(data)
    for name, pixels in planes.items():
        assert tifffile.TiffFile(tmp_path / f"{name}.ome.tif").series[0].shape == (2, 12, 9)
        with open_frames(tmp_path / f"{name}.ome.tif") as (frame,):
            np.testing.assert_array_equal(frame.read()[..., 0], pixels)


def test_packed_bits_are_the_range() -> None:
    pixels = random_pixels((16, 16), np.uint16) % 4096
    (frame,), range_ = opened(tiff(pixels, bitspersample=12, photometric="minisblack"), ".tif")
    np.testing.assert_array_equal(frame[..., 0], pixels)
    assert range_ == (0, 4095)


def test_single_bits_of_a_tiff_become_black_and_white() -> None:
    (frame,), range_ = opened(tiff(np.array([[True, False]] * 8), photometric="minisblack"), ".tif")
    assert (frame[0].ravel().tolist(), range_) == ([255, 0], (0, 255))


def test_frames_of_an_archive_keep_its_order() -> None:
    arrays, buffer = [np.full((4, 6), n, np.uint8) for n in range(12)], io.BytesIO()
    np.savez(buffer, *arrays)
    frames, _ = opened(buffer.getvalue(), ".npz")
    assert [int(frame.max()) for frame in frames] == list(range(12))


@pytest.mark.parametrize("shape", [(1_000_000, 1, 5), (99_999_999, 5, 5)])
def test_frames_that_are_only_claimed_are_not_believed(shape: tuple[int, ...]) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with pytest.raises(UserError, match="bytes are missing"):
        open_arrays(io.BytesIO(buffer.getvalue()), ".npy")


def test_series_of_a_tiff_follow_each_other() -> None:
    buffer, images = io.BytesIO(), [random_pixels((9, 7)), random_pixels((5, 11))]
    with tifffile.TiffWriter(buffer) as writer:
        for pixels in images:
            writer.write(pixels, photometric="minisblack")
    frames, _ = opened(buffer.getvalue(), ".tif")
    for frame, pixels in zip(frames, images, strict=True):
        np.testing.assert_array_equal(frame[..., 0], pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(("shape", "count"), [((9, 7), 1), ((9, 7, 3), 1), ((3, 9, 7), 3), ((3, 9, 7, 4), 3)])
def test_arrays_are_one_image_or_many(dtype: type, shape: tuple[int, ...], count: int) -> None:
    array = random_pixels(shape, dtype)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, b=array, a=array[::-1])
    single, range_ = opened(npy(array), ".npy")
    several, _ = opened(buffer.getvalue(), ".npz")
    assert len(single) == count
    np.testing.assert_array_equal(np.stack(single).ravel(), array.ravel())
    np.testing.assert_array_equal(np.stack(several[:count]).ravel(), array.ravel())  # in the order of the archive
    np.testing.assert_array_equal(np.stack(several[count:]).ravel(), array[::-1].ravel())
    assert (range_ is None) == (dtype == np.float32)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_images_and_cubes_of_fits_are_frames(dtype: type) -> None:
    image, cube = random_pixels((9, 7), dtype), random_pixels((4, 9, 7), dtype)
    frames, range_ = opened(fits_file(image, None, cube), ".fits")
    np.testing.assert_array_equal(np.stack(frames)[..., 0], np.concatenate([image[None], cube]))
    assert {frame.dtype for frame in frames} == {np.dtype(dtype)}
    assert all(frame.dtype.isnative for frame in frames)
    assert (range_ is None) == (dtype == np.float32)


def test_planes_of_several_types_in_a_fits_are_named() -> None:
    science, mask = np.zeros((4, 5), np.float32), np.zeros((4, 5), np.int16)
    buffer = io.BytesIO()
    planes = [fits.ImageHDU(science, name="SCI"), fits.ImageHDU(mask, name="DQ")]
    fits.HDUList([fits.PrimaryHDU(), *planes]).writeto(buffer)
    with pytest.raises(UserError, match=r"several types \(SCI float32, DQ int16\); write"):
        opened(buffer.getvalue(), ".fits")


def test_compressed_fits() -> None:
    image = random_pixels((32, 32), np.uint16) // 256
    (frame,), _ = opened(fits_file(image, compressed=True), ".fits")
    np.testing.assert_array_equal(frame[..., 0], image)


@pytest.mark.parametrize("compressed", [False, True])
def test_dicom_keeps_its_stored_values_and_range(compressed: bool) -> None:
    stored = random_pixels((9, 7), np.uint16) % 4096
    (frame,), range_ = opened(dicom(stored, 12, compressed), ".dcm")
    assert frame.dtype == np.uint16
    np.testing.assert_array_equal(frame[..., 0], stored)
    assert range_ == (0, 4095)


def test_dicom_with_a_rescale_is_in_its_units() -> None:
    stored = random_pixels((3, 9, 8), np.uint16).astype(np.int32).astype(np.int16) // 16
    frames, range_ = opened(dicom(stored, 12, RescaleSlope="2", RescaleIntercept="-1024"), ".dcm")
    np.testing.assert_array_equal(np.stack(frames)[..., 0], stored * 2.0 - 1024)
    assert range_ == (-2048 * 2 - 1024, 2047 * 2 - 1024)


@pytest.mark.parametrize(
    ("tags", "slope", "intercept"), [({"RescaleSlope": "2"}, 2, 0), ({"RescaleIntercept": "-5"}, 1, -5)]
)
def test_half_a_rescale_is_followed(tags: dict[str, str], slope: int, intercept: int) -> None:
    stored = random_pixels((9, 8))
    (frame,), range_ = opened(dicom(stored, 8, **tags), ".dcm")
    np.testing.assert_array_equal(frame[..., 0], stored * float(slope) + intercept)
    assert range_ == (intercept, 255 * slope + intercept)


def test_every_frame_of_a_dicom_may_have_its_own_rescale() -> None:
    def group(slope: int) -> Dataset:
        transformation, frame = Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, 1
        frame.PixelValueTransformationSequence = Sequence([transformation])
        return frame

    stored = random_pixels((2, 8, 8))
    groups = Sequence([group(1), group(3)])
    frames, range_ = opened(dicom(stored, 8, PerFrameFunctionalGroupsSequence=groups), ".dcm")
    np.testing.assert_array_equal(np.stack(frames)[..., 0], stored * np.array([1.0, 3.0])[:, None, None] + 1)
    assert range_ == (1, 255 * 3 + 1)


def test_colour_dicom() -> None:
    stored = random_pixels((8, 6, 3))
    (frame,), range_ = opened(dicom(stored, 8), ".dcm")
    np.testing.assert_array_equal(frame, stored)
    assert range_ == (0, 255)
    with pytest.raises(UserError, match="PALETTE"):
        opened(dicom(stored[..., 0], 8, PhotometricInterpretation="PALETTE COLOR"), ".dcm")


@pytest.mark.parametrize(
    ("array", "expected", "range_"),
    [
        (np.array([[-3, 4]], np.int8), np.float32, (-128, 127)),
        (np.array([[-3, 4]], np.int16), np.float32, (-32768, 32767)),
        (np.array([[-3, 1 << 24]], np.int32), np.float32, None),
        (np.array([[0, 7]], np.uint64), np.float32, None),
        (np.array([[0.5, 7]], np.float16), np.float32, None),
        (np.array([[0.1, 7]], np.float64), np.float32, None),
        (np.array([[1, 7]], ">u2"), np.uint16, (0, 65535)),
    ],
    ids=lambda value: str(getattr(value, "dtype", "")),
)
def test_other_types_are_kept_where_float32_can(array: np.ndarray, expected: type, range_: Range | None) -> None:
    (frame,), found = opened(npy(array), ".npy")
    assert frame.dtype == expected
    np.testing.assert_allclose(frame[..., 0], array, rtol=1e-7)
    assert found == range_


def test_bits_become_black_and_white() -> None:
    (frame,), range_ = opened(npy(np.array([[True, False]])), ".npy")
    assert (frame.ravel().tolist(), range_) == ([255, 0], (0, 255))


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.array([[0, (1 << 24) + 1]], np.int32), "float32 cannot hold"),
        (np.array([[0, -(1 << 40)]], np.int64), "float32 cannot hold"),
        (np.array([[0, np.nan]], np.float32), "1 of 2 values are NaN"),
        (np.array([[0, 1e300]]), "1 of 2 values are NaN, infinite or beyond"),
        (np.array([[1j]]), "complex128"),
        (np.zeros(5), "shape"),
        (np.zeros((2, 3, 4, 5)), "shape"),
        (np.zeros((0, 4)), "no image"),
        (np.array([[None]]), "damaged"),
    ],
)
def test_what_cannot_be_kept_is_refused(array: np.ndarray, why: str) -> None:
    with pytest.raises(UserError, match=why):
        opened(npy(array), ".npy")


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {
    ".png": png(random_pixels((32, 32, 3))),
    ".tif": tiff(random_pixels((4, 32, 32)), photometric="minisblack"),
    ".npy": npy(random_pixels((4, 32, 32))),
    ".fits": fits_file(random_pixels((4, 32, 32))),
    ".dcm": dicom(random_pixels((4, 32, 32)), 8),
}


@pytest.mark.parametrize("suffix", FILES)
@pytest.mark.parametrize("damage", ["empty", "half", "text"])
def test_damaged_files_are_refused(suffix: str, damage: str) -> None:
    data = {"empty": b"", "half": FILES[suffix][: len(FILES[suffix]) // 2], "text": b"not an image" * 10}[damage]
    with pytest.raises(UserError):
        opened(data, suffix)


@pytest.mark.parametrize("suffix", FILES)
def test_bombs_are_refused_before_they_are_decoded(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MAX_PIXELS", "MAX_FILE_PIXELS"):
        with monkeypatch.context() as patch:
            patch.setattr(frames, limit, 1000)
            with pytest.raises(UserError, match="claims"):
                list_frames(open_arrays(io.BytesIO(FILES[suffix]), suffix))


def test_array_that_claims_to_be_huge_is_refused() -> None:
    header = npy(np.zeros((4, 4), np.uint8)).replace(b"(4, 4), }      ", b"(99999, 99999)}")
    assert b"99999" in header
    with pytest.raises(UserError, match="bytes are missing"):
        open_arrays(io.BytesIO(header), ".npy")


def test_unknown_suffix_and_missing_package_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"\.bmp: not a known format; known are \.png"):
        open_arrays(io.BytesIO(), ".bmp")
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(UserError, match=r"pip install 'n2n_dist\[science\]'"):
        open_arrays(io.BytesIO(FILES[".dcm"]), ".dcm")


def test_path_is_not_needed(tmp_path: Path) -> None:
    (tmp_path / "a.fits").write_bytes(FILES[".fits"])
    with (tmp_path / "a.fits").open("rb") as file:
        assert open_arrays(file, ".FITS")[0].read().shape == (4, 32, 32)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.uint8, [0, 1, 255]),
        (np.int16, [-3, 1, 32767]),
        (np.int32, [-3, 1, 100_000]),
        (np.float16, [-3, 0.6, 65504]),
        (np.float64, [-3, 0.6, 100_000]),
        (">u2", [0, 1, 65535]),
    ],
)
def test_results_are_clipped_to_the_type_of_their_source(dtype: type, expected: list[float]) -> None:
    found = as_type(np.array([-3, 0.6, 100_000], np.float32), np.dtype(dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_channels_can_be_images_of_their_own() -> None:
    stack = random_pixels((3, 12, 9), np.uint16)
    arrays = open_arrays(io.BytesIO(tiff(stack, imagej=True, metadata={"axes": "CYX"})), ".tif")
    assert [frame.channels for frame in list_frames(arrays)] == [3]
    frames = list_frames(arrays, channels=False)
    np.testing.assert_array_equal(np.stack([frame.read()[..., 0] for frame in frames]), stack)
