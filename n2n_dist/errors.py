"""Errors that are reported in one message without a traceback, each with its exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable


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


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line, at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def run_command(command: Callable[[], None]) -> None:
    """Run a script's main function and exit with its code.

    Exit codes: 0 done, 2 a `UserError`, 1 anything else. A `ReportedError` is one message without a traceback. It is
    raised on all ranks, and the first rank of each machine prints it; but a `PeerLostError` is printed by every rank,
    because the first one may be the lost one.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may be no text
    try:
        command()
    except ReportedError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, PeerLostError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # as a shell says it of a program that SIGINT ended
