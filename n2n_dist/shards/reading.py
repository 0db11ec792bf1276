"""Members of tars: which samples there are, and windows of their images, read at any offset.

A process keeps the last shards that it read from open, and of each the offset of every sample's record: 8 bytes
a sample, so that memory does not grow with the data set and hardly with the size of a shard.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from n2n_dist.commands import command
from n2n_dist.errors import UserError
from n2n_dist.images.codecs import decode
from n2n_dist.images.image import Image
from n2n_dist.shards.cache import File, SourceUnavailableError

MEMBERS = ".index.json"
SHARDS_OPEN = 128
"""Shards that a process keeps open: twice the streams of a batch, which pass from one shard to the next."""
TRUSTED = 1.0
"""Seconds for which an open file is taken for the one of its name: asking for every read costs a tenth of a decode."""


@dataclass
class Member:
    """Where the bytes of one image lie in a tar."""

    extension: str
    offset: int
    size: int


@dataclass
class Sample:
    """One sample of a shard: its images are all of the same shape, type and range."""

    key: str
    captures: list[Member]
    clean: Member | None
    shape: tuple[int, int, int]
    """Height, width and channels."""
    dtype: str
    black: float
    white: float


def read_window(tar: File, sample: Sample, member: Member, window: tuple[int, int, int, int]) -> np.ndarray:
    """Read one window of a member as it is stored, [height, width, C].

    Of an uncompressed member (`.npy`) only the rows of the window are read.

    Args:
        tar: the shard.
        sample: the sample that the member belongs to.
        member: a capture of it, or its clean reference.
        window: top, left, height and width.

    Raises:
        UserError: the bytes are not those that were indexed, or a value is not finite.
        SourceUnavailableError: the tar cannot be fetched.

    """
    top, left, height, width = window
    dtype = np.dtype(sample.dtype)
    try:
        if member.extension == "npy":
            row = sample.shape[1] * sample.shape[2] * dtype.itemsize
            data_offset = member.offset + member.size - sample.shape[0] * row
            data = _read_at(tar, height * row, data_offset + top * row)
            rows = np.frombuffer(data, dtype).reshape(height, *sample.shape[1:])
        else:
            pixels = decode(_read_at(tar, member.size, member.offset), f".{member.extension}")
            rows = pixels.reshape(sample.shape)[top : top + height]
        pixels = rows[:, left : left + width]
        if dtype.kind == "f" and not np.isfinite(pixels).all():
            raise ValueError("values that are not finite")
    except SourceUnavailableError:
        raise
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{tar}: sample {sample.key}: {error}") from None
    return pixels


def read_pixels(tar: File, sample: Sample, member: Member, window: tuple[int, int, int, int]) -> np.ndarray:
    """Read one window of a member as float32 [height, width, C], black at 0 and white at 1, not clipped.

    Arguments and refusals are those of `read_window`.
    """
    return Image(read_window(tar, sample, member, window), sample.black, sample.white).normalised()


def reindex(folder: Path | str) -> str:
    """Say how to get an index that fits."""
    if isinstance(folder, Path):
        return f"index anew with: {command('index', folder)}"
    return f"index the shards anew where they were built ({command('index', 'FOLDER')}) and copy them there again"


Identity = tuple[int, int]
"""Device and inode of a file; what is changed in place stays the same file, and harms the changed samples alone."""


class _OpenFile:
    """A file that stays open, read at any offset, by any process that inherits it."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._open()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    @property
    def identity(self) -> Identity:
        """Which file is read; asks for it by name where that was long ago."""
        if time.monotonic() > self._trusted:
            self.check()
        return self._identity

    def check(self) -> None:
        """Open the file anew if another one has its name: shards may be built again."""
        if _identity(os.stat(self._path)) != self._identity:
            before = self._descriptor
            self._open()
            os.close(before)
        self._trusted = time.monotonic() + TRUSTED

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDONLY)
        self._identity = _identity(os.fstat(self._descriptor))
        self._trusted = time.monotonic() + TRUSTED


def _identity(about: os.stat_result) -> Identity:
    return about.st_dev, about.st_ino


