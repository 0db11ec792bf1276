"""The sub-commands of `n2n-dist`: their arguments, and the function that each calls.

Nothing slow is imported before the arguments are parsed: `train` notes signals before torch, whose import takes
seconds in which a signal would kill, and `--help` answers at once.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import n2n_dist
from n2n_dist import signals
from n2n_dist.commands import config_names
from n2n_dist.errors import UserError, run_command


def train(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Train a denoiser, or continue a run.

    n2n-dist train --config demo [key=value ...]                                          one process
    accelerate launch -m n2n_dist train --config demo [key=value ...]                     all GPUs of this machine
    accelerate launch --config_file FILE --num_processes 4 -m n2n_dist train --config ...

    The same command starts a run and continues it; `key=value` settings go over the file's.
    """
    add_train_arguments(parser)
    arguments = parser.parse_intermixed_args(argv)
    if not arguments.dry_run:
        signals.install()  # torch is imported only now

    from n2n_dist.config import load
    from n2n_dist.train import train

    train(load(arguments.config, arguments.settings, leave_error=not arguments.dry_run), arguments.dry_run)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `train`."""
    parser.add_argument("--config", metavar="FILE", help=f"YAML file, or one of {', '.join(config_names())}")
    parser.add_argument("--dry-run", action="store_true", help="print world, batch, memory and time, and stop")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that go over the file's")


def denoise(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Denoise a file or a folder of images of any size, every frame of a stack; the bit depth is kept.

    n2n-dist denoise --run runs/gaussian25 noisy/ denoised/
    n2n-dist denoise --run best.safetensors frame.tif clean.tif --black 256 --white 4095
    """
    parser.add_argument("--run", type=Path, required=True, help="run folder or .safetensors file")
    from n2n_dist.images.readers import format_names

    parser.add_argument("source", type=Path, help=f"image, or folder of images: {format_names()}")
    parser.add_argument("destination", type=Path, help="file or folder to write")
    parser.add_argument("--black", type=float, help="value that means no light, as when the shards were built (0)")
    parser.add_argument("--white", type=float, help="value that means full light (the type's largest)")
    arguments = parser.parse_args(argv)

    from n2n_dist.inference.denoise import denoise_files

    denoise_files(arguments.run, arguments.source, arguments.destination, arguments.black, arguments.white)


def evaluate(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Measure trained weights on clean images: PSNR, SSIM, LPIPS.

    n2n-dist evaluate --run runs/gaussian25 --images Kodak/
    n2n-dist evaluate --run runs/poisson30 --images Kodak/ --noise poisson --level 30
    accelerate launch --config_file FILE -m n2n_dist evaluate --run ... --images ...
    """
    parser.add_argument("--run", type=Path, required=True, help="run folder or .safetensors file")
    parser.add_argument("--images", type=Path, required=True, help="folder of clean images")
    parser.add_argument("--noise", default="gaussian", help="a noise.name of the configurations (%(default)s)")
    parser.add_argument("--level", type=float, help="sigma in 1/255 of white, photons, ... (the default of that noise)")
    parser.add_argument("--output", type=Path, help="folder for scores.csv and comparison.png (beside the weights)")
    arguments = parser.parse_args(argv)

    from n2n_dist.inference.evaluate import evaluate, table
    from n2n_dist.noise import noise_of_level

    noise = noise_of_level(arguments.noise, arguments.level)
    run_dir = arguments.run.parent if arguments.run.is_file() else arguments.run
    name = f"{arguments.images.resolve().name}-n2n2018-{noise.name}{noise.level:g}"
    output = arguments.output or run_dir / "evaluation" / name
    rows = evaluate(arguments.run, arguments.images, output, noise)
    if rows is not None:
        print(table(rows))
        print(f"written: scores.csv and comparison.png in {output}")


def build(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    r"""Make shards from images.

    n2n-dist build photos/ shards/mine                      every frame of every file is a scene
    n2n-dist build scenes/ shards/mine --captures folder    every folder is a scene of two or more noisy captures
    n2n-dist build stacks/ shards/mine --captures stack     every file is a scene, its frames are the captures
    n2n-dist build films/ shards/mine --captures stack --frames consecutive     neighbouring frames are pairs
    n2n-dist build all/ shards/mine --captures pattern '(?P<scene>.+)_(?P<capture>\d)' --clean '(?P<scene>.+)_gt'
    n2n-dist build photos/ shards/mine --part 3/100         the third of 100 parts, for job arrays; then:
    n2n-dist index shards/mine                              merge the parts
    """
    from n2n_dist.building.command import add_build_arguments, run_build

    add_build_arguments(parser)
    run_build(parser.parse_args(argv))


def index(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Index tars written by webdataset or tar, or merge the parts of a build.

    n2n-dist index shards/mine
    """
    from n2n_dist.building.command import add_index_arguments, run_index

    add_index_arguments(parser)
    run_index(parser.parse_args(argv))


def verify(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Compare every tar of a folder of shards with its digest.

    n2n-dist verify shards/mine
    """
    from n2n_dist.building.command import add_verify_arguments, run_verify

    add_verify_arguments(parser)
    run_verify(parser.parse_args(argv))


def audit(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Report on shards: digests, clipping, noise, and what breaks Noise2Noise between captures.

    n2n-dist audit shards/mine                        a table, and shards/mine/audit/{audit.json,audit.png}
    n2n-dist audit shards/mine --output reports/mine
    """
    from n2n_dist.audit.command import add_arguments, run

    add_arguments(parser)
    run(parser.parse_args(argv))


def checkpoints(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """List the checkpoints of a run and verify their bytes, or export one as weights.

    n2n-dist checkpoints runs/mine
    n2n-dist checkpoints runs/mine --export 1000 weights.safetensors
    """
    from n2n_dist.checkpoint.command import add_arguments, run

    add_arguments(parser)
    run(parser.parse_args(argv))


COMMANDS: dict[str, Callable[[argparse.ArgumentParser, Sequence[str]], None]] = {
    "train": train,
    "denoise": denoise,
    "evaluate": evaluate,
    "build": build,
    "index": index,
    "verify": verify,
    "audit": audit,
    "checkpoints": checkpoints,
}


def run(name: str, description: str | None = None, argv: Sequence[str] | None = None) -> None:
    """Run a sub-command; without arguments print its help.

    Args:
        name: key of COMMANDS.
        description: for the help, of a script that calls it; default: the function's.
        argv: its arguments; default: those of this process.

    Raises:
        UserError: input or settings that cannot be used.

    """
    argv = sys.argv[1:] if argv is None else argv
    text = description or inspect.cleandoc(COMMANDS[name].__doc__ or "")
    parser = argparse.ArgumentParser(
        prog=None if description else f"n2n-dist {name}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    COMMANDS[name](parser, argv or ["--help"])


def main() -> None:
    """Run `n2n-dist COMMAND ARGUMENTS` and exit with its code."""
    run_command(lambda: _choose(sys.argv[1:]))


def _choose(argv: Sequence[str]) -> None:
    lines = [f"  {name:12} {(function.__doc__ or '').splitlines()[0]}" for name, function in COMMANDS.items()]
    usage = "\n".join(["usage: n2n-dist COMMAND ...", "", *lines, "", "n2n-dist COMMAND --help shows its arguments."])
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(usage)
    elif name == "--version":
        print(f"n2n-dist {n2n_dist.__version__}")
    elif name in COMMANDS:
        run(name, argv=rest)
    else:
        raise UserError(f"n2n-dist {name}: unknown command; known are {', '.join(COMMANDS)}")
