"""Print the run folder of a training run, whose arguments are those of launch/train.py.

python launch/slurm/run_folder.py --config configs/demo.yaml run.dir=runs/other
"""

import argparse

from omegaconf import OmegaConf

from n2n_dist.cli import add_train_arguments
from n2n_dist.errors import run_command


def main() -> None:
    """Parse the command line and print the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_train_arguments(parser)
    arguments = parser.parse_intermixed_args()
    named = OmegaConf.from_dotlist([setting for setting in arguments.settings if setting.startswith("run.dir=")])
    folder = OmegaConf.select(named, "run.dir")
    if not isinstance(folder, str):
        from n2n_dist.config import load  # imports torch, which takes seconds

        folder = load(arguments.config, arguments.settings).run.dir
    print(folder)


if __name__ == "__main__":
    run_command(main)
