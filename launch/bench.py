"""Measure speed and memory on this machine, as medians of ratios taken in turns, and what noisy targets cost.

    python launch/bench.py --loop --scaling --precision --denoise --checkpoint --data [key=value ...]
    python launch/bench.py --precision --record --config configs/gaussian25.yaml [key=value ...]
    python launch/bench.py --gap --seeds 3 --config configs/gaussian25.yaml [key=value ...]

--loop        the training loop against a bare forward/backward/step, and the share of time waiting for data
--scaling     images a second of 2 DDP ranks of one thread against 1 (CPU)
--precision   a step with each of bf16, channels_last and compile on and off
--denoise     peak memory of denoising a 24-megapixel image
--checkpoint  how long a save holds the training and slows it down, memory, digests and loads (CPU, 7 GB of memory)
--data        crops a second of the loader against webdataset and a folder of PNG files, encodings, memory, building,
              10^8 samples
--gap         trains with noisy and with clean targets, for several noises and losses: a table and a plot

Without --config it is configs/demo.yaml, with a larger network for --precision and --denoise, and larger crops for
--data.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from n2n_dist.errors import run_command

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are no part of the installed package
if TYPE_CHECKING:
    from benchmarks.figures import Figure

DEFAULTS = {
    "precision": ["model.width=64", "model.depths=[2,2,2,2]", "data.batch=4"],
    "denoise": ["model.width=64", "model.depths=[2,2,2,2]"],
    "data": ["data.crop=128", "data.batch=32"],
}
"""Settings over configs/demo.yaml, for parts that want others."""


def parts(arguments: argparse.Namespace) -> dict[str, Callable[[], "Iterator[Figure]"]]:
    """Return the benchmarks by name."""
    from benchmarks import checkpoint, data, gap, training

    config, rounds = arguments.config or "demo", arguments.rounds

    def settings(part: str) -> list[str]:
        return [*([] if arguments.config else DEFAULTS.get(part, [])), *arguments.settings]

    return {
        "loop": lambda: training.loop(config, settings("loop"), rounds),
        "scaling": lambda: training.scaling(config, settings("scaling"), rounds),
        "precision": lambda: training.precision(config, settings("precision"), rounds),
        "denoise": lambda: training.denoise(config, settings("denoise"), arguments.megapixels),
        "checkpoint": lambda: checkpoint.checkpoint(config, settings("checkpoint"), rounds),
        "data": lambda: data.data(config, settings("data"), arguments.images, rounds),
        "gap": lambda: gap.gap(config, settings("gap"), arguments.seeds, arguments.output),
    }


def main() -> None:
    """Parse the command line and run the benchmarks that it names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("loop", "scaling", "precision", "denoise", "checkpoint", "data", "gap")
    for name in names:
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--record", action="store_true", help="append the figures to benchmarks/results/PART.csv")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each comparison (%(default)s)")
    parser.add_argument("--megapixels", type=float, default=24, help="image of --denoise (%(default)s)")
    parser.add_argument("--images", type=Path, help="photographs for --data (default: mosaics of the demo tiles)")
    parser.add_argument("--config", help="YAML file or name of a configuration (demo)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind for --gap (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/gap"), help="folder of --gap (%(default)s)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that go over the file's")
    arguments = parser.parse_intermixed_args()
    chosen = [name for name in names if getattr(arguments, name)]
    if not chosen:
        parser.print_help()
        return

    from benchmarks.figures import record

    benchmarks = parts(arguments)
    for name in chosen:
        print(f"{name}:", flush=True)
        figures = []
        for figure in benchmarks[name]():
            print(f"  {figure}", flush=True)
            figures.append(figure)
        if arguments.record:
            given = [word for word in sys.argv[1:] if word != "--record" and word.removeprefix("--") not in names]
            command = shlex.join(["python", "launch/bench.py", f"--{name}", *given])
            record(ROOT / "benchmarks" / "results" / f"{name}.csv", figures, command)


if __name__ == "__main__":
    run_command(main)
