"""Errors that are reported in one message without a traceback, each with its exit code."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any

from n2n_dist.signals import prints_messages


class ReportedError(Exception):
    """An error that is reported in one message."""

    exit_code = 1


class UserError(ReportedError):
    """Input or settings that cannot be worked with: names the key or file, the value and the remedy."""

    exit_code = 2


class StorageError(ReportedError):
    """A file that cannot be written, as on a full disk: nothing is wrong with the input."""


class PeerLostError(ReportedError):
    """Another process of the run has died or hangs: nothing is wrong with the input, and the same command continues."""


class Output:
    """Standard output or error that may be lost: a full disk, a reader that has ended, a closed stream.

    The lines are lost then, which is reported once on standard error, and the program goes on.
    """

    def __init__(self, stream: Any, name: str) -> None:
        """Replace `sys.NAME`; None is a stream that was closed before the program started."""
        self._stream = stream
        self._name = name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may be no text

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, as long as that is possible."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, as long as that is possible."""
        self._try(lambda: self._stream.flush())

    def isatty(self) -> bool:
        """Return whether somebody looks at a terminal."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor."""
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def _try(self, action: Callable[[], object]) -> None:
        if self._stream is None:
            return
        try:
            action()
        except (OSError, ValueError) as error:  # a closed stream is a ValueError
            lost, self._stream = self._stream, None
            with contextlib.suppress(OSError, ValueError):  # else the end of the program fails at the same bytes
                os.dup2(os.open(os.devnull, os.O_WRONLY), lost.fileno())
            if self._name == "stdout":
                print(f"standard output cannot be written ({one_line(error)}): going on without", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line, at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def run_command(command: Callable[[], None]) -> None:
    """Run a script's main function and exit with its code.

    Exit codes: 0 done, 2 a `UserError`, 1 anything else. A `ReportedError` is one message without a traceback. It is
    raised on all ranks, and the first rank of each machine prints it; but a `PeerLostError` is printed by every rank,
    because the first one may be the lost one.
    """
    out: Any = Output(sys.stdout, "stdout")
    err: Any = Output(sys.stderr, "stderr")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command()
        except ReportedError as error:
            if prints_messages() or isinstance(error, PeerLostError):
                print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)  # as a shell says it of a program that SIGINT ended
