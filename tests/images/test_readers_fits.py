from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.images import random_pixels, regions

from n2n_dist.images.readers import open_file

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
