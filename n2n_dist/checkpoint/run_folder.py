"""One run per folder: RUN/owner.json names the run that writes there, and its heartbeat shows that it is alive.

Only the run that holds this lock writes error.txt and PREEMPTED, or removes those of the start before.

The lock uses no locking of the file system, which shared ones often lack. A file is created exclusively or replaced by
a rename, both of which are atomic everywhere; and only this machine's monotonic clock is read, because clocks of
machines differ.
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
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from n2n_dist.errors import PeerLostError, ReportedError, StorageError, UserError
from n2n_dist.files import write_text

OWNER = "owner.json"
MARKER = "PREEMPTED"
"""File that says that a signal stopped the run, and that the same command continues it."""
ERROR = "error.txt"
"""File with the last error of the run, which a launcher's own traceback buries."""
HEARTBEAT_SECONDS = 3.0
STALE_SECONDS = 15.0
"""Seconds without a heartbeat after which a run counts as dead; at once where its process has ended on this machine."""
POLL_SECONDS = 0.2


class RunLock:
    """The lock of one run on its folder: rank 0 acquires it, the other ranks join it."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.path = run_dir / OWNER
        self._token: str | None = None
        """Of the run that this process belongs to, once it has the lock."""
        self._refused = False  # whether another run holds the folder
        self._started = _now()
        self._file: int | None = None
        self._heart = threading.Thread(target=self._keep_alive, daemon=True, name="owner")
        self._stopped = threading.Event()

    def acquire(self, say: Callable[[str], None]) -> str:
        """Take the folder, and remove the marker and the error of the start before.

        A run that is dead loses it: at once where its process was on this machine, else after `STALE_SECONDS` without
        a heartbeat.

        Args:
            say: called with one line before it takes time.

        Returns:
            The token with which the other ranks join.

        Raises:
            UserError: another run is alive there (names it), or nothing can be written.

        """
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._claim(say)
            for name in (MARKER, ERROR):
                (self.run_dir / name).unlink(missing_ok=True)
        except OSError as error:
            self.release()
            raise UserError(
                f"run.dir {self.run_dir}: cannot be written ({error.strerror or error}); choose another folder"
            ) from None
        self._heart.start()
        assert self._token is not None
        return self._token

    def join(self, token: str) -> None:
        """Share the lock that another process of this run has acquired."""
        self._token = token

    @property
    def held(self) -> bool:
        """Whether the folder is this run's; False where that cannot be read."""
        try:
            return self._is_mine(self._read())
        except OSError:
            return False

    def lost_error(self) -> UserError | None:
        """Return why this run may write no more: another one took over, or its folder was removed; None on rank > 0."""
        if self._file is None:
            return None
        try:
            content = self._read()
        except OSError:  # a file server that does not answer is not asked to keep up
            return None
        if self._is_mine(content):
            return None
        if content is None:
            return UserError(f"{self.path}: it or its folder was removed during the run, which stops and saves nothing")
        return UserError(
            f"run.dir {self.run_dir}: this run gave no sign of life for {STALE_SECONDS:.0f} s, and "
            f"{_name(content)} took the folder over; this one stops and saves nothing"
        )

    def leave_marker(self, line: str) -> None:
        """Write RUN/PREEMPTED.

        Raises:
            UserError: the lock was lost.
            OSError: it cannot be written.

        """
        if error := self.lost_error():
            raise error
        write_text(self.run_dir / MARKER, line + "\n")

    def leave_error(self, error: BaseException) -> None:
        """Write RUN/error.txt, and remove the marker: a run that fails is not continued by itself.

        Before the lock is acquired it is taken for this moment, if the folder is free. All ranks raise the same
        error, so only rank 0 writes it; a `PeerLostError` is written by the first rank that notices, unless the lost
        one has written its own.
        """
        if self._refused or (isinstance(error, UserError | StorageError) and os.environ.get("RANK", "0") != "0"):
            return
        text = str(error) if isinstance(error, ReportedError) else "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):  # the folder may be what the error is about
            for_now = self._token is None and self._create(self.path)
            try:
                if self.held:
                    (self.run_dir / MARKER).unlink(missing_ok=True)
                    with (self.run_dir / ERROR).open("x" if isinstance(error, PeerLostError) else "w") as file:
                        file.write(text.rstrip() + "\n")
            finally:
                if for_now:
                    self.release()

    def release(self) -> None:
        """Leave the folder to the next run."""
        if self._heart.is_alive():
            self._stopped.set()
            self._heart.join()
        if self._file is not None and self.held:
            with contextlib.suppress(OSError):
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
                    say(f"{self.run_dir}: held by {_name(content)}; free in {STALE_SECONDS:.0f} s if that is dead")
            if content != seen:
                self._refused = True
                raise UserError(
                    f"run.dir {self.run_dir}: in use by {_name(content)}, which is alive; wait until it ends "
                    f"(if it dies, the folder is free {STALE_SECONDS:.0f} s later), or choose another run.dir"
                )
            if now - since > STALE_SECONDS or _is_dead(content):
                if self._take_over(content):
                    say(f"{self.run_dir}: taken over from {_name(content)}, which is dead")
                    return
                if now > blocked:  # another process died while it took over
                    self._successor(content).unlink(missing_ok=True)
            time.sleep(POLL_SECONDS)

    def _take_over(self, content: bytes) -> bool:
        """Replace a dead run's file; of several processes that try, one creates the successor, which a rename ends."""
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
        self._token = secrets.token_hex(16)
        try:
            self._beat()
        except OSError:
            self._close()
            path.unlink()
            raise
        return True

    def _beat(self) -> None:
        """Write into the open file, which nobody reads once it was replaced. The length never changes."""
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
            with contextlib.suppress(OSError):  # it may work the next time; a run that took over has another token
                self._beat()

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _is_mine(self, content: bytes | None) -> bool:
        return content is not None and self._token is not None and _parse(content).get("token") == self._token

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._token = None


def _parse(content: bytes) -> dict[str, Any]:
    """Read an owner file; one that is torn is empty."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _name(content: bytes) -> str:
    found = _parse(content)
    if not found:
        return f"an unknown process ({OWNER} is torn)"
    job = f", Slurm job {found['slurm_job']}" if found.get("slurm_job") else ""
    return f"process {found.get('process')} on {found.get('host')}{job}, started {found.get('started')}"


def _is_dead(content: bytes) -> bool:
    """Return whether the owner was a process of this machine that has ended; False where that cannot be seen."""
    found = _parse(content)
    process, machine = found.get("process"), found.get("machine")
    if machine is None or machine != _machine() or not isinstance(process, int):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        pass
    return _process_start(process) not in (found.get("process_start"), None)


def _machine() -> str | None:
    """Return the scope of process ids: this start of the machine, and the container; None if that is unknown."""
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
