"""Figures of the benchmarks: a line each, and on request a row of results/PART.csv."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = (
    "figure", "median", "lowest", "highest", "count", "unit", "note", "command", "machine", "torch", "commit", "date"
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One quantity, measured once or more."""

    name: str
    values: Sequence[float]
    unit: str = ""
    note: str = ""
    """Value that is wanted, or what the figure is of."""

    @property
    def median(self) -> float:
        """The median of the values."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        """Return the line that is printed."""
        spread = f" (median of {len(self.values)}, {min(self.values):.4g} to {max(self.values):.4g})"
        text = f"{self.name}: {self.median:.4g}" + (f" {self.unit}" if self.unit else "")
        return text + (spread if len(self.values) > 1 else "") + (f", {self.note}" if self.note else "")


def record(path: Path, figures: Sequence[Figure], command: str) -> None:
    """Append a row for each figure to a CSV file, which is begun if there is none.

    Args:
        path: the file.
        figures: of one run of the command.
        command: measures them again.

    """
    origin = (command, machine(), torch.__version__, commit(), datetime.date.today().isoformat())
    path.parent.mkdir(exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        for figure in figures:
            ends = (f"{value:.6g}" for value in (figure.median, min(figure.values), max(figure.values)))
            writer.writerow([figure.name, *ends, len(figure.values), figure.unit, figure.note, *origin])


def machine() -> str:
    """Name the processor, the cores that this process may use, and the GPU if there is one."""
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{found[1] if found else platform.processor()}, {cores} cores"
    return f"{text}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else text


def commit() -> str:
    """Return the short name of the checkout's commit, `+` behind it if files differ; nothing without git."""
    try:
        name, changes = (
            subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
            for arguments in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{name}+" if changes else name
