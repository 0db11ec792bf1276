"""Checkpoints: every rank writes its share, a manifest with digests commits them, and damage is noticed.

A checkpoint is a folder `step-N` in PyTorch's distributed format with float32 weights, their moving average
and the optimiser's moments, and `manifest.json`. There is no RNG state: order and noise are functions of
`samples_seen`. A folder without a manifest was never finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from n2n_dist.errors import Refusal
from n2n_dist.training.backend import Backend

MANIFEST = "manifest.json"
FORMAT = 1
DAMAGE = (OSError, ValueError, KeyError, TypeError)
"""What comes of reading a manifest or file that is not as it was written."""
warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is no reason to warn


@dataclass
class CheckpointSettings:
    """When a checkpoint is written, and how many are kept."""

    every: int = 1000
    """Steps between two checkpoints; one is always written at the end."""
    minutes: float = 10.0
    """Minutes after which one is written anyway."""
    keep: int = 2
    """Newest checkpoints that are kept, 2 or more: the newest one may be found damaged."""

    def __post_init__(self) -> None:
        if self.every < 1 or not self.minutes > 0:
            raise Refusal(f"checkpoint.every {self.every}, checkpoint.minutes {self.minutes}: must be above 0")
        if self.keep < 2:
            raise Refusal(f"checkpoint.keep {self.keep}: must be 2 or more, because the newest may be found damaged")


@dataclass
class Progress:
    """Where the run stands, and what it is a run of."""

    step: int
    """Optimiser steps done."""
    samples_seen: int
    """Samples the run has seen: the whole state of the data."""
    best: float | None
    """Best validation PSNR so far, in dB."""
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


class Checkpoints:
    """The checkpoints of a run folder. All ranks call every method."""

    def __init__(self, folder: Path, settings: CheckpointSettings, backend: Backend) -> None:
        self.folder = folder
        self.settings = settings
        self.backend = backend

    def save(self, model: nn.Module, ema: nn.Module, optimizer: Any, progress: Progress) -> None:
        """Write and commit one checkpoint, then remove those beyond `keep`.

        The folder gets its name only after all ranks are done and all digests are on the disk.
        """
        final = self.folder / f"step-{progress.step:08d}"
        partial = final.with_suffix(".tmp")
        self.backend.on_main(lambda: _empty(partial))
        writer = dcp.FileSystemWriter(partial)
        try:
            dcp.save(_state(model, ema, optimizer), storage_writer=writer, no_dist=not dist.is_initialized())
        except CheckpointException as error:  # not an Exception, and raised on all ranks
            raise Refusal(f"{partial}: cannot be written ({error}); make room or use another run.dir") from None
        digests: list[dict[str, str]] = [{}] * self.backend.world_size
        mine = {path.name: _sha256(path) for path in sorted(partial.glob(f"__{self.backend.rank}_*"))}
        if dist.is_initialized():
            dist.all_gather_object(digests, mine)
        else:
            digests = [mine]

        def commit() -> None:
            files = {name: digest for part in digests for name, digest in part.items()}
            files[".metadata"] = _sha256(partial / ".metadata")
            content = {"progress": asdict(progress), "world_size": self.backend.world_size, "files": files}
            manifest = {"format": FORMAT, "sha256": _digest(content), **content}
            _write_synced(partial / MANIFEST, json.dumps(manifest, indent=1))
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _sync_folder(self.folder)
            for old in committed(self.folder)[self.settings.keep :]:
                shutil.rmtree(old)

        self.backend.on_main(commit)

    def newest(self, warn: Callable[[str], None]) -> tuple[Path, Progress] | None:
        """Find the newest checkpoint whose bytes are those that were written; damaged ones are set aside.

        Returns:
            Its folder and progress, or None if there is no checkpoint at all.

        Raises:
            Refusal: there are checkpoints, and all are damaged, or of another version of this package.

        """

        def choose() -> tuple[Path, Progress] | None:
            for path in committed(self.folder):
                try:
                    return path, verify(path)[0]
                except DAMAGE as error:
                    aside = path.with_name(path.name + ".damaged")
                    shutil.rmtree(aside, ignore_errors=True)
                    path.rename(aside)
                    warn(f"checkpoint {path.name} is damaged ({error}); set aside as {aside.name}")
            if any(self.folder.glob("step-*.damaged")):
                raise Refusal(f"{self.folder}: all checkpoints are damaged; start in a new run.dir")
            return None

        return self.backend.on_main(choose)

    def load(self, path: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Read a verified checkpoint into model, average and optimiser, in place and before they are wrapped.

        Raises:
            Refusal: the checkpoint does not hold these tensors.

        """
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                moments = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
                step = torch.tensor(0.0, device=parameter.device if group["fused"] else "cpu")
                optimizer.state[parameter] = {"step": step, **moments}
        try:  # fills the tensors in place
            dcp.load(_state(model, ema, optimizer), checkpoint_id=path, no_dist=not dist.is_initialized())
        except (CheckpointException, RuntimeError, ValueError) as error:
            raise Refusal(f"{path}: does not fit this network ({error}); start in a new run.dir") from None


def committed(folder: Path) -> list[Path]:
    """List the finished checkpoints in a folder, newest first."""
    folders = [path for path in folder.glob("step-*") if path.name[5:].isdecimal() and (path / MANIFEST).is_file()]
    return sorted(folders, reverse=True)


def verify(path: Path) -> tuple[Progress, int]:
    """Return progress and world size of a checkpoint, whose bytes must be those that were written.

    Raises:
        Refusal: it is of another version of this package.
        OSError, ValueError, KeyError, TypeError: it is damaged (`DAMAGE`).

    """
    manifest = json.loads((path / MANIFEST).read_text())
    if manifest.pop("format") != FORMAT:
        raise Refusal(f"{path}: written by another version of n2n_dist; continue it with that, or use a new run.dir")
    if manifest.pop("sha256") != _digest(manifest):
        raise ValueError(f"the content of {MANIFEST} has changed")
    for name, digest in manifest["files"].items():
        if _sha256(path / name) != digest:
            raise ValueError(f"the bytes of {name} have changed")
    return Progress(**manifest["progress"]), manifest["world_size"]


def describe_differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Name the keys whose values differ, with both values; an empty text if none does."""
    keys = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    return "; ".join(f"{key} is {there.get(key)} there and {here.get(key)} here" for key in keys)


def _state(model: nn.Module, ema: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Name every tensor of a checkpoint; the optimiser's by the parameter they belong to."""
    moments = {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}
    return {"model": model.state_dict(), "ema": ema.state_dict(), "optimizer": moments}


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
