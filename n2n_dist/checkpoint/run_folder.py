"""One run per folder: RUN/owner.json names the run that writes there, and its heartbeat shows that it is alive.

Nothing is locked, because shared file systems often cannot. A file is created exclusively or replaced by a rename, both
of which are atomic everywhere; and only this machine's monotonic clock is read, because clocks of machines differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from n2n_dist.errors import UserError

OWNER = "owner.json"
HEARTBEAT_SECONDS = 3.0
STALE_SECONDS = 15.0
"""Seconds without a heartbeat after which a run counts as dead; one on this machine whose process is gone does so at
once."""
POLL_SECONDS = 0.2


class RunLock:
    """The hold of one run on its folder. Rank 0 claims it; on other ranks nothing is held and nothing is wrong."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / OWNER
        self.taken_over = False
        """Whether the folder was found to be another run's: nothing may be written there."""
        self._token = secrets.token_hex(16)
        self._started = _now()
        self._file: int | None = None
        self._heart = threading.Thread(target=self._keep_alive, daemon=True, name="owner")
        self._stopped = threading.Event()

    def acquire(self, say: Callable[[str], None]) -> None:
        """Take the folder, from a dead run too: one that has lost its machine shows nothing for `STALE_SECONDS`.

        Args:
            say: told before it takes time.

        Raises:
            UserError: another run is alive there (names it), or nothing can be written.

        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._claim(say)
        except OSError as error:
            self._close()
            raise UserError(
                f"run.dir {self.path.parent}: cannot be written ({error.strerror or error}); choose another folder"
            ) from None
        self._heart.start()

    def lost_error(self) -> UserError | None:
        """Say why this run may write no more: it stood still and another one took over, or its folder is gone."""
        if self._file is None:
            return None
        try:
            content = self._read()
        except OSError:  # a file server that does not answer is not asked to keep up
            return None
        if self._is_mine(content):
            return None
        self.taken_over = True
        if content is None:
            return UserError(f"{self.path}: it or its folder was removed during the run, which stops and saves nothing")
        return UserError(
            f"run.dir {self.path.parent}: this run gave no sign of life for {STALE_SECONDS:.0f} s, and "
            f"{_name(content)} took the folder over; this one stops and saves nothing"
        )

    def release(self) -> None:
        """Leave the folder to the next run."""
        if self._heart.is_alive():
            self._stopped.set()
            self._heart.join()
        with contextlib.suppress(OSError):
            if self._file is not None and self._is_mine(self._read()):
                self.path.unlink()
        self._close()

    def _claim(self, say: Callable[[str], None]) -> None:
        seen: bytes | None = None
        since = blocked = 0.0
        while not self._create(self.path):
            content, now = self._read(), time.monotonic()
            if content is None:  # released just now
                continue
            if seen is None:
                seen, since, blocked = content, now, now + STALE_SECONDS
                if not _is_dead(content):
                    say(f"{self.path.parent}: held by {_name(content)}; free in {STALE_SECONDS:.0f} s if that is dead")
            if content != seen:
                self.taken_over = True
                raise UserError(
                    f"run.dir {self.path.parent}: in use by {_name(content)}, which is alive; wait until it ends "
                    f"(if it dies, the folder is free {STALE_SECONDS:.0f} s later), or choose another run.dir"
                )
            if now - since > STALE_SECONDS or _is_dead(content):
                if self._take_over(content):
                    say(f"{self.path.parent}: taken over from {_name(content)}, which is dead")
                    return
                if now > blocked:  # who came before us died in the middle of this
                    self._successor(content).unlink(missing_ok=True)
            time.sleep(POLL_SECONDS)

    def _take_over(self, content: bytes) -> bool:
        """Replace a dead run's file. Of several that try, one creates the successor, which only a rename ends."""
        successor = self._successor(content)
        if not self._create(successor):
            return False
        if self._read() == content:  # else another one was quicker and has made its rename already
            with contextlib.suppress(FileNotFoundError):
                successor.rename(self.path)
        if self._is_mine(self._read()):
            return True
        self._close()
        successor.unlink(missing_ok=True)
        return False

    def _successor(self, content: bytes) -> Path:
        return self.path.with_name(f"{OWNER}.{hashlib.sha256(content).hexdigest()[:16]}")

    def _create(self, path: Path) -> bool:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            self._beat()
        except OSError:
            path.unlink()
            raise
        return True

    def _beat(self) -> None:
        """Write into the open file: once it is replaced, this reaches nobody. The length never changes."""
        assert self._file is not None
        content = {
            "token": self._token,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "process_start": _process_start(os.getpid()),
            "machine": _machine(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "started": self._started,
            "heartbeat": _now(),
        }
        os.pwrite(self._file, (json.dumps(content, indent=1) + "\n").encode(), 0)
        os.close(os.dup(self._file))  # a close makes NFS send it

    def _keep_alive(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # it may work the next time; who gives up on us tells by the token
                self._beat()

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _is_mine(self, content: bytes | None) -> bool:
        return content is not None and _parse(content).get("token") == self._token

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _parse(content: bytes) -> dict[str, Any]:
    """Read an owner file, which may be half written."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _name(content: bytes) -> str:
    found = _parse(content)
    job = f", Slurm job {found['slurm_job']}" if found.get("slurm_job") else ""
    return f"process {found.get('process')} on {found.get('host')}{job}, started {found.get('started')}"


def _is_dead(content: bytes) -> bool:
    """Say whether the owner ran where this process can see that it is gone."""
    found = _parse(content)
    if found.get("machine") is None or found["machine"] != _machine():
        return False
    try:
        os.kill(found["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        pass
    return _process_start(found["process"]) not in (found["process_start"], None)


def _machine() -> str | None:
    """Name what process ids are unique in: this start of the machine, and the container; None if that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _process_start(process: int) -> int | None:
    """Return when a process started, in clock ticks since the machine did; -1 if it has ended, None if unknown."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] in "ZX" else int(fields[19])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
