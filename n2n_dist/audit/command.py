"""Command line of `audit`."""

from __future__ import annotations

import argparse
from pathlib import Path

from n2n_dist.audit.audit import SAMPLES, write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `audit`."""
    parser.add_argument("folder", type=Path, help="folder of shards; its validation/ is reported as well")
    parser.add_argument("--output", type=Path, help="folder for the report (FOLDER/audit)")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="tiles to measure in each data set (%(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Audit a folder of shards, print the tables and write the report.

    Raises:
        UserError: as `write_report`.

    """
    write_report(arguments.folder, arguments.output or arguments.folder / "audit", arguments.samples)
