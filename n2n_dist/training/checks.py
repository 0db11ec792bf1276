"""Checks that refuse a run at its start, and those that stop it on all ranks at the same step."""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from n2n_dist.checkpoint.format import TrainState, describe_differences
from n2n_dist.checkpoint.run_folder import OWNER
from n2n_dist.commands import command
from n2n_dist.data.dataset import CropDataset, is_tolerated
from n2n_dist.data.sampler import RankOrder
from n2n_dist.distributed.backend import Backend
from n2n_dist.errors import UserError
from n2n_dist.models.weights import BEST, LAST
from n2n_dist.training.step_log import StepLog
from n2n_dist.version import __version__

SHARED_SECONDS = 20.0
"""How long a file of one machine may take to appear on another: a file server's clients remember what was not there."""


def check_machines(run_dir: Path, backend: Backend) -> None:
    """Refuse to start where a machine has other software, or not the run folder of the others; all ranks come here.

    Args:
        run_dir: already owned by this run.
        backend: of the run.

    Raises:
        UserError: names the machine.

    """
    if len(set(backend.hosts)) == 1:
        return
    if difference := other_software(backend.hosts, backend.all_gather_or_raise(None, _software())):
        raise UserError(difference)
    backend.run_on_all_ranks(lambda: _check_shared(run_dir) if backend.local_rank == 0 else None)


def other_software(hosts: Sequence[str], software: Sequence[str]) -> str | None:
    """Name the first machine whose software, described for each rank, is not that of rank 0."""
    for host, found in zip(hosts, software, strict=True):
        if found != software[0]:
            return f"{host}: has {found}, but {hosts[0]} has {software[0]}; install the same on all machines"
    return None


def _software() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return f"n2n_dist {__version__} (sources {digest.hexdigest()[:8]}) and torch {torch.__version__}"


def _check_shared(run_dir: Path) -> None:
    end = time.monotonic() + SHARED_SECONDS
    while not (run_dir / OWNER).exists():
        if time.monotonic() > end:
            raise UserError(f"run.dir {run_dir}: not the folder that rank 0 has; use one that all machines share")
        time.sleep(0.2)
    try:
        with tempfile.TemporaryFile(dir=run_dir):
            pass
    except OSError as error:
        raise UserError(f"run.dir {run_dir}: cannot be written ({error.strerror}); make it writable there") from None


def check_continuation(run_dir: Path, found: tuple[Path, TrainState] | None, wanted: TrainState) -> None:
    """Refuse to write over weights, and to continue a run as another one."""
    if not found:
        held = [name for name in (BEST, LAST) if (run_dir / name).exists()]
        if held:
            raise UserError(
                f"run.dir {run_dir}: holds a run with {held[0]}, and it has no checkpoint; choose another run.dir "
                f"(run.init={run_dir} starts from its weights)"
            )
        return
    path, progress = found
    if progress.data != wanted.data:
        raise UserError(f"data.shards: {path} was trained on other samples; use the same shards, or a new run.dir")
    if differences := describe_differences(progress.identity, wanted.identity):
        raise UserError(f"{path}: is of another run: {differences}. Choose another run.dir")
    if wanted.steps < progress.step:
        raise UserError(f"train.steps {wanted.steps}: the run in {run_dir} has made {progress.step} already; give more")


def check_finite(
    curves: dict[str, float],
    state: TrainState,
    log: StepLog,
    backend: Backend,
    data: CropDataset,
    order: RankOrder,
) -> None:
    """Stop at a loss or gradient that is not finite; nothing of it has been saved. Collective.

    Args:
        curves: the point of the curves, equal on all ranks.
        state: after the last step of the log.
        log: of this rank's steps since the point before.
        backend: of the run.
        data: what this rank's samples are read from.
        order: which samples these are.

    Raises:
        UserError: names the first step, and the samples of the ranks whose loss it was.

    """
    broken = [name for name, value in curves.items() if not math.isfinite(value)]
    if not broken:
        return
    all_ranks = backend.all_gather_or_raise(None, log.first_nonfinite())
    first = min(log.steps - 1, *(step for steps in all_ranks for step in steps))
    ranks = [rank for rank, (loss, _) in enumerate(all_ranks) if loss == first] or list(range(backend.world_size))
    back = log.steps - first
    seen = state.samples_seen - back * backend.plan.batch
    largest = backend.all_gather_or_raise(None, backend.run_on_all_ranks(lambda: data.largest(order.at(seen))))
    value, where = max(largest[rank] for rank in ranks)
    share = backend.plan.batch // backend.world_size
    spans = [f"{seen + rank * share} to {seen + (rank + 1) * share - 1} (rank {rank})" for rank in ranks]
    raise UserError(
        f"step {state.step - back + 1}: {', '.join(broken)} is not finite, with the samples at positions "
        f"{', '.join(spans[:4])}{' and more' if len(spans) > 4 else ''}; the largest value there is {value:.3g} times "
        f"white, in {where}. The last checkpoint is good. Look for broken values in the data, lower optim.lr, or set "
        "optim.clip"
    )


def check_damage(state: TrainState, limit: float) -> None:
    """Stop past the tolerated share of samples that cannot be read."""
    bad = state.bad_samples
    if not is_tolerated(bad, state.samples_seen, limit):
        raise UserError(
            f"data.max_bad {limit:g}: {bad} of {state.samples_seen} samples cannot be read, named above; check "
            f"the shards with: {command('verify', 'FOLDER')}"
        )
