"""Axes of arrays by name, one letter each, in the order of the array.

T time, Z depth, C channel, Y height, X width, S colour sample; I (pages, frames) and Q (anything) say nothing more. An
image is [H, W, C]; its channels are the colour samples of an array, else its channels if there are few enough. Every
other axis counts images.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from n2n_dist.errors import UserError

MAX_CHANNELS = 4

Region = tuple[slice, ...]
"""A box of an array: one slice of step 1 for every axis."""


def whole(shape: Sequence[int]) -> Region:
    """Return the region that is all of an array."""
    return tuple(slice(0, length) for length in shape)


def region_shape(region: Region, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a region of an array of `shape`."""
    return tuple(len(range(*part.indices(length))) for part, length in zip(region, shape, strict=True))


def guess_axes(shape: Sequence[int]) -> str:
    """Name the axes of an array that does not: [H, W], [H, W, C] with up to 4 channels, [N, H, W] or [N, H, W, C].

    Raises:
        UserError: none of these.

    """
    last_is_channels = bool(shape) and shape[-1] <= MAX_CHANNELS
    match len(shape):
        case 2:
            return "YX"
        case 3:
            return "YXS" if last_is_channels else "IYX"
        case 4 if last_is_channels:
            return "IYXS"
    raise UserError(
        f"an array of shape {tuple(shape)}: give [H, W], [H, W, C], [N, H, W] or [N, H, W, C] with 1 to 4 channels"
    )


def image_axes(axes: str, shape: Sequence[int], channels: bool = True) -> str:
    """Return the axes of one image in the order height, width and, if it has one, channels.

    Args:
        axes: those of the array.
        shape: that of the array.
        channels: False for an image of every channel.

    """
    if "S" in axes:
        return "YXS"
    return "YXC" if channels and "C" in axes and shape[axes.index("C")] <= MAX_CHANNELS else "YX"


def image_shape(axes: str, shape: Sequence[int], image: str) -> tuple[int, int, int]:
    """Return height, width and channels of the images; an axis that the array lacks has length 1."""
    height, width, channels = (shape[axes.index(axis)] if axis in axes else 1 for axis in f"{image:C<3}")
    return height, width, channels if len(image) == 3 else 1


def image_regions(axes: str, shape: Sequence[int], image: str) -> Iterator[Region]:
    """List the region of every image of an array in the order of the array."""
    for index in itertools.product(
        *(range(1 if axis in image else length) for axis, length in zip(axes, shape, strict=True))
    ):
        yield tuple(
            slice(0, length) if axis in image else slice(number, number + 1)
            for axis, length, number in zip(axes, shape, index, strict=True)
        )


def to_image(values: np.ndarray, axes: str, image: str) -> np.ndarray:
    """Bring the region of one image, in the axes of its array, to [H, W, C]."""
    present = [axes.index(axis) for axis in image if axis in axes]
    shape = image_shape(axes, values.shape, image)
    return np.moveaxis(values, present, range(-len(present), 0)).reshape(shape)


def from_image(pixels: np.ndarray, axes: str, image: str) -> np.ndarray:
    """Bring [H, W, C] to the axes of an array; the opposite of `to_image`."""
    present = [axes.index(axis) for axis in image if axis in axes]
    lengths = [length for axis, length in zip(image, pixels.shape, strict=False) if axis in axes]
    last = pixels.reshape(*[1] * (len(axes) - len(present)), *lengths)
    return np.moveaxis(last, range(-len(present), 0), present)
