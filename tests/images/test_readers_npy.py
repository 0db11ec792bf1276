from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from support.images import random_pixels, regions

from n2n_dist.errors import UserError
from n2n_dist.images.format import StoredArray
from n2n_dist.images.readers import create_file, open_file

TYPES = ["u1", "<u2", ">u2", "<i2", ">f4", "<f8", "?"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_what_is_written_by_regions_is_read_by_regions(data: st.DataObject, tmp_path: Path) -> None:
    shape = data.draw(array_shapes(max_dims=5, max_side=6))
    dtype = np.dtype(data.draw(st.sampled_from(TYPES)))
    expected = np.zeros(shape, dtype)
    with create_file(tmp_path / "a.npy", [StoredArray.of(expected)]) as file:
        for _ in range(3):
            region = data.draw(regions(shape))
            values = random_pixels(expected[region].shape).astype(dtype)
            expected[region] = values
            file.write(0, region, values)
    region = data.draw(regions(shape))
    with open_file(tmp_path / "a.npy") as (array,):
        assert (array.shape, array.dtype, array.axes, array.regions) == (shape, dtype, None, True)
        np.testing.assert_array_equal(array.read(region), expected[region])
    found = np.load(tmp_path / "a.npy")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


def test_fortran_order_is_read_by_regions(tmp_path: Path) -> None:
    expected = np.asfortranarray(random_pixels((4, 5, 6), np.uint16))
    np.save(tmp_path / "a.npy", expected)
    region = (slice(1, 3), slice(0, 5), slice(2, 4))
    with open_file(tmp_path / "a.npy") as (array,):
        np.testing.assert_array_equal(array.read(region), expected[region])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_keeps_its_names(tmp_path: Path, save: type) -> None:
    arrays = {"second": random_pixels((4, 5)), "first": random_pixels((3, 4, 5))}
    save(tmp_path / "a.npz", **arrays)
    with open_file(tmp_path / "a.npz") as stored, create_file(tmp_path / "b.npz", stored) as file:
        for number, array in enumerate(stored):
            file.write(number, tuple(slice(0, n) for n in array.shape), array.read())
    found = np.load(tmp_path / "b.npz")
    assert found.files == list(arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)
    assert abs((tmp_path / "a.npz").stat().st_size - (tmp_path / "b.npz").stat().st_size) < 20


def test_two_arrays_do_not_fit_into_an_npy(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="NPY holds one array, not 2"),
        create_file(tmp_path / "a.npy", [StoredArray.of(random_pixels((4, 5)))] * 2),
    ):
        pass
