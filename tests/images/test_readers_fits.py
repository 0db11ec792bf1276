from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.images import random_pixels, regions

from n2n_dist.errors import UserError
from n2n_dist.images.axes import whole
from n2n_dist.images.format import StoredArray
from n2n_dist.images.frames import open_frames
from n2n_dist.images.readers import create_file, open_file, output_name

TYPES = [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=10)
@given(data=st.data())
def test_a_region_is_the_slice_of_the_whole(data: st.DataObject, dtype: type, compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    if not path.exists():
        hdu = (fits.CompImageHDU if compressed else fits.ImageHDU)(random_pixels((3, 20, 30)).astype(dtype))
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    expected = fits.getdata(path, 1)
    region = data.draw(regions(expected.shape))
    with open_file(path) as (array,):
        assert (array.shape, array.dtype, array.axes, array.regions) == (expected.shape, dtype, "IYX", True)
        found = array.read(region)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected[region])


@pytest.mark.parametrize(("bits", "dtype"), [("uint8", np.float32), ("int16", np.float32), ("int32", np.float64)])
def test_scaled_values_are_floats(tmp_path: Path, bits: str, dtype: type) -> None:
    hdu = fits.PrimaryHDU(random_pixels((20, 30)).astype(np.float32))
    hdu.scale(bits, bscale=0.5, bzero=3)
    hdu.writeto(tmp_path / "a.fits")
    expected = fits.getdata(tmp_path / "a.fits")
    with open_file(tmp_path / "a.fits") as (array,):
        assert array.dtype == dtype
        np.testing.assert_array_equal(array.read(), expected)


def test_tables_are_passed_over(tmp_path: Path) -> None:
    table = fits.BinTableHDU.from_columns([fits.Column("a", "E", array=np.zeros(3))])
    image = fits.ImageHDU(random_pixels((4, 5)), name="SCI")
    fits.HDUList([fits.PrimaryHDU(), table, image]).writeto(tmp_path / "a.fits")
    with open_file(tmp_path / "a.fits") as (array,):
        assert (array.shape, array.metadata["name"]) == ((4, 5), "SCI")


def copied(source: Path, destination: Path) -> fits.HDUList:
    """Write what is read, and open it."""
    with open_file(source) as arrays, create_file(destination, arrays) as file:
        for number, array in enumerate(arrays):
            file.write(number, whole(array.shape), array.read())
    return fits.open(destination)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_headers_tables_and_types_are_kept(tmp_path: Path, dtype: type, compressed: bool) -> None:
    values = random_pixels((3, 20, 30)).astype(dtype)
    table = fits.BinTableHDU.from_columns([fits.Column("a", "E", array=np.arange(3))])
    image = (fits.CompImageHDU if compressed else fits.ImageHDU)(values, name="SCI")
    image.header["EXPTIME"] = (30.0, "seconds")
    primary = fits.PrimaryHDU()
    primary.header["OBJECT"] = "M 31"
    fits.HDUList([primary, table, image]).writeto(tmp_path / "a.fits")
    with copied(tmp_path / "a.fits", tmp_path / "b.fits") as found:
        assert found[0].header["OBJECT"] == "M 31"
        assert found[1].data["a"].tolist() == [0, 1, 2]
        assert isinstance(found[2], fits.CompImageHDU) == compressed
        assert (found[2].name, found[2].header["EXPTIME"]) == ("SCI", 30.0)
        assert found[2].data.dtype.newbyteorder("=") == dtype
        np.testing.assert_array_equal(found[2].data, fits.getdata(tmp_path / "a.fits", 2))


@pytest.mark.parametrize("suffix", [".fits.gz", ".fits.fz"])
def test_packed_files_are_read(tmp_path: Path, suffix: str) -> None:
    pixels = random_pixels((20, 30), np.uint16) // 256
    images = [fits.PrimaryHDU(), fits.CompImageHDU(pixels)] if suffix == ".fits.fz" else [fits.PrimaryHDU(pixels)]
    fits.HDUList(images).writeto(tmp_path / f"a{suffix}")
    with open_file(tmp_path / f"a{suffix}") as (array,):
        np.testing.assert_array_equal(array.read(), pixels)
    output = output_name(tmp_path / f"a{suffix}")
    assert output.name == ("a.fits.fz" if suffix == ".fits.fz" else "a.fits")


def test_planes_of_a_colour_cube_are_one_image(tmp_path: Path) -> None:
    header = fits.Header()
    header["CTYPE3"] = "RGB"
    planes = random_pixels((3, 20, 30))
    fits.PrimaryHDU(planes, header).writeto(tmp_path / "a.fits")
    with open_frames(tmp_path / "a.fits") as (frame,):
        np.testing.assert_array_equal(frame.read(), np.moveaxis(planes, 0, -1))
    with copied(tmp_path / "a.fits", tmp_path / "b.fits") as found:
        np.testing.assert_array_equal(found[0].data, planes)


@pytest.mark.parametrize(("array", "axes"), [(np.zeros((4, 5), np.float16), "YX"), (np.zeros((4, 5, 3)), "YXS")])
def test_what_fits_cannot_hold_is_refused(tmp_path: Path, array: np.ndarray, axes: str) -> None:
    with (
        pytest.raises(UserError, match=r"float16|planes"),
        create_file(tmp_path / "a.fits", [StoredArray.of(array, axes)]),
    ):
        pass


def test_arrays_of_other_formats_become_fits(tmp_path: Path) -> None:
    pixels = random_pixels((4, 5), np.uint16)
    with create_file(tmp_path / "a.fits", [StoredArray.of(pixels, "YX")]) as file:
        file.write(0, whole(pixels.shape), pixels)
    with open_file(tmp_path / "a.fits") as (array,):
        np.testing.assert_array_equal(array.read(), pixels)
