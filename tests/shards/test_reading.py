from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.images import random_pixels
from support.tars import read_whole, write_tar

from n2n_dist.errors import UserError
from n2n_dist.images.codecs import encode
from n2n_dist.shards.index import Index
from n2n_dist.shards.indexing import write_index
from n2n_dist.shards.reading import read_pixels


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


def test_changed_member_is_refused_by_sample(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(2, encoding="png")
    index = Index([folder])
    tar, sample = index.sample(1)
    with tar.open("r+b") as file:
        file.seek(sample.captures[0].offset)
        file.write(b"damage")
    read_whole(index, 0)
    with pytest.raises(UserError, match=f"{tar}: sample {sample.key}"):
        read_whole(index, 1)


def test_values_that_are_not_finite_are_refused_where_they_are_read(tmp_path: Path) -> None:
    pixels = random_pixels((8, 8, 1), np.float32)
    pixels[6, 5] = np.nan
    write_tar(tmp_path / "s" / "a.tar", [("a.npy", encode(pixels, ".npy"))])
    write_index(tmp_path / "s", white=1.0)
    tar, sample = Index([tmp_path / "s"]).sample(0)
    read_pixels(tar, sample, sample.captures[0], (0, 0, 6, 8))
    with pytest.raises(UserError, match=f"{tar}: sample a: values that are not finite"):
        read_pixels(tar, sample, sample.captures[0], (2, 2, 6, 6))
