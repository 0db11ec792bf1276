"""Arrays of numpy: NPY, and NPZ archives of them."""

from __future__ import annotations

import functools
import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from n2n_dist.errors import UserError
from n2n_dist.images.axes import Region
from n2n_dist.images.contiguous import read_region, write_region
from n2n_dist.images.format import Format, StoredArray, WholeWriter, single


@dataclass(frozen=True)
class Header:
    """The beginning of an NPY file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    """Whether the first axis is the fastest."""
    offset: int
    """Where the values begin, in bytes."""


def read_header(file: Any) -> Header:
    """Read the header of an NPY file; believes no header that claims objects.

    Raises:
        ValueError: no NPY.

    """
    start = file.read(10)
    if start[6:7] not in (b"", b"\1"):
        start += file.read(2)
    return parse_header(start + file.read(int.from_bytes(start[8:], "little")))


@functools.lru_cache(maxsize=64)  # the tiles of a shard are of a few sizes, and numpy's parser is slow
def parse_header(start: bytes) -> Header:
    """Parse the bytes of an NPY file up to its values."""
    file = io.BytesIO(start)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded")
    return Header(shape, dtype, fortran, file.tell())


@functools.lru_cache(maxsize=64)  # as of `parse_header`
def format_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Return the bytes of an NPY file up to its values, which follow in C order."""
    buffer = io.BytesIO()
    layout = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, layout)
    return buffer.getvalue()


def open_npy(file: BinaryIO) -> list[StoredArray]:
    """Open an NPY file."""
    header = read_header(file)
    missing = header.offset + math.prod(header.shape) * header.dtype.itemsize - file.seek(0, 2)
    if missing > 0:
        raise UserError(
            f"damaged or not an image (claims shape {header.shape} and type {header.dtype}, {missing:,} bytes are "
            "missing)"
        )

    def load(region: Region) -> np.ndarray:
        if header.fortran:
            return read_region(file, header.offset, header.shape[::-1], header.dtype, region[::-1]).T
        return read_region(file, header.offset, header.shape, header.dtype, region)

    return [StoredArray(header.shape, header.dtype, load)]


def open_npz(file: BinaryIO) -> list[StoredArray]:
    """Open an archive; its members follow in the order of the archive."""
    archive = np.load(file, allow_pickle=False)
    arrays = []
    for info in archive.zip.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename:
            continue
        with archive.zip.open(info) as member:
            header = read_header(member)

        def load(_: Region, name: str = name) -> np.ndarray:
            return archive[name]

        metadata = {"npz": {"name": name, "compressed": info.compress_type != zipfile.ZIP_STORED}}
        arrays.append(StoredArray(header.shape, header.dtype, load, metadata=metadata, regions=False))
    return arrays


def create_npz(path: Path, like: Sequence[StoredArray]) -> WholeWriter:
    """Begin an archive with the names of the arrays given."""
    about = [array.metadata.get("npz", {}) for array in like]
    names = [each.get("name", f"arr_{number}") for number, each in enumerate(about)]
    save_npz = np.savez_compressed if any(each.get("compressed") for each in about) else np.savez

    def save(values: list[np.ndarray]) -> None:
        with path.open("wb") as file:  # numpy would add a suffix to a path
            save_npz(file, **dict(zip(names, values, strict=True)))

    return WholeWriter.of(like, save)


def create_npy(path: Path, like: Sequence[StoredArray]) -> NpyWriter:
    """Begin an NPY file."""
    return NpyWriter(path, single(like, "NPY"))


class NpyWriter:
    """An NPY file of which regions are written in place."""

    def __init__(self, path: Path, array: StoredArray) -> None:
        self._shape = array.shape
        header = format_header(array.shape, array.dtype)
        self._offset = len(header)
        self._file = path.open("wb")
        self._file.write(header)
        self._file.truncate(self._offset + math.prod(array.shape) * array.dtype.itemsize)

    def write(self, number: int, region: Region, values: np.ndarray) -> None:
        """Write a region."""
        write_region(self._file, self._offset, self._shape, region, values)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def abort(self) -> None:
        """Close the file."""
        self._file.close()


NPY = Format("NPY", (".npy",), open_npy, create_npy)
NPZ = Format("NPZ", (".npz",), open_npz, create_npz, metadata="names, compression")
