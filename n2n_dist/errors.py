"""Errors that end a command with one message, and the exit code of each."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from n2n_dist.signals import remove_marker


class UserError(Exception):
    """Input or settings that cannot be worked with: names the key or file, the value and the remedy."""


class StorageError(UserError):
    """Something that the machine could not do, such as write to a full disk; the input was good."""


class PeerLostError(Exception):
    """Another process of the run has died or hangs: nothing is wrong with the input, and the same command continues."""


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line and without the end of a very long text."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def run_command(command: Callable[[], None]) -> None:
    """Run a script's main function and exit with its code.

    Exit codes: 0 done, 2 a refusal, 1 anything else. A refusal or failure is one clear message without a traceback.
    With several processes a refusal is raised on all of them, and the first one of each machine prints it. That one may
    be the process that is lost, so every one that is left says so.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may be no text
    try:
        command()
    except UserError as refusal:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {refusal}", file=sys.stderr, flush=True)
        sys.exit(1 if isinstance(refusal, StorageError) else 2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # as a shell says it of a program that SIGINT ended
    except PeerLostError as lost:
        print(f"error: {lost}", file=sys.stderr, flush=True)
        sys.exit(1)


def write_error_file(run_dir: Path, error: BaseException) -> None:
    """Leave the last error of a run in `RUN/error.txt`: a launcher's own traceback buries ours.

    All ranks raise the same refusal, so only rank 0 writes it. That a process is lost is written by the first that
    notices, after what the lost one itself has left. A run that fails is not one to be continued by itself.
    """
    if isinstance(error, UserError) and os.environ.get("RANK", "0") != "0":
        return
    remove_marker(run_dir)
    known = isinstance(error, UserError | PeerLostError)
    text = str(error) if known else "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):  # the folder may be what the error is about
        if run_dir.is_dir():
            with (run_dir / "error.txt").open("x" if isinstance(error, PeerLostError) else "w") as file:
                file.write(text.rstrip() + "\n")
