"""Command lines of `build`, `index` and `verify`: arguments and output."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from n2n_dist.building.build import build, merge
from n2n_dist.building.plan import Options, Report, parse_part, unfinished
from n2n_dist.commands import command
from n2n_dist.errors import UserError
from n2n_dist.images.readers import format_names
from n2n_dist.scenes import Grouping
from n2n_dist.shards.index import VALIDATION, read_index
from n2n_dist.shards.indexing import verify, write_index


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `build`."""
    defaults = Options()
    parser.add_argument("source", type=Path, help=f"folder of images: {format_names()}")
    parser.add_argument("destination", type=Path, help="new folder for the shards")
    parser.add_argument("--captures", nargs="+", metavar="HOW", help="folder, stack, or pattern 'REGEX'")
    parser.add_argument("--frames", choices=["consecutive"], help="only neighbouring captures are pairs")
    parser.add_argument("--clean", metavar="REGEX", help="files that are the clean reference of a scene")
    parser.add_argument("--tile", type=int, default=defaults.tile, help="tile size in pixels (%(default)s)")
    parser.add_argument(
        "--encoding", default=defaults.encoding, help="npy (uncompressed, fast), webp (smallest, 8-bit RGB) or png"
    )
    parser.add_argument("--shard-samples", type=int, default=defaults.shard_samples, help="tiles a tar (%(default)s)")
    parser.add_argument("--black", type=float, help="value that means no light (0)")
    parser.add_argument("--white", type=float, help="value that means full light (the type's largest)")
    parser.add_argument("--holdout", type=int, default=0, help="recordings for DESTINATION/validation (%(default)s)")
    parser.add_argument("--max-bad", type=float, default=defaults.max_bad, help="tolerated share of bad scenes")
    parser.add_argument("--part", metavar="I/N", help="build the I-th of N disjoint parts")
    parser.add_argument("--jobs", type=int, default=1, help="images at a time (%(default)s)")


def run_build(arguments: argparse.Namespace) -> None:
    """Build shards, or a part of them, and print a summary.

    Raises:
        UserError: as `build`, or an argument cannot be used.

    """
    captures: list[str] = arguments.captures or []
    if len(captures) > 2:
        raise UserError(f"--captures {' '.join(captures)}: put it after the two folders, the pattern in quotes")
    how, pattern = [*captures, None, None][:2]
    grouping = Grouping(how, pattern, arguments.frames is not None, arguments.clean)
    settings = {field.name: getattr(arguments, field.name) for field in fields(Options) if field.name != "grouping"}
    options = Options(grouping, **settings)
    report = build(arguments.source, arguments.destination, options, parse_part(arguments.part), arguments.jobs)
    _print_summary(arguments.destination, report, arguments.part)


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `index`."""
    parser.add_argument("folder", type=Path, help="tars to index, or a build whose parts are finished")
    parser.add_argument("--black", type=float, help="value that means no light, for samples without it")
    parser.add_argument("--white", type=float, help="value that means full light, for samples without it")


def run_index(arguments: argparse.Namespace) -> None:
    """Merge the finished parts of a build, or index the tars of a folder, and print a summary.

    Raises:
        UserError: as `merge` and `write_index`.

    """
    folder = arguments.folder
    if unfinished(folder):
        _print_summary(folder, merge(folder))
    else:
        shards = write_index(folder, arguments.black, arguments.white)
        print(f"{folder}: indexed {sum(shard.samples for shard in shards):,} samples in {len(shards)} shards")


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `verify`."""
    parser.add_argument("folder", type=Path, help="indexed shards")


def run_verify(arguments: argparse.Namespace) -> None:
    """Compare every tar of a folder with its digest.

    Raises:
        UserError: as `verify`.

    """
    verify(arguments.folder)
    print(f"{arguments.folder}: every tar is as it was indexed")


COMMANDS = {
    "build": (add_build_arguments, run_build),
    "index": (add_index_arguments, run_index),
    "verify": (add_verify_arguments, run_verify),
}


def main(description: str) -> None:
    """Run `shards/build.py`: `index FOLDER`, `verify FOLDER`, or the arguments of `build`.

    Args:
        description: for `--help`.

    Raises:
        UserError: as the commands; or `index` or `verify` is a folder here as well.

    """
    name = sys.argv[1] if sys.argv[1:2] in (["index"], ["verify"]) else "build"
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if name != "build":
        if Path(name).is_dir():
            raise UserError(
                f"{name}: a folder here, and a command; build from the folder with ./{name}, run the command with: "
                f"n2n-dist {name} FOLDER"
            )
        parser.add_argument("command", choices=[name])
    add_arguments, run = COMMANDS[name]
    add_arguments(parser)
    run(parser.parse_args())


def _print_summary(destination: Path, report: Report, part: str | None = None) -> None:
    skipped = f", {len(report.bad)} skipped" if report.bad else ""
    ignored = f"; {len(report.ignored):,} files match no pattern, such as {report.ignored[0]}" if report.ignored else ""
    print(f"{destination}: {report.tiles:,} tiles of {report.scenes:,} scenes{skipped}{ignored}")
    if part:
        print(f"part {part} is done; when all are: {command('index', destination)}")
        return
    shards = read_index(destination)
    settings = [f"data.shards={destination}"]
    if (destination / VALIDATION).is_dir():
        held_out = sum(shard.samples for shard in read_index(destination / VALIDATION))
        print(f"{held_out:,} of the tiles are in {destination / VALIDATION}")
        settings.append(f"data.validation={destination / VALIDATION}")
    if shards[0].channels != [3]:
        settings.append(f"model.channels={shards[0].channels[0]}")
    config = "captures" if shards[0].captures > 1 else "gaussian25"
    print(f"next: {command('train', '--config', config, *settings)}")
