"""Train a denoiser, or continue a run.

    accelerate launch launch/train.py --config configs/demo.yaml [key=value ...]
    accelerate launch --config_file launch/backends/machine.yaml --num_processes 4 launch/train.py --config ...

The same command starts a run and continues it; `key=value` settings go over the file's.
"""

import argparse
from pathlib import Path

from n2n_dist import signals
from n2n_dist.errors import run_command


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML file, see configs/")
    parser.add_argument("--dry-run", action="store_true", help="print world, batch, memory and time, and stop")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that go over the file's")
    arguments = parser.parse_intermixed_args()
    if not arguments.dry_run:
        signals.install()  # torch is imported only now

    from n2n_dist.config import load
    from n2n_dist.train import train

    train(load(arguments.config, arguments.settings), arguments.dry_run)


if __name__ == "__main__":
    run_command(main)
