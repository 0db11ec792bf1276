"""The file formats, one module each; a new one is a module and an entry in `READERS`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from n2n_dist.errors import UserError
from n2n_dist.files import write_atomically
from n2n_dist.images.format import Format, StoredArray, Writer, damage_refused
from n2n_dist.images.readers.dicom import DICOM
from n2n_dist.images.readers.fits import FITS, FITS_FZ, FITS_GZ
from n2n_dist.images.readers.npy import NPY, NPZ
from n2n_dist.images.readers.pillow import JPEG, PNG
from n2n_dist.images.readers.tiff import TIFF

READERS: dict[str, Format] = {
    suffix: reader
    for reader in (PNG, JPEG, TIFF, NPY, NPZ, FITS, FITS_FZ, FITS_GZ, DICOM)
    for suffix in reader.suffixes
}
"""Formats by suffix. A module of the user's that adds an entry extends all programs."""


def find_suffix(path: Path) -> str:
    """Return the longest known suffix that the name of a file ends with, else its own."""
    name = path.name.lower()
    return max((suffix for suffix in READERS if name.endswith(suffix)), key=len, default=path.suffix.lower())


def output_name(path: Path) -> Path:
    """Return the name of a result: that of its source, with the suffix of the format that it is written as."""
    suffix = find_suffix(path)
    written_as = READERS[suffix].written_as if suffix in READERS else None
    return path if written_as is None else path.with_name(path.name[: -len(suffix)] + written_as)


def format_names() -> str:
    """List the formats for people."""
    return ", ".join(dict.fromkeys(reader.name for reader in READERS.values()))


def open_arrays(file: BinaryIO | Path, suffix: str) -> list[StoredArray]:
    """Open a file of the format that `suffix` names; it must stay open until its arrays are read.

    Raises:
        UserError: damaged, an unsupported kind of image, or a package is missing.

    """
    if suffix.lower() not in READERS:
        raise UserError(f"{suffix or 'no suffix'}: not a known format; known are {', '.join(READERS)}")
    with damage_refused():
        return READERS[suffix.lower()].open(file)


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[list[StoredArray]]:
    """Open a file, or a folder that is an image, while the context lasts.

    Raises:
        UserError: as of `open_arrays`, with the name of the file, or the file cannot be read.

    """
    suffix = find_suffix(path)
    with contextlib.ExitStack() as stack:
        try:
            is_folder = suffix in READERS and READERS[suffix].folder
            arrays = open_arrays(path if is_folder else stack.enter_context(path.open("rb")), suffix)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
        yield arrays


@contextlib.contextmanager
def create_file(path: Path, like: Sequence[StoredArray]) -> Iterator[Writer]:
    """Write a file with arrays of the shape, axes, type and metadata of those given.

    It has another name until the context ends, and is removed if it ends by an error.

    Raises:
        UserError: the format is not known, is not written or cannot hold them, or the file cannot be written.

    """
    suffix = find_suffix(path)
    create = READERS[suffix].create if suffix in READERS else None
    if create is None:
        written = ", ".join(suffix for suffix, reader in READERS.items() if reader.create)
        raise UserError(f"{path}: cannot write {suffix} without loss; use one of {written}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as temporary:
            writer = create(temporary, like)
            try:
                yield writer
                writer.close()
            except BaseException:
                writer.abort()
                raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from None
