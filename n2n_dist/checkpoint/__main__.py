"""List the checkpoints of a run and verify their bytes, or export one as weights.

python -m n2n_dist.checkpoint runs/mine
python -m n2n_dist.checkpoint runs/mine --export 1000 weights.safetensors
"""

import argparse

from n2n_dist.checkpoint.command import add_arguments, run
from n2n_dist.errors import run_command


def main() -> None:
    """Parse the command line and list or export."""
    parser = argparse.ArgumentParser(
        prog="python -m n2n_dist.checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    run_command(main)
