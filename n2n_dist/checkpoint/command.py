"""Command line of `checkpoints`: list, verify and export those of a run; the run folder is not changed."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from n2n_dist.checkpoint import format as files
from n2n_dist.commands import command
from n2n_dist.errors import StorageError, UserError

NOT_COMMITTED = {
    ".tmp": "unfinished: being written, or the run died in it",
    ".old": "being removed",
    ".damaged": "damaged, quarantined by a start",
}
"""State of a folder by its suffix."""


def show(run_dir: Path) -> None:
    """Print the checkpoints of a run, newest first: samples, size, who wrote it, and whether its bytes are unchanged.

    Raises:
        UserError: there is none, or one is damaged.

    """
    folder = _folder(run_dir)
    damaged: list[Path] = []
    start = ""  # of the run, when the same command is given
    print(f"{'checkpoint':22}{'samples':>14}{'MiB':>9}  {'written by':20}{'best dB':>8}  state")
    for path in sorted(folder.glob("step-*"), reverse=True):
        columns = f"{'':14}{_mebibytes(path):9.1f}  {'':20}{'':8}"
        if path not in files.list_checkpoints(folder):
            state = NOT_COMMITTED.get(path.suffix, "no checkpoint") if path.exists() else "removed meanwhile"
        else:
            try:
                manifest = files.read_manifest(path)
                run, ranks = manifest.state, manifest.world_size
                best = f"{run.best:.2f}" if run.best is not None else ""
                by = manifest.backend if ranks == 1 else f"{manifest.backend}, {ranks} ranks"
                columns = f"{run.samples_seen:14,}{_mebibytes(path):9.1f}  {by:20}{best:>8}"
                files.verify(path, manifest.files)
                state = "good" if start else "good: the run continues here"
                start = start or f"continues from {path.name}"
            except UserError:
                state = "of another version of n2n_dist"
                start = start or f"is refused, because {path.name} is of another version of n2n_dist"
            except files.DAMAGE as error:
                if path.exists():
                    state = f"damaged: {error}"
                    damaged.append(path)
                else:  # the run has made room for newer ones
                    state = "removed meanwhile"
        print(f"{path.name:22}{columns}  {state}")
    if damaged:
        start = start or "is refused, because none is good: give a new run.dir"
        raise UserError(f"{damaged[0]}: damaged; the next start {start}")


def export(run_dir: Path, step: int, weights: Path) -> None:
    """Write the moving average of one checkpoint as weights for inference.

    Raises:
        UserError: no such checkpoint, it is damaged, or `weights` is there already or no .safetensors file.
        StorageError: `weights` cannot be written.

    """
    folder = _folder(run_dir)
    if weights.suffix != ".safetensors":
        raise UserError(f"{weights}: weights are written as .safetensors; give such a name")
    if weights.exists():
        raise UserError(f"{weights}: exists already; remove it or choose another")
    path = files.step_folder(folder, step)
    if path not in (there := files.list_checkpoints(folder)):
        steps = ", ".join(str(int(other.name[5:])) for other in there)
        raise UserError(f"--export {step}: no checkpoint of that step in {folder}; there are {steps or 'none'}")
    try:
        files.verify(path, files.read_manifest(path).files)
    except files.DAMAGE as error:
        raise UserError(f"{path}: damaged ({error}); export another step") from None
    try:
        files.export(path, weights)
    except OSError as error:
        raise StorageError(f"{weights}: cannot be written ({error.strerror}); choose another path") from None


def _folder(run_dir: Path) -> Path:
    folder = run_dir / "checkpoints"
    if not any(folder.glob("step-*")):
        raise UserError(f"{run_dir}: no checkpoints there; give the folder of a run (run.dir)")
    return folder


def _mebibytes(folder: Path) -> float:
    size = 0
    with contextlib.suppress(OSError):  # the run may rename or remove it meanwhile; or it is a file
        size = sum(path.stat().st_size for path in folder.iterdir())
    return size / 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `checkpoints`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--export", nargs=2, metavar=("STEP", "WEIGHTS"), help="write one as a .safetensors file")


def run(arguments: argparse.Namespace) -> None:
    """List the checkpoints of a run, or export one.

    Raises:
        UserError: as `show` and `export`, or the step is not a number.
        StorageError: as `export`.

    """
    if arguments.export is None:
        show(arguments.run)
        return
    step, weights = arguments.export
    if not step.isdecimal():
        raise UserError(f"--export {step}: not a step; the list without --export has them")
    export(arguments.run, int(step), Path(weights))
    print(f"next: {command('denoise', '--run', weights, 'NOISY_FOLDER', 'DENOISED_FOLDER')}")
