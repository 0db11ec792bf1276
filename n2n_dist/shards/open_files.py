"""Files that stay open, read at any offset: a process keeps those of the last shards that it read from."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

from n2n_dist.shards.cache import File

SHARDS_OPEN = 128
"""Shards that a process keeps open: twice the streams of a batch, which pass from one shard to the next."""
TRUSTED = 1.0
"""Seconds for which an open file is taken for the one of its name: asking for every read costs a tenth of a decode."""

Identity = tuple[int, int]
"""Device and inode of a file; a file changed in place stays the same, and only the changed samples are damaged."""


class OpenFile:
    """A file that stays open, read at any offset, by any process that inherits it."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            OSError: also from the methods.

        """
        self._path = str(path)
        self._open()

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at Python's end `os` is None
        if hasattr(self, "_descriptor"):
            close(self._descriptor)

    def read(self, size: int, offset: int) -> bytes:
        """Return the bytes from `offset` on, fewer than `size` at the end of the file."""
        return os.pread(self._descriptor, size, offset)

    @property
    def identity(self) -> Identity:
        """Which file is read; looks it up by name after `TRUSTED` seconds."""
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


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


open_file = functools.lru_cache(maxsize=2 * SHARDS_OPEN)(OpenFile)  # a shard's tar and its list


def read_at(file: File, size: int, offset: int) -> bytes:
    """Return the bytes of a file from `offset` on.

    Raises:
        OSError: the file cannot be read.
        SourceUnavailableError: it cannot be fetched.

    """
    if isinstance(file, Path):
        return open_file(file).read(size, offset)
    with file.open("rb") as cached:  # not kept open: the cache counts uses, and the room of removed files
        cached.seek(offset)
        return cached.read(size)
