"""Checkpoints on the disk: what they hold, how they are committed, verified and exported.

A checkpoint is a folder `step-N` in PyTorch's distributed format: float32 weights (`model.*`), their moving average
(`ema.*`) and AdamW's moments (`optimizer.PARAMETER.exp_avg` and `.exp_avg_sq`), whichever backend and however many
ranks wrote it, and `manifest.json` with digests of all files. There is no RNG state: order and noise are functions of
`samples_seen`. Names of what is no checkpoint, or not any more: `step-N.tmp` is being written or was never finished,
`step-N.old` is being removed, `step-N.damaged` was set aside by a start. A program may be killed between any two lines:
`recover` puts in order what it left.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from n2n_dist import models
from n2n_dist.distributed.watchdog import peer_lost
from n2n_dist.errors import UserError, one_line
from n2n_dist.files import fsync, remove_temporaries, sha256, write_json
from n2n_dist.models.weights import save_model

MANIFEST = "manifest.json"
FORMAT = 8
"""Counted up when the files change, or a continued run would see other crops, noise, loss or score of a validation."""
NUMBERS = b"/data/0"
"""End of the name under which torch.save stores the numbers of a tensor."""
DAMAGE = (OSError, ValueError, KeyError, TypeError)
"""What comes of reading a manifest or file that is not as it was written."""
warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is no reason to warn


@dataclass
class TrainState:
    """Where the run stands, and what it is a run of."""

    step: int
    """Optimiser steps done."""
    samples_seen: int
    """Samples the run has seen: the whole state of the data."""
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
class Manifest:
    """What a checkpoint says of itself."""

    progress: TrainState
    world_size: int
    """Ranks that wrote it."""
    backend: str
    """What connected them, such as DDP or ZeRO-1."""
    network: dict[str, Any]
    """What builds the network again, see `n2n_dist.models.build`."""
    files: dict[str, str]
    """sha256 of every other file, by name."""


def named_tensors(
    model: nn.Module, ema: nn.Module, moments: Callable[[torch.Tensor], dict[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name every tensor of a checkpoint; the optimiser's by the parameter whose `moments` they are."""
    for part, module in (("model", model), ("ema", ema)):
        for name, tensor in module.state_dict().items():
            yield f"{part}.{name}", tensor
    for name, parameter in model.named_parameters():
        for key, tensor in moments(parameter).items():
            yield f"optimizer.{name}.{key}", tensor


def partition_by_size(sizes: dict[str, int], world_size: int) -> list[list[str]]:
    """Deal named sizes over ranks as evenly as whole tensors allow; a pure function, so that ranks need not ask.

    Each goes, largest first, to the rank that has least so far (longest processing time first, Graham 1969). No rank
    gets more than an even share and one tensor.

    Args:
        sizes: bytes by name.
        world_size: number of ranks.

    Returns:
        Names by rank.

    """
    shares: list[list[str]] = [[] for _ in range(world_size)]
    bytes_ = [0] * world_size
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = bytes_.index(min(bytes_))
        shares[rank].append(name)
        bytes_[rank] += sizes[name]
    return shares


class InPlaceReader(dcp.FileSystemReader):
    """Reads whole tensors straight to where they belong; PyTorch's own makes a copy first, in new memory each time."""

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors of a plan. The zip file that torch.save makes of each holds its numbers as they are.

        In it every content follows a header (PK 3 4, which ends with the size of what fills up the space after the
        name) and the name, and is followed by its size (PK 7 8).
        """
        for item in plan.items:
            info = self.storage_data[item.storage_index]
            target = planner.resolve_tensor(item).detach()
            direct = target.device.type == "cpu" and target.is_contiguous()
            tensor = target if direct else torch.empty(target.shape, dtype=target.dtype)
            numbers = tensor.view(-1).view(torch.uint8).numpy()
            with (Path(self.path) / info.relative_path).open("rb") as file:
                file.seek(info.offset)
                start = file.read(2048)
                name = start.index(NUMBERS)
                (fill,) = struct.unpack_from("<H", start, start.rindex(b"PK\3\4", 0, name) + 28)
                file.seek(info.offset + name + len(NUMBERS) + fill)
                if file.readinto(numbers) != len(numbers) or file.read(4) != b"PK\7\x08":
                    raise ValueError(f"{item.dest_index.fqn} is of another size or type there")
            if not direct:
                target.copy_(tensor)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def step_folder(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step stands."""
    return folder / f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """List the finished checkpoints in a folder, newest first; one without its manifest has been damaged since."""
    folders = [path for path in folder.glob("step-*") if path.name[5:].isdecimal() and path.is_dir()]
    return sorted(folders, reverse=True)


