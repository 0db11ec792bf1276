"""The list of the members of a shard, `NAME.index.json` beside `NAME.tar`: one record a line for each sample.

The lines make it random-access: a process keeps the offset of every record, 8 bytes a sample, so that memory does not
grow with the data set and hardly with the size of a shard.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from n2n_dist import files
from n2n_dist.commands import command
from n2n_dist.errors import UserError
from n2n_dist.shards.cache import File, SourceUnavailableError
from n2n_dist.shards.open_files import SHARDS_OPEN, Identity, open_file, read_at
from n2n_dist.version import __version__

MEMBERS = ".index.json"
FORMAT = 3
"""Format of `index.json` and of the lists of members that it names."""


@dataclass
class Member:
    """The bytes of one image in a tar."""

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


def write_records(path: Path, samples: Sequence[Sample]) -> None:
    """Write the list of the members of a shard.

    Args:
        path: the list.
        samples: all samples of the tar, at least one.

    """
    records = ",\n".join(json.dumps(sample, separators=(",", ":"), default=vars) for sample in samples)
    files.write_text(path, f'{{"format":{FORMAT},"version":"{__version__}","samples":[\n{records}\n]}}\n')


def reindex(folder: Path | str) -> str:
    """Say how to get an index that fits."""
    if isinstance(folder, Path):
        return f"index anew with: {command('index', folder)}"
    return f"index the shards anew where they were built ({command('index', 'FOLDER')}) and copy them there again"


class Records:
    """The list of members of one shard: 8 bytes for each sample, the offset of its record."""

    def __init__(self, tar: File, members: File, sha256: str) -> None:
        """Read the list and compare it with its digest, and the tar with its first and last sample.

        Args:
            tar: the shard.
            members: its list.
            sha256: of the list.

        Raises:
            UserError: one of them is not the one that was indexed.
            SourceUnavailableError: one of them cannot be fetched.

        """
        self._tar = tar
        self._members = members
        self._sha256 = sha256
        self._local = [path for path in (tar, members) if isinstance(path, Path)]
        for path in self._local:
            with contextlib.suppress(OSError):  # reported below
                open_file(path).check()
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
            raise self._error(error) from None
        if replaced:
            self._scan()
        return self._read(number)

    def _scan(self) -> None:
        """Read the list anew, and compare the tar with it."""
        try:
            known = self._identities()
            with self._members.open("rb") as file:
                text = file.read()
            if hashlib.sha256(text).hexdigest() != self._sha256:
                raise ValueError("is not the one that the index names")
        except SourceUnavailableError:
            raise
        except (OSError, ValueError) as error:
            raise self._error(error) from None
        self._newlines = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
        _check_members(self._tar, [self._read(0), self._read(len(self._newlines) - 3)])
        self._known = known

    def _read(self, number: int) -> Sample:
        """Read the record between two ends of lines; before the first is the head, after the last but one the end."""
        start, end = self._newlines[number : number + 2].tolist()
        try:
            text = read_at(self._members, end - start - 1, start + 1)
            return _parse_record(text.removesuffix(b","))
        except SourceUnavailableError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._error(error) from None

    def _identities(self) -> list[Identity]:
        return [open_file(path).identity for path in self._local]

    def _error(self, error: Exception) -> UserError:
        return UserError(f"{self._members}: cannot be read ({error}); {_repair(self._tar)}")


open_records = functools.lru_cache(maxsize=SHARDS_OPEN)(Records)


def _parse_record(text: bytes) -> Sample:
    try:
        record = json.loads(text)
    except ValueError:
        raise ValueError("was changed in place") from None
    record["captures"] = [Member(**member) for member in record["captures"]]
    record["clean"] = record["clean"] and Member(**record["clean"])
    record["shape"] = tuple(record["shape"])
    return Sample(**record)


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
