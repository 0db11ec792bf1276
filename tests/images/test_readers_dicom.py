from pathlib import Path

import numpy as np
import pytest
from support.images import dicom, random_pixels

from n2n_dist.images.readers import open_file


@pytest.mark.parametrize("compressed", [False, True])
def test_a_region_is_the_slice_of_the_whole(tmp_path: Path, compressed: bool) -> None:
    stored = random_pixels((5, 9, 8), np.uint16) % 4096
    (tmp_path / "a.dcm").write_bytes(dicom(stored, 12, compressed))
    with open_file(tmp_path / "a.dcm") as (array,):
        assert (array.shape, array.dtype, array.axes, array.range) == (stored.shape, np.uint16, "IYX", (0, 4095))
        region = (slice(1, 3), slice(2, 9), slice(0, 4))
        np.testing.assert_array_equal(array.read(region), stored[region])


def test_signed_values_keep_their_type(tmp_path: Path) -> None:
    stored = random_pixels((9, 8)).astype(np.int16) - 100
    (tmp_path / "a.dcm").write_bytes(dicom(stored, 12))
    with open_file(tmp_path / "a.dcm") as (array,):
        assert (array.dtype, array.range) == (np.int16, (-2048, 2047))
        np.testing.assert_array_equal(array.read(), stored)


def test_rescaled_values_are_floats(tmp_path: Path) -> None:
    stored = random_pixels((9, 8))
    (tmp_path / "a.dcm").write_bytes(dicom(stored, 8, RescaleSlope="0.5"))
    with open_file(tmp_path / "a.dcm") as (array,):
        assert array.dtype == array.read().dtype == np.float32
        np.testing.assert_array_equal(array.read(), stored * 0.5)


def test_32_bits_say_nothing_of_the_range(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(dicom(random_pixels((9, 8)).astype(np.uint32), 32))
    with open_file(tmp_path / "a.dcm") as (array,):
        assert (array.dtype, array.range) == (np.uint32, None)
