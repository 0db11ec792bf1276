"""The images in a file, whatever its axes: [H, W, C], uint8, uint16 or float32, 1 to 4 channels.

The pages of a TIFF, the planes of a FITS cube, the frames of a DICOM file, the first axis of an array. What these types
cannot hold exactly is refused, but for double precision, which is rounded to float32.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from n2n_dist.errors import UserError
from n2n_dist.images.axes import (
    MAX_CHANNELS,
    Region,
    from_image,
    image_axes,
    image_regions,
    image_shape,
    to_image,
)
from n2n_dist.images.format import Range, StoredArray
from n2n_dist.images.readers import open_file

MAX_PIXELS = 1 << 29
"""Larger than any sensor or mosaic that fits into memory here; an image that claims more is refused."""
MAX_FILE_PIXELS = 1 << 32
"""Most pixels in all images of a file together."""
MAX_FRAMES = 1 << 20
"""Most images of a file."""
FLOAT32_INTEGERS = 1 << 24
"""float32 holds every integer up to this one."""

Size = tuple[int, int]


@dataclass
class Frame:
    """One image of an array in a file."""

    array: StoredArray
    number: int
    """Position of the array in the file."""
    region: Region
    """Where the image lies in the array."""
    axes: str
    """Axes of the array that are height, width and, if it has one, channels."""

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        return image_shape(self.array.known_axes, self.array.shape, self.axes)[:2]

    @property
    def channels(self) -> int:
        """How many channels the image has."""
        return image_shape(self.array.known_axes, self.array.shape, self.axes)[2]

    def read(self) -> np.ndarray:
        """Decode the image.

        Raises:
            UserError: damaged, or of a type or with values that are not supported.

        """
        return supported_pixels(to_image(self.array.read(self.region), self.array.known_axes, self.axes))

    def restored(self, pixels: np.ndarray) -> np.ndarray:
        """Bring pixels [H, W, C] to the axes and the type of the array, rounded and clipped where it is of integers."""
        return as_type(from_image(pixels, self.array.known_axes, self.axes), result_type(self.array.dtype))


@contextlib.contextmanager
def open_frames(path: Path, channels: bool = True) -> Iterator[list[Frame]]:
    """Open a file while the context lasts and list its images as `list_frames` does, without decoding.

    Raises:
        UserError: the file cannot be opened, or as of `list_frames`; names the file.

    """
    with open_file(path) as arrays:
        try:
            frames = list_frames(arrays, channels)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        yield frames


def list_frames(arrays: Sequence[StoredArray], channels: bool = True) -> list[Frame]:
    """List the images in the arrays of a file, without decoding.

    Args:
        arrays: those of the file.
        channels: False for an image of every channel (not of colour samples).

    Raises:
        UserError: none, too many or too large ones, several types, or axes that make no image.

    """
    if len({array.dtype.newbyteorder("=") for array in arrays}) > 1:  # such as an image and its mask
        found = (f"{array.metadata.get('name', '')} {array.dtype.name}".strip() for array in arrays)
        raise UserError(f"holds planes of several types ({', '.join(found)}); write those of the image to a new file")
    frames: list[Frame] = []
    pixels = 0
    for number, array in enumerate(arrays):
        axes = array.known_axes
        image = image_axes(axes, array.shape, channels)
        height, width, depth = image_shape(axes, array.shape, image)
        if not math.prod(array.shape):
            continue
        count = math.prod(array.shape) // (height * width * depth)
        pixels += count * height * width
        if height * width > MAX_PIXELS:
            raise UserError(f"claims {height * width:,} pixels, more than {MAX_PIXELS:,}; cut it into pieces")
        if pixels > MAX_FILE_PIXELS or len(frames) + count > MAX_FRAMES:
            raise UserError(
                f"claims {len(frames) + count:,} frames of {pixels:,} pixels in all; split it into several files"
            )
        frames += [Frame(array, number, region, image) for region in image_regions(axes, array.shape, image)]
    if not frames:
        raise UserError("holds no image")
    return frames


def declared_range(frames: Sequence[Frame]) -> Range | None:
    """Return the values that mean no light and full light: those the file declares, else those of its type."""
    declared, dtype = {frame.array.range for frame in frames}, frames[0].array.dtype
    return (declared.pop() if len(declared) == 1 else None) or type_range(dtype)


def type_range(dtype: np.dtype) -> Range | None:
    """Return the smallest and largest value of a type of up to 16 bit: no camera fills 32, and floats have no ends."""
    if dtype.kind == "b":
        return 0.0, 255.0
    return full_range(dtype) if dtype.itemsize <= 2 else None


def full_range(dtype: np.dtype) -> Range | None:
    """Return the smallest and largest value of an integer type; a float type has no range of its own."""
    return (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)) if np.issubdtype(dtype, np.integer) else None


def result_type(dtype: np.dtype) -> np.dtype:
    """Return the type in which the result of an array is written: its own, but grey for single bits."""
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype


def as_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert values to a type, clipped to what it holds, and rounded where it is of integers."""
    if values.dtype == dtype:
        return values
    if not np.issubdtype(dtype, np.integer):
        if np.can_cast(values.dtype, dtype):
            return values.astype(dtype)
        return np.clip(values, np.finfo(dtype).min, np.finfo(dtype).max).astype(dtype)
    ends = np.iinfo(dtype)
    if np.issubdtype(values.dtype, np.integer):
        return np.clip(values, ends.min, ends.max).astype(dtype)
    return np.clip(np.rint(values.astype(np.float64)), ends.min, ends.max).astype(dtype)


def supported_pixels(pixels: np.ndarray) -> np.ndarray:
    """Bring [H, W, C] to one of our types.

    Raises:
        UserError: values that none of them can hold, or that are not finite.

    """
    if not 1 <= pixels.shape[2] <= MAX_CHANNELS:
        raise UserError(f"an image of shape {pixels.shape}: give [H, W] or [H, W, C] with 1 to {MAX_CHANNELS} channels")
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype == bool:
        return np.where(pixels, np.uint8(255), np.uint8(0))
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    if np.issubdtype(pixels.dtype, np.integer) and (
        pixels.dtype.itemsize > 2 and max(abs(int(pixels.min())), abs(int(pixels.max()))) > FLOAT32_INTEGERS
    ):
        raise UserError(f"{pixels.dtype} values up to {pixels.max():,}, which float32 cannot hold exactly; scale them")
    if not np.issubdtype(pixels.dtype, np.integer) and not np.issubdtype(pixels.dtype, np.floating):
        raise UserError(f"an image of type {pixels.dtype}: convert it to uint8, uint16 or float32")
    with np.errstate(over="ignore"):
        pixels = pixels.astype(np.float32, copy=False)
    if broken := pixels.size - int(np.isfinite(pixels).sum()):
        raise UserError(f"{broken:,} of {pixels.size:,} values are NaN, infinite or beyond float32; replace them")
    return pixels
