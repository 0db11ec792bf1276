"""Format of a checkpoint: a folder `step-N` of safetensors files and a manifest, and how it is committed and read.

    step-00001000/
      manifest.json              `Manifest`: state of the run, network, and for every file its digest and its tensors
      rank-0000.safetensors      the tensors of rank 0, whole, float32
      rank-0001.safetensors      ...

The tensors are the weights (`model.*`), their moving average (`ema.*`) and AdamW's moments
(`optimizer.PARAMETER.exp_avg` and `.exp_avg_sq`), under the same names for every backend and number of ranks. There is
no RNG state: order and noise are functions of `samples_seen`. No file is a pickle, which could run code when read.

Other folders: `step-N.tmp` is being written or was never finished, `step-N.old` is being removed, `step-N.damaged` was
quarantined by a start. A program may be killed between any two lines: `recover` completes or removes what is left.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch

from n2n_dist import models
from n2n_dist.errors import UserError, one_line
from n2n_dist.files import fsync, remove_temporaries, sha256, write_json
from n2n_dist.models.weights import save_model, write_tensors
from n2n_dist.version import __version__

MANIFEST = "manifest.json"
FORMAT = 9
"""Counted up when the files change, or a continued run would see other crops, noise, loss or score of a validation."""
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""Errors of a manifest or file whose content is not as it was written."""


@dataclass
class TrainState:
    """Position of a run, and its identity."""

    step: int
    """Optimiser steps done."""
    samples_seen: int
    """Samples that the run has seen, over all ranks: the only state of the data."""
    best: float | None
    """Best score of a validation so far, in dB."""
    steps: int
    """train.steps when the checkpoint was written."""
    data: str
    """Fingerprint of the index's content."""
    identity: dict[str, Any]
    """The settings that make the run what it is, by key."""
    best_step: int = 0
    """The step of that validation."""
    bad_samples: int = 0
    """Samples that could not be read and were replaced, over all ranks."""
    owes_validation: bool = False
    """A signal cut the validation of this step short; the run makes up for it when it is continued."""

    @classmethod
    def new(cls, steps: int, data: str, identity: dict[str, Any]) -> TrainState:
        """Return the state before the first step."""
        return cls(step=0, samples_seen=0, best=None, steps=steps, data=data, identity=identity)

    def advance(self, samples: int) -> None:
        """Count one step of so many samples."""
        self.step += 1
        self.samples_seen += samples


@dataclass
class TensorFile:
    """Contents of one safetensors file."""

    sha256: str
    tensors: list[str]
    """Names of the tensors that it holds, whole."""


@dataclass
class Manifest:
    """Contents of manifest.json, besides the format and the version that wrote it."""

    state: TrainState
    world_size: int
    """Ranks that wrote it."""
    backend: str
    """Name of the backend that connected them, such as DDP or ZeRO-1."""
    network: dict[str, Any]
    """Metadata from which `n2n_dist.models.build` builds the network."""
    files: dict[str, TensorFile]
    """All other files, by name."""


def make_partial(partial: Path) -> None:
    """Make the empty folder `step-N.tmp` of a save."""
    partial.parent.mkdir(exist_ok=True)  # not its parents: a run folder that was removed stays removed
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()


def write_part(folder: Path, rank: int, tensors: dict[str, torch.Tensor]) -> dict[str, TensorFile]:
    """Write the tensors of one rank to the disk.

    Args:
        folder: of the checkpoint, not yet committed.
        rank: of this process.
        tensors: by name, contiguous and on the CPU.

    Returns:
        The file's entry in the manifest.

    Raises:
        OSError: it cannot be written.

    """
    path = folder / f"rank-{rank:04d}.safetensors"
    write_tensors(path, tensors)
    fsync(path)
    return {path.name: TensorFile(sha256(path), list(tensors))}


