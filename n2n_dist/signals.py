"""Signals that ask a run to stop: noted at once, and acted upon where all ranks can agree (train.py).

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
from typing import Protocol

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
GRACE_SECONDS = 60
"""Seconds that a scheduler usually leaves between its signal and the end of the process."""
ECHO_SECONDS = 1.0
"""Signals this soon after the first are the same request: Ctrl-C or a scheduler may reach the launcher and its
processes, and the launcher passes it on to them."""

_received: list[tuple[str, float]] = []
"""Name and time of the first signal."""


def install() -> None:
    """Note signals from now on instead of dying of them; one that comes `ECHO_SECONDS` after the first exits at once.

    Call it from the main thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _do_nothing)
        signal.siginterrupt(number, False)  # system calls of other libraries go on
    threading.Thread(target=_note, args=(reader,), daemon=True, name="signals").start()


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
                _received.append((signal.Signals(number).name, time.monotonic()))
                if os.environ.get("LOCAL_RANK", "0") == "0":
                    os.write(2, f"{_received[0][0]}: stopping soon; a second signal stops without saving\n".encode())
            elif time.monotonic() - _received[0][1] > ECHO_SECONDS:
                for child in multiprocessing.active_children():
                    child.kill()
                os._exit(1)
