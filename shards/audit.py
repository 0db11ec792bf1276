"""Report on shards: digests, clipping, noise, and what breaks Noise2Noise between captures.

python shards/audit.py shards/mine                        a table, and shards/mine/audit/{audit.json,audit.png}
python shards/audit.py shards/mine --output reports/mine
"""

import argparse
from pathlib import Path

from n2n_dist.audit.audit import SAMPLES, report
from n2n_dist.errors import run_command


def main() -> None:
    """Parse the command line and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of shards; its validation/ is reported as well")
    parser.add_argument("--output", type=Path, help="folder for the report (FOLDER/audit)")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="tiles to measure in each data set (%(default)s)")
    arguments = parser.parse_args()
    report(arguments.folder, arguments.output or arguments.folder / "audit", arguments.samples)


if __name__ == "__main__":
    run_command(main)
