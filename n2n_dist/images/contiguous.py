"""Regions of an array whose values lie one after another in a file, last axis fastest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from n2n_dist.errors import UserError
from n2n_dist.images.axes import Region, region_shape


def read_region(file: BinaryIO, offset: int, shape: Sequence[int], dtype: np.dtype, region: Region) -> np.ndarray:
    """Read a region of an array of `shape` that begins at byte `offset`; only its own bytes are read.

    Raises:
        UserError: the file ends before.

    """
    values = np.empty(region_shape(region, shape), dtype)
    for start, run in _runs(shape, region, values):
        file.seek(offset + start * dtype.itemsize)
        view = run.view(np.uint8).data
        while view:
            if not (count := file.readinto(view)):  # type: ignore[attr-defined]
                raise UserError(f"damaged or not an image ({len(view):,} bytes are missing)")
            view = view[count:]
    return values


def write_region(file: BinaryIO, offset: int, shape: Sequence[int], region: Region, values: np.ndarray) -> None:
    """Write a region of an array of `shape` that begins at byte `offset`; `values` have the type of the array."""
    for start, run in _runs(shape, region, np.ascontiguousarray(values)):
        file.seek(offset + start * values.itemsize)
        file.write(run.view(np.uint8).data)


def _runs(shape: Sequence[int], region: Region, values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Cut contiguous `values` of a region into the longest runs that lie together in the array, each with its start."""
    if not values.size:
        return
    bounds = [part.indices(length)[:2] for part, length in zip(region, shape, strict=True)]
    split = len(shape)  # axes from here on are whole, and the one before joins them
    while split > 0 and bounds[split - 1] == (0, shape[split - 1]):
        split -= 1
    outer = max(split - 1, 0)
    steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    inner = sum(bounds[axis][0] * steps[axis] for axis in range(outer, len(shape)))
    runs = values.reshape(math.prod(values.shape[:outer]), -1)
    indices = itertools.product(*(range(*bounds[axis]) for axis in range(outer)))
    for index, run in zip(indices, runs, strict=True):
        yield inner + sum(number * step for number, step in zip(index, steps, strict=False)), run
