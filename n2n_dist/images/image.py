"""Images with their value range, read from files and written to files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from n2n_dist.errors import UserError
from n2n_dist.images.axes import MAX_CHANNELS, whole
from n2n_dist.images.format import Range, StoredArray
from n2n_dist.images.frames import Frame, declared_range, full_range, open_frames
from n2n_dist.images.readers import READERS, create_file, find_suffix

PERCENTILES = (0, 1, 50, 99, 100)
SHOWN = 8
"""Frames whose percentiles are shown to somebody who has to choose a range."""


@dataclass
class Image:
    """An image and the values that stand for no light and full light."""

    pixels: np.ndarray
    """[H, W, C], uint8, uint16 or float32, 1 to 4 channels."""
    black: float
    """Value that means no light."""
    white: float
    """Value that means full light."""

    @classmethod
    def from_array(cls, array: np.ndarray, black: float | None = None, white: float | None = None) -> Image:
        """Wrap an array [H, W] or [H, W, C]; the range defaults to the type's (float: 0 to 1).

        Raises:
            UserError: another type, shape or number of channels, or white not above black.

        """
        pixels = array[..., None] if array.ndim == 2 else array
        if array.dtype not in (np.uint8, np.uint16, np.float32):
            raise UserError(f"an image of type {array.dtype}: convert it to uint8, uint16 or float32")
        if pixels.ndim != 3 or not 1 <= pixels.shape[2] <= MAX_CHANNELS or 0 in pixels.shape:
            raise UserError(f"an image of shape {array.shape}: give [H, W] or [H, W, C] with 1 to 4 channels")
        lowest, highest = full_range(array.dtype) or (0.0, 1.0)
        black = lowest if black is None else black
        white = highest if white is None else white
        if not (white > black and math.isfinite(white - black)):
            raise UserError(f"white level {white:g} is not above black level {black:g}")
        return cls(pixels, black, white)

    def normalised(self) -> np.ndarray:
        """Return float32 [H, W, C] with black at 0 and white at 1, not clipped."""
        return (self.pixels.astype(np.float32) - np.float32(self.black)) / np.float32(self.white - self.black)

    def with_normalised(self, values: np.ndarray) -> Image:
        """Return an image of the same type and range from float32 values [H, W, C] with white at 1.

        `values` are overwritten: large images should not be in memory twice.
        """
        values *= np.float32(self.white - self.black)
        values += np.float32(self.black)
        if limits := full_range(self.pixels.dtype):
            np.clip(np.rint(values, out=values), *limits, out=values)
        return Image(values.astype(self.pixels.dtype, copy=False), self.black, self.white)


def find_images(folder: Path) -> list[Path]:
    """List the images below `folder` in a fixed order, hidden ones left out: files, and folders that are an image.

    Raises:
        UserError: there is no such folder, or no image in it.

    """
    if folder.is_file():
        raise UserError(f"{folder}: is a file; give the folder that it is in")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    images, seen = [], set()
    for name, folders, names in os.walk(folder, followlinks=True):
        parent = Path(name)
        if parent.resolve() in seen:  # a link may lead back
            folders[:] = []
            continue
        seen.add(parent.resolve())
        images += [parent / inner for inner in [*folders, *names] if _is_image(parent / inner)]
        folders[:] = [inner for inner in folders if not inner.startswith(".") and not _is_image(parent / inner)]
    if not images:
        raise UserError(f"{folder}: no image in it; give a folder of {', '.join(READERS)} files")
    return sorted(images)


def _is_image(path: Path) -> bool:
    suffix = find_suffix(path)
    if path.name.startswith(".") or suffix not in READERS:
        return False
    return path.is_dir() if READERS[suffix].folder else path.is_file()


def read_frames(path: Path, black: float | None = None, white: float | None = None) -> list[Image]:
    """Read every frame of an image file; the range given goes over that of its type or metadata.

    Raises:
        UserError: the file cannot be read, is too large, holds an unsupported kind of image, or floating-point values
            whose range nobody gave.

    """
    with open_frames(path) as frames:
        try:
            black, white = find_range(frames, black, white)
            return [Image.from_array(frame.read(), black, white) for frame in frames]
        except UserError as refusal:
            raise UserError(f"{path}: {refusal}") from None


def find_range(frames: Sequence[Frame], black: float | None = None, white: float | None = None) -> Range:
    """Return the values that mean no light and full light in the frames of a file; those given go over its own.

    Raises:
        UserError: the file does not say and no white is given; names percentiles of its first frames.

    """
    known = declared_range(frames)
    if known is None and white is None:
        shown = [frame.read() for frame in frames[:SHOWN]]
        raise UserError(f"which value is white? Give --white (and --black); values are {_percentiles(shown)}")
    lowest, highest = known or (0.0, 1.0)
    return lowest if black is None else black, highest if white is None else white


def read_image(path: Path, black: float | None = None, white: float | None = None) -> Image:
    """Read a file of one frame.

    Raises:
        UserError: as for `read_frames`, or there are several.

    """
    frames = read_frames(path, black, white)
    if len(frames) != 1:
        raise UserError(f"{path}: holds {len(frames)} frames; save each as a file of its own")
    return frames[0]


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write [H, W, C] losslessly by the file's suffix."""
    write_frames(path, [pixels])


def write_frames(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Write one or several images [H, W, C] losslessly by the file's suffix; several are one array [N, H, W, C].

    Raises:
        UserError: the format cannot hold them, or the file cannot be written.

    """
    array = StoredArray.of(*((frames[0], "YXS") if len(frames) == 1 else (np.stack(frames), "IYXS")))
    with create_file(path, [array]) as file:
        file.write(0, whole(array.shape), array.read())


def _percentiles(frames: Sequence[np.ndarray]) -> str:
    values = np.concatenate([frame.ravel()[:: max(1, frame.size // 100_000)] for frame in frames])
    return ", ".join(
        f"{q}%: {value:g}" for q, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)
    )
