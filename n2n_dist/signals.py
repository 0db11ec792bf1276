"""Requests to stop a run, by a signal or the end of its launcher: noted at once, obeyed where all ranks can agree.

A thread notes them, because a Python handler waits as long as the main thread waits for another rank. This module
imports nothing slow: the command line uses it before torch, whose import takes seconds in which a signal would kill.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGXCPU)
"""Of people and Slurm: SIGTERM, SIGINT, SIGUSR1; of a terminal that closes: SIGHUP; of LSF and Grid Engine: SIGUSR2,
SIGXCPU."""
LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun", "deepspeed")
"""Names of the programs that start a run; those that are started as modules are in `LAUNCHER_PACKAGES`."""
LAUNCHER_PACKAGES = ("accelerate.commands.", "torch.distributed.", "deepspeed.launcher.")
GRACE_SECONDS = 60
"""Seconds that a scheduler usually leaves between its signal and the end of the process."""
ECHO_SECONDS = 1.0
"""Signals this soon after the first are the same request: Ctrl-C or a scheduler may reach the launcher and its
processes, and the launcher passes it on to them."""

_received: list[tuple[str, float]] = []
"""Name and time of the first request."""


def install() -> None:
    """Note signals from now on instead of dying of them; one that comes `ECHO_SECONDS` after the first exits at once.

    Call it from the main thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SIGNALS:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # under nohup
        signal.signal(number, _do_nothing)
        signal.siginterrupt(number, False)  # system calls of other libraries go on
    threading.Thread(target=_note, args=(reader,), daemon=True, name="signals").start()
    parent = os.getppid()
    if _is_launcher(parent):  # a shell may end, and a run under nohup goes on
        threading.Thread(target=_watch_launcher, args=(parent,), daemon=True, name="launcher").start()


def prints_messages() -> bool:
    """Return whether this process prints what all ranks have to report: the first one of each machine.

    A LOCAL_RANK that somebody's script has exported makes no rank of a single process.
    """
    return os.environ.get("WORLD_SIZE", "1") in ("", "1") or os.environ.get("LOCAL_RANK", "0") == "0"


def received() -> tuple[str, float] | None:
    """Return the name of the signal that this process got, and the seconds since then; None if it got none."""
    return (_received[0][0], time.monotonic() - _received[0][1]) if _received else None


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Surround the start of child processes: signals to them wait until they have handlers of their own."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Flag(Protocol):
    """A number in memory that processes share."""

    value: int


def leave_to_parent(ending: Flag) -> None:
    """In a child process started under `held`, ignore signals: they may be sent to all processes of a job.

    Args:
        ending: set by the parent when it exits; SIGTERM, with which it ends its children, then ends this one.

    """
    signal.set_wakeup_fd(-1)  # the parent's
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.value else None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _do_nothing(*_: object) -> None:
    """Stand as a handler, without which nothing would be written to the thread."""


def _note(reader: int) -> None:
    while True:
        for number in os.read(reader, 64):
            if number not in SIGNALS:  # such as that of a child that has ended
                continue
            if not _received:
                _request(signal.Signals(number).name)
            elif time.monotonic() - _received[0][1] > ECHO_SECONDS:
                for child in multiprocessing.active_children():
                    child.kill()
                os._exit(1)


def _watch_launcher(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    if not _received:
        _request("the end of its launcher")


def _request(name: str) -> None:
    _received.append((name, time.monotonic()))
    if prints_messages():
        with contextlib.suppress(OSError):  # nobody may read it any more
            os.write(2, f"{name}: stopping soon; a second signal stops without saving\n".encode())


def _is_launcher(process: int) -> bool:
    """Return whether a process starts others for training, where /proc tells its command line."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return False
    return any(word.rpartition("/")[2] in LAUNCHERS or word.startswith(LAUNCHER_PACKAGES) for word in words[:3])
