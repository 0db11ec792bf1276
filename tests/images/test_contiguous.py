import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.images import regions

from n2n_dist.errors import UserError
from n2n_dist.images.axes import whole
from n2n_dist.images.contiguous import read_region, write_region

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple)


@given(st.data())
def test_a_region_is_the_slice_of_the_whole(data: st.DataObject) -> None:
    array = np.arange(np.prod(shape := data.draw(SHAPES)), dtype=data.draw(st.sampled_from(["<u2", ">f4"]))).reshape(
        shape
    )
    region = data.draw(regions(shape))
    found = read_region(io.BytesIO(b"head" + array.tobytes()), 4, shape, array.dtype, region)
    np.testing.assert_array_equal(found, array[region])
    assert found.dtype == array.dtype


@given(st.data())
def test_writing_a_region_changes_nothing_else(data: st.DataObject) -> None:
    array = np.arange(np.prod(shape := data.draw(SHAPES)), dtype=np.uint16).reshape(shape)
    region, file = data.draw(regions(shape)), io.BytesIO(b"head" + array.tobytes())
    write_region(file, 4, shape, region, array[region] + 1000)
    array[region] += 1000
    assert file.getvalue() == b"head" + array.tobytes()


def test_only_the_bytes_of_the_region_are_read() -> None:
    class Counted(io.BytesIO):
        bytes = 0

        def readinto(self, buffer: memoryview) -> int:
            self.bytes += len(buffer)
            return super().readinto(buffer)

    file = Counted(bytes(100 * 100))
    read_region(file, 0, (10, 10, 100), np.dtype(np.uint8), (slice(2, 3), slice(4, 6), slice(0, 100)))
    assert file.bytes == 200


def test_missing_bytes_are_damage() -> None:
    with pytest.raises(UserError, match="1 bytes are missing"):
        read_region(io.BytesIO(bytes(15)), 0, (4, 4), np.dtype(np.uint8), whole((4, 4)))
