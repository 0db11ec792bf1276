"""List, verify and export the checkpoints of a run; nothing in it is changed.

python -m n2n_dist.training.inspect_checkpoints RUN                                     what is there, and is it whole
python -m n2n_dist.training.inspect_checkpoints RUN --export STEP weights.safetensors   weights for launch/denoise.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import safetensors
import torch.distributed.checkpoint as dcp

from n2n_dist.errors import Refusal, run_command
from n2n_dist.model.resunet import ModelSettings, ResUNet
from n2n_dist.model.weights import save_model
from n2n_dist.training.checkpoint import DAMAGE, committed, verify


def show(run_dir: Path) -> None:
    """Print the checkpoints of a run, newest first, what each holds, and whether its bytes are those that were written.

    Raises:
        Refusal: there is none, or one is damaged.

    """
    folder = _folder(run_dir)
    damaged: list[Path] = []
    start = ""
    """What the next start does."""
    print(f"{'checkpoint':22}{'samples':>14}{'MiB':>9}{'ranks':>7}{'best dB':>9}  state")
    for path in sorted(folder.glob("step-*"), reverse=True):
        columns = f"{'':14}{_mebibytes(path):9.1f}{'':7}{'':9}"
        if path not in committed(folder):
            aside = path.suffix == ".damaged"
            state = "damaged, set aside by a start" if aside else "unfinished: being written, or the run died in it"
        else:
            try:
                progress, ranks = verify(path)
                best = f"{progress.best:9.2f}" if progress.best is not None else f"{'':9}"
                columns = f"{progress.samples_seen:14,}{_mebibytes(path):9.1f}{ranks:7}{best}"
                state = "good" if start else "good: the run continues here"
                start = start or f"continues from {path.name}"
            except Refusal:
                state = "of another version of n2n_dist"
                start = start or f"is refused, because {path.name} is of another version of n2n_dist"
            except DAMAGE as error:
                state = f"damaged: {error}"
                damaged.append(path)
        print(f"{path.name:22}{columns}  {state}")
    if damaged:
        start = start or "is refused, because none is good: give a new run.dir"
        raise Refusal(f"{damaged[0]}: damaged; the next start {start}")


def export(run_dir: Path, step: int, weights: Path) -> None:
    """Write the moving average of one checkpoint as weights for inference.

    Raises:
        Refusal: no such checkpoint, it is damaged, or `weights` is there already or no .safetensors file.

    """
    folder = _folder(run_dir)
    if weights.suffix != ".safetensors":
        raise Refusal(f"{weights}: weights are written as .safetensors; give such a name")
    if weights.exists():
        raise Refusal(f"{weights}: exists already; remove it or choose another")
    path = folder / f"step-{step:08d}"
    if path not in (there := committed(folder)):
        steps = ", ".join(str(int(other.name[5:])) for other in there)
        raise Refusal(f"--export {step}: no checkpoint of that step in {folder}; there are {steps or 'none'}")
    try:
        identity = verify(path)[0].identity
    except DAMAGE as error:
        raise Refusal(f"{path}: damaged ({error}); export another step") from None
    settings = {key.removeprefix("model."): value for key, value in identity.items() if key.startswith("model.")}
    ema = ResUNet(ModelSettings(**settings), identity["data.crop"])
    dcp.load({"ema": ema.state_dict()}, checkpoint_id=path, no_dist=True)
    try:
        save_model(weights, ema)
    except (OSError, safetensors.SafetensorError) as error:
        raise Refusal(f"{weights}: cannot be written ({error}); choose another place") from None


def _folder(run_dir: Path) -> Path:
    folder = run_dir / "checkpoints"
    if not any(folder.glob("step-*")):
        raise Refusal(f"{run_dir}: no checkpoints there; give the folder of a run (run.dir)")
    return folder


def _mebibytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 2**20


def main() -> None:
    """Parse the command line and list or export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--export", nargs=2, metavar=("STEP", "WEIGHTS"), help="write one as a .safetensors file")
    arguments = parser.parse_args()
    if arguments.export is None:
        show(arguments.run)
        return
    step, weights = arguments.export
    if not step.isdecimal():
        raise Refusal(f"--export {step}: not a step; the list without --export has them")
    export(arguments.run, int(step), Path(weights))
    print(f"next: python launch/denoise.py --run {weights} NOISY_FOLDER DENOISED_FOLDER")


if __name__ == "__main__":
    run_command(main)
