"""Files behind a URL, and their cache on this machine's disk.

Every process fetches what it needs by itself. A file of the cache is complete or absent: one process downloads it under
a temporary name while the others wait, compares its size and sha256, flushes and renames it. Past the limit the files
that were used longest ago go first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from filelock import BaseFileLock, FileLock, Timeout

from n2n_dist import files
from n2n_dist.errors import UserError

GIB = 1 << 30
OWN = re.compile(r"[0-9a-f]{64}-.")
"""Names of the files that a cache may remove."""
TRIES = 6
"""Downloads of one file that may fail, one after another."""


class SourceUnavailableError(UserError):
    """A file that cannot be fetched, or a cache that cannot be written; no other sample can replace it."""


def location(text: str) -> Path | str:
    """Tell a folder of this machine (a path) from a URL (a string without the slash at its end)."""
    return text.rstrip("/") if "://" in text else Path(text)


class Cache:
    """Downloaded files in one folder, shared by all processes of this machine."""

    def __init__(self, folder: Path | None = None, limit: int = 50 * GIB, timeout: float = 30.0) -> None:
        """Nothing is written before something is fetched.

        Args:
            folder: on a disk of this machine; default `n2n_dist-UID` below $TMPDIR, else below /var/tmp.
            limit: bytes that the files may take, those that are just being downloaded included.
            timeout: seconds of silence after which a download is tried again. The pauses between tries double, from
                1/32 of this to a half of it.

        """
        self.own = folder is None  # others know its name, and its files are not compared again
        self.folder = folder or Path(os.environ.get("TMPDIR", "/var/tmp")) / f"n2n_dist-{os.getuid()}"
        self.limit = limit
        self.timeout = timeout

    def fetch(self, file: RemoteFile) -> Path:
        """Return the copy of a file, after a download if there is none; it now counts as just used.

        Raises:
            SourceUnavailableError: names the URL, the cause, the number of tries and the remedy.

        """
        path = self._path(file)
        if self.use(file):
            return path
        if file.bytes > self.limit:
            raise SourceUnavailableError(
                f"data.cache_gb {self.limit / GIB:.3g}: {file} alone takes {file.bytes:,} bytes; give more"
            )
        asked = time.time()
        with self._writable():
            locks = self.folder / "locks"
            locks.mkdir(exist_ok=True)
            given_up = locks / f"{path.name}.given-up"
            with FileLock(locks / f"{path.name}.lock"):
                if self.use(file):
                    return path
                if given_up.exists() and given_up.stat().st_mtime >= asked:
                    raise SourceUnavailableError(given_up.read_text())  # by the process that this one has waited for
                try:
                    self._download(file.url, file.bytes, file.sha256, path)
                except SourceUnavailableError as refusal:
                    given_up.write_text(str(refusal))
                    raise
                given_up.unlink(missing_ok=True)
        return path

    def use(self, file: RemoteFile) -> bool:
        """Say whether there is a copy of a file, and mark it as just used."""
        try:
            os.utime(self._path(file))
            return self._path(file).stat().st_size == file.bytes
        except OSError:  # there is none, or the download names the error of the folder
            return False

    def read(self, url: str) -> bytes:
        """Return the content of a file that may change, and is therefore never kept.

        Raises:
            SourceUnavailableError: as of `fetch`.

        """
        with self._writable():
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            try:
                self._download(url, None, None, folder / "content")
                return (folder / "content").read_bytes()
            finally:  # a download that was left behind may still write there
                shutil.rmtree(folder, ignore_errors=True)

    def _path(self, file: RemoteFile) -> Path:
        return self.folder / f"{file.sha256}-{file.url.rpartition('/')[2][-100:]}"

    def _download(self, url: str, size: int | None, sha256: str | None, path: Path) -> None:
        for attempt in range(1, TRIES + 1):
            part = path.with_name(f"{path.name}.{size or 0}.{uuid.uuid4().hex}.part")
            self._make_room(size or 0, part)
            try:
                self._transfer(url, part, size)
                _compare(part, size, sha256)
                files.fsync(part)
                with self._room():
                    part.replace(path)
                return
            except Exception as error:  # each file system has its own kinds of error
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                cause = " ".join(f"{type(error).__name__}: {error}".split())
                if isinstance(error, ImportError):
                    raise SourceUnavailableError(
                        f'{url}: {cause}; install it with: pip install -e ".[remote]"'
                    ) from None
                if attempt == TRIES or isinstance(error, FileNotFoundError | PermissionError | ValueError):
                    raise SourceUnavailableError(
                        f"{url}: cannot be fetched ({cause}; tries: {attempt}); look at the address, the network, "
                        "the credentials and the files there, then give the same command again"
                    ) from None
                time.sleep(self.timeout * 2.0 ** (attempt - TRIES))
            finally:
                part.unlink(missing_ok=True)

    def _transfer(self, url: str, part: Path, size: int | None) -> None:
        """Copy a URL to a file. A silent source is left behind in its thread: not every library has time-outs."""
        progress = _Progress(self.limit if size is None else size)
        errors: list[BaseException] = []

        def copy() -> None:
            try:
                filesystem, path = fsspec.url_to_fs(url, **_options(url, self.timeout))
                filesystem.get_file(path, str(part), callback=progress)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=copy, daemon=True, name=f"download of {url}")
        thread.start()
        seen, since = (-1, -1), time.monotonic()
        while thread.is_alive():
            thread.join(min(1.0, self.timeout / 4))
            now = progress.value, _size(part)
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > self.timeout:
                raise TimeoutError(f"silent for {self.timeout:g} s")
        if errors:
            raise errors[0]

    def _make_room(self, size: int, part: Path) -> None:
        """Remove the files used longest ago until `size` bytes fit, and reserve them by the name of an empty file."""
        with self._room():
            total, files = size, []
            for entry in os.scandir(self.folder):
                if not OWN.match(entry.name):  # somebody else's
                    continue
                if entry.name.endswith(".part"):
                    total += self._reserved(entry, part)
                elif entry.is_file():
                    about = entry.stat()
                    total += about.st_size
                    files.append((about.st_mtime_ns, about.st_size, Path(entry.path)))
            for _, taken, path in sorted(files):
                if total <= self.limit:
                    break
                path.unlink(missing_ok=True)
                total -= taken
            part.touch()

    def _room(self) -> BaseFileLock:
        """Lock the list of files, for a moment."""
        return FileLock(self.folder / "room.lock")

    def _reserved(self, entry: os.DirEntry[str], own: Path) -> int:
        """Return the bytes reserved by a download that is running; remove the part left by a killed process."""
        name, size, _, _ = entry.name.rsplit(".", 3)
        if name != own.name.rsplit(".", 3)[0]:  # nobody else downloads the file whose lock is held here
            try:
                with FileLock(self.folder / "locks" / f"{name}.lock", timeout=0):
                    pass
            except Timeout:
                return int(size)
        Path(entry.path).unlink(missing_ok=True)
        return 0

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.own and self.folder.stat().st_uid != os.getuid():
                raise PermissionError(errno.EPERM, "it belongs to somebody else")
            yield
        except OSError as error:
            raise SourceUnavailableError(
                f"data.cache {self.folder}: cannot be written ({error.strerror or error}); choose another folder on a "
                "disk of this machine, make room, or lower data.cache_gb"
            ) from None


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL that is opened like a `Path`, through the cache."""

    url: str
    bytes: int
    sha256: str
    cache: Cache = field(compare=False, repr=False)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the copy in the cache for reading.

        Raises:
            SourceUnavailableError: there is none, and none can be had.

        """
        while True:
            with contextlib.suppress(FileNotFoundError):  # another process just made room with it
                return self.cache.fetch(self).open("rb")

    def __str__(self) -> str:
        return self.url


File = Path | RemoteFile


class _Progress(fsspec.Callback):
    """Counts bytes, and ends a download that has more of them than it may."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        if self.value > self.limit:
            raise OverflowError(f"more than {self.limit:,} bytes")


def _options(url: str, timeout: float) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        return {}
    import aiohttp

    # by default a download of five minutes is cut off, however well it goes
    return {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)}


def _compare(part: Path, size: int | None, sha256: str | None) -> None:
    if size is not None and _size(part) != size:
        raise EOFError(f"{_size(part):,} bytes instead of {size:,}")
    if sha256 is not None and files.sha256(part) != sha256:
        raise EOFError("its sha256 is not that of the index")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
