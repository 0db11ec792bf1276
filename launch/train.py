"""Train a denoiser, or continue a run.

    accelerate launch launch/train.py --config configs/demo.yaml [key=value ...]
    accelerate launch --config_file launch/backends/machine.yaml --num_processes 4 launch/train.py --config ...

The same command starts a run and continues it; `key=value` settings go over the file's.
"""

from n2n_dist import cli
from n2n_dist.errors import run_command

if __name__ == "__main__":
    run_command(lambda: cli.run("train", __doc__))
