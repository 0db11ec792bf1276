"""File formats: arrays are opened without decoding, read by regions, and written by regions.

`n2n_dist.images.readers` holds the formats, one file each. A file holds one array or several: the series of a TIFF, the
extensions of a FITS file, the members of an archive.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from n2n_dist.errors import UserError
from n2n_dist.images.axes import Region, guess_axes, whole

Range = tuple[float, float]


@dataclass
class StoredArray:
    """An array in a file: what is known of it before its values are decoded."""

    shape: tuple[int, ...]
    dtype: np.dtype
    """Type and byte order of the values, as the file has them."""
    load: Callable[[Region], np.ndarray]
    """Decode a region; all of the array where `regions` is False."""
    axes: str | None = None
    """A letter for every axis, as `n2n_dist.images.axes` lists them; None: unknown."""
    range: Range | None = None
    """Values that mean no light and full light, if the file declares them."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Entries that a written format may keep: `icc` (bytes), `dpi` (pixels an inch, across and down), `exif` (bytes),
    and under the name of a format what only this one understands."""
    regions: bool = True
    """Whether a region is read without decoding the rest."""
    _decoded: np.ndarray | None = field(default=None, init=False, repr=False)

    @property
    def known_axes(self) -> str:
        """The axes, guessed from the shape where the file does not name them.

        Raises:
            UserError: a shape that fits no image.

        """
        return guess_axes(self.shape) if self.axes is None else self.axes

    def read(self, region: Region | None = None) -> np.ndarray:
        """Decode a region, one slice for every axis; default all.

        Raises:
            UserError: the bytes are damaged.

        """
        region = whole(self.shape) if region is None else region
        with damage_refused():
            if self.regions:
                return self.load(region)
            if self._decoded is None:
                self._decoded = self.load(whole(self.shape))
            return self._decoded[region]

    @classmethod
    def of(cls, values: np.ndarray, axes: str | None = None, **about: Any) -> StoredArray:
        """Wrap an array in memory, as the model for a file to be written."""
        return cls(values.shape, values.dtype, lambda region: values[region], axes, **about)


class Writer(Protocol):
    """A file that is being written; regions may come in any order, those that never come are zero."""

    def write(self, number: int, region: Region, values: np.ndarray) -> None:
        """Write a region of array `number`, values of its type."""

    def close(self) -> None:
        """Complete the file."""

    def abort(self) -> None:
        """Give up an incomplete file, which is removed after it."""


@dataclass(frozen=True)
class Format:
    """A file format: an entry of `READERS` under each of its suffixes."""

    name: str
    suffixes: tuple[str, ...]
    """In lower case with the dot."""
    open: Callable[[Any], list[StoredArray]]
    """Open a file, which stays open until its arrays are read, without decoding: BinaryIO, or the Path of a folder."""
    create: Callable[[Path, Sequence[StoredArray]], Writer] | None = None
    """Begin a file at a path with arrays of the shape, axes, type and metadata of those given; None: the format is not
    written. Raises UserError if it cannot hold them."""
    written_as: str | None = None
    """Suffix of the format that results are written as, where not its own."""
    metadata: str = "-"
    """The metadata that are read, and written again."""
    folder: bool = False
    """Whether a folder, not a file, is an image."""


@contextlib.contextmanager
def damage_refused() -> Iterator[None]:
    """Turn what the libraries raise for damaged bytes, each its own kinds of error, into a refusal."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"damaged or not an image ({type(error).__name__}: {' '.join(str(error).split())})") from None


def import_extra(module: str, package: str) -> Any:
    """Import a package that only some formats need.

    Raises:
        UserError: it is not installed.

    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"needs the package {package}: pip install 'n2n_dist[science]'") from None


def single(arrays: Sequence[StoredArray], name: str) -> StoredArray:
    """Return the one array of a format that holds one.

    Raises:
        UserError: there are several.

    """
    if len(arrays) != 1:
        raise UserError(f"{name} holds one array, not {len(arrays)}; use .tif")
    return arrays[0]


@dataclass
class WholeWriter:
    """A file that needs all values at once: its arrays are kept in memory until it is complete."""

    arrays: list[np.ndarray]
    save: Callable[[list[np.ndarray]], None]
    """Encode all arrays and write the file."""

    @classmethod
    def of(cls, like: Sequence[StoredArray], save: Callable[[list[np.ndarray]], None]) -> WholeWriter:
        """Begin arrays of the shapes and types given."""
        return cls([np.zeros(array.shape, array.dtype) for array in like], save)

    def write(self, number: int, region: Region, values: np.ndarray) -> None:
        """Keep a region."""
        self.arrays[number][region] = values

    def close(self) -> None:
        """Encode and write."""
        self.save(self.arrays)

    def abort(self) -> None:
        """Nothing is written yet."""
