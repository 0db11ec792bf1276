"""Make shards from images, or index and verify existing ones.

python shards/build.py photos/ shards/mine                      one clean (or single noisy) image a file
python shards/build.py scenes/ shards/mine --captures folder    one folder a scene, two or more noisy captures in it
python shards/build.py index shards/theirs                      tars written by webdataset or tar
python shards/build.py verify shards/mine                       compare every tar with its digest
"""

import argparse
import sys
from pathlib import Path

from n2n_dist.data import shard
from n2n_dist.data.build import Options, build
from n2n_dist.errors import run_command


def main() -> None:
    """Parse the command line and run one of the three actions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if sys.argv[1:2] in (["index"], ["verify"]):
        parser.add_argument("action")
        parser.add_argument("folder", type=Path)
        arguments = parser.parse_args()
        if arguments.action == "index":
            shards = shard.write_index(arguments.folder)
            print(f"{arguments.folder}: indexed {sum(s.samples for s in shards):,} samples in {len(shards)} shards")
        else:
            shard.verify(arguments.folder)
            print(f"{arguments.folder}: every tar is as it was indexed")
        return
    defaults = Options()
    parser.add_argument("source", type=Path, help="folder of PNG, TIFF or JPEG files")
    parser.add_argument("destination", type=Path, help="new folder for the shards")
    parser.add_argument("--captures", choices=["folder"], help="every folder below SOURCE is one scene")
    parser.add_argument("--tile", type=int, default=defaults.tile, help="tile size in pixels (%(default)s)")
    parser.add_argument(
        "--encoding", default=defaults.encoding, help="npy (uncompressed, fast), webp (smallest, 8-bit RGB) or png"
    )
    parser.add_argument("--shard-samples", type=int, default=defaults.shard_samples, help="tiles a tar (%(default)s)")
    parser.add_argument("--black", type=float, help="value that means no light (0)")
    parser.add_argument("--white", type=float, help="value that means full light (the type's largest)")
    parser.add_argument("--holdout", type=int, default=0, help="scenes for DESTINATION/validation (%(default)s)")
    parser.add_argument("--max-bad", type=float, default=defaults.max_bad, help="tolerated share of bad files")
    arguments = vars(parser.parse_args())
    source, destination = arguments.pop("source"), arguments.pop("destination")
    arguments["captures"] = arguments["captures"] is not None
    report = build(source, destination, Options(**arguments))
    skipped = f", {len(report.bad)} skipped" if report.bad else ""
    print(f"{destination}: {report.tiles:,} tiles of {report.scenes:,} scenes{skipped}")
    print(f"train on them with: accelerate launch launch/train.py data.shards={destination}")


if __name__ == "__main__":
    run_command(main)