def step_folder(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return folder / f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """List the finished checkpoints in a folder, newest first; one without its manifest has been damaged since."""
    folders = [path for path in folder.glob("step-*") if path.name[5:].isdecimal() and path.is_dir()]
    return sorted(folders, reverse=True)


def commit(partial: Path, manifest: Manifest) -> None:
    """Give a folder, all of whose other files are on the disk, its manifest and its name."""
    content = {"format": FORMAT, "version": __version__, **asdict(manifest)}
    write_json(partial / MANIFEST, content | {"sha256": _digest(content)}, indent=1)  # from here on it is complete
    _publish(partial)


def recover(folder: Path) -> None:
    """Complete or remove the unfinished files of a run that was killed; only for the run that holds the folder."""
    remove_temporaries(folder.parent)
    for partial in folder.glob("step-*.tmp"):
        if (partial / MANIFEST).is_file():
            _publish(partial)
        else:
            shutil.rmtree(partial)
    for old in folder.glob("step-*.old"):
        shutil.rmtree(old)


def remove(path: Path) -> None:
    """Remove a checkpoint; a part of it is never taken for a whole one."""
    old = path.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    shutil.rmtree(old, ignore_errors=True)  # on NFS another program may read it


def prune(folder: Path, keep: int, best_step: int) -> None:
    """Remove all checkpoints but the `keep` newest and that of `best_step`."""
    best = step_folder(folder, best_step)
    for old in list_checkpoints(folder)[keep:]:
        if old != best:
            remove(old)


def quarantine(path: Path) -> Path:
    """Rename a damaged checkpoint so that no start takes it, and return its new path."""
    aside = path.with_suffix(".damaged")
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises:
        UserError: its format or network is of another version of n2n_dist.
        OSError, ValueError, KeyError, TypeError, AttributeError: it is damaged (`DAMAGE`).

    """
    content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    number, version = content["format"], content.get("version")
    if number not in READERS:
        raise UserError(
            f"{path}: checkpoint format {number}, written by n2n_dist {version or 'before 0.2'}; n2n_dist "
            f"{__version__} reads {', '.join(map(str, READERS))}: continue with the version that wrote it, or use a "
            "new run.dir"
        )
    if content.pop("sha256") != _digest(content):
        raise ValueError(f"the content of {MANIFEST} has changed")
    manifest = READERS[number](content)
    try:
        models.check_version(manifest.network)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return manifest


def _read_9(content: dict[str, Any]) -> Manifest:
    del content["format"], content["version"]
    if outside := [name for name in content["files"] if Path(name).name != name]:
        raise ValueError(f"the file {outside[0]} is not in its folder")
    files = {name: TensorFile(**file) for name, file in content["files"].items()}
    return Manifest(**content | {"state": TrainState(**content["state"]), "files": files})


READERS: dict[int, Callable[[dict[str, Any]], Manifest]] = {FORMAT: _read_9}
"""The formats that can be read: a function from the JSON content for each."""


def verify(path: Path, files: dict[str, TensorFile]) -> None:
    """Compare the digests of some files of a checkpoint with those of its manifest.

    Raises:
        OSError, ValueError: one is missing, or its bytes are not those that were written.

    """
    for name, file in files.items():
        if sha256(path / name) != file.sha256:
            raise ValueError(f"the bytes of {name} have changed")


def load(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Fill tensors, by name, from a verified checkpoint; each is copied once, from the mapped file.

    Raises:
        UserError: the checkpoint does not hold tensors of these names, shapes and types.

    """
    missing = set(tensors)
    for file, content in read_manifest(path).files.items():
        with safetensors.safe_open(path / file, "pt") as opened:
            for name in missing.intersection(content.tensors, opened.keys()):
                stored, target = opened.get_tensor(name), tensors[name].detach()
                if (stored.shape, stored.dtype) != (target.shape, target.dtype):
                    raise _misfit(path, f"{name} is {_describe(stored)} there and {_describe(target)} here")
                target.copy_(stored)
                missing.remove(name)
    if missing:
        raise _misfit(path, f"{min(missing)} is missing there")


def export(path: Path, weights: Path) -> None:
    """Write the moving average of a verified checkpoint as weights for inference.

    Raises:
        OSError: they cannot be written.

    """
    manifest = read_manifest(path)
    ema = models.build(manifest.network)
    load(path, {f"ema.{name}": tensor for name, tensor in ema.state_dict().items()})
    save_model(weights, ema, manifest.state.step)


def reason(error: BaseException) -> str:
    """Return an error's reason on one line, without the name of a file."""
    return error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)


def describe_differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Name the keys whose values differ, with both values; an empty text if none does."""
    keys = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    return "; ".join(f"{key} is {there.get(key)} there and {here.get(key)} here" for key in keys)


def _publish(partial: Path) -> None:
    """Rename a complete checkpoint to its final name; an older one of the same step is removed only then."""
    final = partial.with_suffix("")
    if final.exists():
        shutil.rmtree(final.with_suffix(".old"), ignore_errors=True)
        final.rename(final.with_suffix(".old"))
    partial.rename(final)
    fsync(final.parent)
    shutil.rmtree(final.with_suffix(".old"), ignore_errors=True)


def _misfit(path: Path, why: str) -> UserError:
    return UserError(f"{path}: does not fit this network ({why}); start in a new run.dir")


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
