"""Measure speed and memory on this machine, as medians of ratios taken in turns, and what noisy targets cost.

    python launch/bench.py --loop --scaling --precision --denoise --checkpoint --data [key=value ...]
    python launch/bench.py --gap --seeds 3 --config configs/gaussian25.yaml [key=value ...]

--loop        the training loop against a bare forward/backward/step, and the share of time waiting for data
--scaling     images a second of 2 DDP ranks of one thread against 1 (CPU)
--precision   a step with each of bf16, channels_last and compile on and off
--denoise     peak memory of denoising a 24-megapixel image
--checkpoint  how long a save holds the training and slows it down, memory, digests and loads (CPU, 7 GB of memory)
--data        crops a second of the loader against webdataset and a folder of PNG files, encodings, memory, building,
              10^8 samples
--gap         trains with noisy and with clean targets, for several noises and losses: a table and a plot
"""

import argparse
import sys
from pathlib import Path

from n2n_dist.errors import run_command


def main() -> None:
    """Parse the command line and run the benchmarks that it names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("loop", "scaling", "precision", "denoise", "checkpoint", "data", "gap"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each comparison (%(default)s)")
    parser.add_argument("--width", type=int, default=64, help="width of the network (%(default)s)")
    parser.add_argument("--crop", type=int, default=64, help="crop of --precision in pixels (%(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="batch of --precision (%(default)s)")
    parser.add_argument("--megapixels", type=float, default=24, help="image of --denoise (%(default)s)")
    parser.add_argument("--images", type=Path, help="photographs for --data (default: mosaics of the demo tiles)")
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"), help="of the runs of --gap")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind for --gap (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/gap"), help="folder of --gap (%(default)s)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings over configs/demo.yaml, or --config")
    arguments = parser.parse_intermixed_args()

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks are no part of the installed package
    from benchmarks import checkpoint, data, gap, training

    if arguments.loop:
        training.loop(arguments.rounds, arguments.settings)
    if arguments.scaling:
        training.scaling(arguments.rounds, arguments.settings)
    if arguments.precision:
        training.precision(arguments.rounds, arguments.width, arguments.crop, arguments.batch)
    if arguments.denoise:
        training.denoise(arguments.megapixels, arguments.width)
    if arguments.checkpoint:
        checkpoint.checkpoint(arguments.rounds)
    if arguments.data:
        data.data(arguments.rounds, arguments.images)
    if arguments.gap:
        gap.gap(arguments.config, arguments.settings, arguments.seeds, arguments.output)


if __name__ == "__main__":
    run_command(main)