def commit(partial: Path, manifest: Manifest) -> None:
    """Give a folder, all of whose other files are on the disk, its manifest and its name."""
    content = asdict(manifest)
    write_json(partial / MANIFEST, {"format": FORMAT, "sha256": _digest(content), **content}, indent=1)  # now whole
    _publish(partial)


def recover(folder: Path) -> None:
    """Finish or remove what a run that died has left half done; for the start of a run, the only one in the folder."""
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


def quarantine(path: Path) -> Path:
    """Give a damaged checkpoint a name that no start looks for, and return it."""
    aside = path.with_suffix(".damaged")
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def read_manifest(path: Path) -> Manifest:
    """Return what a checkpoint says of itself.

    Raises:
        UserError: it is of another version of this package.
        OSError, ValueError, KeyError, TypeError: it is damaged (`DAMAGE`).

    """
    content = json.loads((path / MANIFEST).read_text())
    if content.pop("format") != FORMAT:
        raise UserError(f"{path}: written by another version of n2n_dist; continue it with that, or use a new run.dir")
    try:
        models.check_version(content["network"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if content.pop("sha256") != _digest(content):
        raise ValueError(f"the content of {MANIFEST} has changed")
    return Manifest(**content | {"progress": TrainState(**content["progress"])})


def verify(path: Path, files: dict[str, str]) -> None:
    """Compare the digests of some files of a checkpoint with those of its manifest.

    Raises:
        OSError, ValueError: one is missing, or its bytes are not those that were written.

    """
    for name, digest in files.items():
        if sha256(path / name) != digest:
            raise ValueError(f"the bytes of {name} have changed")


def load(path: Path, tensors: dict[str, torch.Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Fill tensors, by name, from a verified checkpoint; with a `group`, on all of its ranks.

    Raises:
        UserError: the checkpoint does not hold these tensors.

    """
    try:
        dcp.load(dict(tensors), storage_reader=InPlaceReader(path), process_group=group, no_dist=group is None)
    except (CheckpointException, RuntimeError, ValueError) as error:
        if peer_lost(error):
            raise
        raise UserError(f"{path}: does not fit this network ({reason(error)}); start in a new run.dir") from None


def export(path: Path, weights: Path) -> None:
    """Write the moving average of a verified checkpoint as weights for inference.

    Raises:
        OSError: they cannot be written.

    """
    manifest = read_manifest(path)
    ema = models.build(manifest.network)
    load(path, {f"ema.{name}": tensor for name, tensor in ema.state_dict().items()})
    save_model(weights, ema, manifest.progress.step)


def reason(error: BaseException) -> str:
    """Put an error on one line; of a failure on some ranks, that of the first."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def describe_differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Name the keys whose values differ, with both values; an empty text if none does."""
    keys = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    return "; ".join(f"{key} is {there.get(key)} there and {here.get(key)} here" for key in keys)


def _publish(partial: Path) -> None:
    """Give a whole checkpoint its name; one of the same step gives way only then."""
    final = partial.with_suffix("")
    if final.exists():
        shutil.rmtree(final.with_suffix(".old"), ignore_errors=True)
        final.rename(final.with_suffix(".old"))
    partial.rename(final)
    fsync(final.parent)
    shutil.rmtree(final.with_suffix(".old"), ignore_errors=True)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