def _read_at(file: File, size: int, offset: int) -> bytes:
    if isinstance(file, Path):
        return _open(file).read(size, offset)
    with file.open("rb") as cached:  # not kept open: the cache counts uses, and the room of what it removed
        cached.seek(offset)
        return cached.read(size)


class Records:
    """The list of members of one shard: the offset of each sample's record."""

    def __init__(self, tar: File, members: File, sha256: str) -> None:
        self._tar = tar
        self._members = members
        self._sha256 = sha256
        self._local = [path for path in (tar, members) if isinstance(path, Path)]
        for path in self._local:
            with contextlib.suppress(OSError):  # which is said below
                _open(path).check()
        self._scan()

    def sample(self, number: int) -> Sample:
        """Return the description of a sample by its number in the tar.

        Raises:
            UserError: it is not one, or the indexed tar was replaced by another one.
            SourceUnavailableError: the list cannot be fetched.

        """
        try:
            replaced = self._identities() != self._known
        except OSError as error:
            raise self._refusal(error) from None
        if replaced:
            self._scan()
        return self._read(number)

    def _scan(self) -> None:
        """Look at the list, and whether the tar is the one that it describes."""
        try:
            known = self._identities()
            with self._members.open("rb") as file:
                text = file.read()
            if hashlib.sha256(text).hexdigest() != self._sha256:
                raise ValueError("is not the one that the index names")
            self._ends = _scan_records(text)
        except SourceUnavailableError:
            raise
        except (OSError, ValueError) as error:
            raise self._refusal(error) from None
        _check_members(self._tar, [self._read(0), self._read(len(self._ends) - 2)])
        self._known = known

    def _read(self, number: int) -> Sample:
        start, end = self._ends[number : number + 2].tolist()
        try:
            text = _read_at(self._members, end - start - 1, start + 1).decode()
            record, length = _decode_one(text)
            if length != len(text):
                raise ValueError("was changed in place")
            record["captures"] = [Member(**member) for member in record["captures"]]
            record["clean"] = record["clean"] and Member(**record["clean"])
            record["shape"] = tuple(record["shape"])
            return Sample(**record)
        except SourceUnavailableError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._refusal(error) from None

    def _identities(self) -> list[Identity]:
        return [_open(path).identity for path in self._local]

    def _refusal(self, error: Exception) -> UserError:
        return UserError(f"{self._members}: cannot be read ({error}); {_repair(self._tar)}")


def _scan_records(data: bytes) -> np.ndarray:
    """Return where the elements of a JSON list end, int64 [elements + 1], the first entry that of its bracket.

    Between two ends are a separator of one character and an element.
    """
    text = data.decode("latin-1")  # one character a byte
    end, ends = 0, [0]
    while text[end : end + 1] in ("[", ","):
        _, end = _decode_one(text, end + 1)
        ends.append(end)
    if text[end:].rstrip() != "]":
        raise ValueError(f"not a list of records at byte {end}")
    return np.array(ends)


_decode_one = json.JSONDecoder().raw_decode
_open = functools.lru_cache(maxsize=2 * SHARDS_OPEN)(_OpenFile)  # a shard's tar and its list
records = functools.lru_cache(maxsize=SHARDS_OPEN)(Records)


def _repair(tar: File) -> str:
    return reindex(tar.parent) if isinstance(tar, Path) else f"remove its copies in {tar.cache.folder}"


def _check_members(tar: File, samples: Sequence[Sample]) -> None:
    """Look for the headers of samples, in front of their bytes: another tar of the same size has others."""
    for sample in samples:
        member, key = sample.captures[0], f"{sample.key}."
        try:
            with tar.open("rb") as file:
                file.seek(member.offset - tarfile.BLOCKSIZE)
                header = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            header = tarfile.TarInfo()
        except (OSError, ValueError) as error:
            raise UserError(f"{tar}: cannot be read ({error})") from None
        # the header cuts a long name, and replaces letters that are not ASCII
        name = header.name.removeprefix("./")
        if header.size != member.size or (key.isascii() and name[: len(key)] != key[: len(name)]):
            raise UserError(f"{tar}: is not the tar that was indexed; {_repair(tar)}")
