"""Errors that are reported in one message without a traceback, each with its exit code."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from n2n_dist.signals import remove_marker


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


def write_error_file(run_dir: Path, error: BaseException) -> None:
    """Write the last error of a run to `RUN/error.txt`, because a launcher's own traceback buries ours.

    All ranks raise the same error, so only rank 0 writes it; a `PeerLostError` is written by the first rank that
    notices, unless the lost one has written its own. A run that fails is not continued by itself: its marker goes.
    """
    if isinstance(error, UserError | StorageError) and os.environ.get("RANK", "0") != "0":
        return
    remove_marker(run_dir)
    reported = isinstance(error, ReportedError)
    text = str(error) if reported else "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):  # the folder may be what the error is about
        if run_dir.is_dir():
            with (run_dir / "error.txt").open("x" if isinstance(error, PeerLostError) else "w") as file:
                file.write(text.rstrip() + "\n")
