"""Write a tar, and digest it on the way to the disk.

The bytes are those of webdataset's writer, of which only the headers are made here, by `tarfile`: a build with that
writer takes a fifth more processor time, and two seconds for its import of torch.
Owner, mode and time are fixed: the same members give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from pathlib import Path

UNSYNCED = 1 << 24
"""Bytes after which a sync of the disk is begun: else all of it is left for the end."""


class TarWriter:
    """A new tar, whose sha256 is known when it is finished."""

    def __init__(self, path: Path, disk: Executor) -> None:
        """Create the file.

        Args:
            path: of the tar.
            disk: a single thread, which syncs the bytes to the disk while others are made.

        """
        self._disk = disk
        self._file = path.open("wb")
        self._sha256 = hashlib.sha256()
        self._bytes = self._unsynced = 0
        self._syncs: list[Future[None]] = []

    def add(self, members: Mapping[str, bytes]) -> dict[str, int]:
        """Append members, contents by name; return the offset of each content in the tar."""
        offsets = {}
        for name, content in members.items():
            self._write(_header(name, len(content)))
            offsets[name] = self._bytes
            self._write(content)
            self._write(bytes(-len(content) % tarfile.BLOCKSIZE))
        return offsets

    def finish(self) -> str:
        """Write the end mark, wait until everything is on the disk, and return the sha256; call it in `disk`."""
        end = 2 * tarfile.BLOCKSIZE
        self._write(bytes(end + -(self._bytes + end) % tarfile.RECORDSIZE))
        with self._file:
            for sync in self._syncs:
                sync.result()  # the system reports an error of the disk once
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._sha256.hexdigest()

    def _write(self, data: bytes) -> None:
        self._sha256.update(data)
        self._file.write(data)
        self._bytes += len(data)
        self._unsynced += len(data)
        if self._unsynced > UNSYNCED:
            self._syncs.append(self._disk.submit(os.fsync, self._file.fileno()))
            self._unsynced = 0


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, 0o644, "n2n", "n2n"
    return info.tobuf(tarfile.PAX_FORMAT, tarfile.ENCODING, "surrogateescape")
