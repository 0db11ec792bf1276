r"""Make shards from images, or index and verify existing ones.

python shards/build.py photos/ shards/mine                      every frame of every file is a scene
python shards/build.py scenes/ shards/mine --captures folder    every folder is a scene of two or more noisy captures
python shards/build.py stacks/ shards/mine --captures stack     every file is a scene, its frames are the captures
python shards/build.py films/ shards/mine --captures stack --frames consecutive     neighbouring frames are pairs
python shards/build.py all/ shards/mine --captures pattern '(?P<scene>.+)_(?P<capture>\d)' --clean '(?P<scene>.+)_gt'
python shards/build.py photos/ shards/mine --part 3/100         the third of 100 parts, for job arrays; then:
python shards/build.py index shards/mine                        merge the parts
python shards/build.py index shards/theirs                      index tars written by webdataset or tar
python shards/build.py verify shards/mine                       compare every tar with its digest
"""

import argparse
import sys
from pathlib import Path

from n2n_dist.building.build import build, merge
from n2n_dist.building.plan import Options, Report, parse_part, unfinished
from n2n_dist.errors import UserError, run_command
from n2n_dist.scenes import Grouping
from n2n_dist.shards.index import VALIDATION, read_index
from n2n_dist.shards.indexing import verify, write_index


def main() -> None:
    """Parse the command line and run one of the three actions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if sys.argv[1:2] in (["index"], ["verify"]):
        parser.add_argument("action")
        parser.add_argument("folder", type=Path)
        parser.add_argument("--black", type=float, help="value that means no light, where the samples do not say")
        parser.add_argument("--white", type=float, help="value that means full light, where the samples do not say")
        arguments = parser.parse_args()
        if arguments.action == "verify":
            verify(arguments.folder)
            print(f"{arguments.folder}: every tar is as it was indexed")
        elif unfinished(arguments.folder):
            _say(arguments.folder, merge(arguments.folder))
        else:
            shards = write_index(arguments.folder, arguments.black, arguments.white)
            print(f"{arguments.folder}: indexed {sum(s.samples for s in shards):,} samples in {len(shards)} shards")
        return
    defaults = Options()
    parser.add_argument("source", type=Path, help="folder of images: PNG, JPEG, TIFF, NPY, NPZ, FITS, DICOM")
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
    arguments = vars(parser.parse_args())
    source, destination, part, jobs = (arguments.pop(name) for name in ("source", "destination", "part", "jobs"))
    captures, frames, clean = (arguments.pop(name) for name in ("captures", "frames", "clean"))
    how, *pattern = captures or [None]
    if len(pattern) > 1:
        raise UserError(f"--captures {' '.join(captures)}: put it after the two folders, the pattern in quotes")
    grouping = Grouping(how, *pattern, consecutive=frames is not None, clean=clean)
    options = Options(grouping, **arguments)
    _say(destination, build(source, destination, options, parse_part(part), jobs), part)


def _say(destination: Path, report: Report, part: str | None = None) -> None:
    skipped = f", {len(report.bad)} skipped" if report.bad else ""
    ignored = f"; {len(report.ignored):,} files match no pattern, such as {report.ignored[0]}" if report.ignored else ""
    print(f"{destination}: {report.tiles:,} tiles of {report.scenes:,} scenes{skipped}{ignored}")
    if part:
        print(f"part {part} is done; when all are: python shards/build.py index {destination}")
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
    print(f"next: accelerate launch launch/train.py --config configs/{config}.yaml {' '.join(settings)}")


if __name__ == "__main__":
    run_command(main)
