"""What a run is refused for at its start, and what stops it on all ranks at the same step."""

from __future__ import annotations

import math
from pathlib import Path

from n2n_dist.data.dataset import is_tolerated
from n2n_dist.errors import Refusal
from n2n_dist.model.weights import BEST, LAST
from n2n_dist.training.checkpoint_files import Progress, describe_differences


def check_continuation(run_dir: Path, found: tuple[Path, Progress] | None, wanted: Progress) -> None:
    """Refuse to write over weights, and to continue a run as another one."""
    if not found:
        held = [name for name in (BEST, LAST) if (run_dir / name).exists()]
        if held:
            raise Refusal(
                f"run.dir {run_dir}: holds a run with {held[0]}, and it has no checkpoint; choose another run.dir "
                f"(run.init={run_dir} starts from its weights)"
            )
        return
    path, progress = found
    if progress.data != wanted.data:
        raise Refusal(f"data.shards: {path} was trained on other samples; use the same shards, or a new run.dir")
    if differences := describe_differences(progress.identity, wanted.identity):
        raise Refusal(f"{path}: is of another run: {differences}. Choose another run.dir")
    if wanted.steps < progress.step:
        raise Refusal(f"train.steps {wanted.steps}: the run in {run_dir} has made {progress.step} already; give more")


def check_finite(logged: dict[str, float], progress: Progress) -> None:
    """Refuse to go on with a loss or gradient that is not finite; nothing of it has been saved."""
    broken = [name for name, value in logged.items() if not math.isfinite(value)]
    if broken:
        raise Refusal(
            f"step {progress.step}: {', '.join(broken)} is not finite; the last checkpoint is good. "
            "Lower optim.lr, set optim.clip, or look for broken values in the data"
        )


def check_damage(progress: Progress, limit: float) -> None:
    """Refuse to go on past the tolerated share of samples that cannot be read."""
    bad = progress.bad_samples
    if not is_tolerated(bad, progress.samples_seen, limit):
        raise Refusal(
            f"data.max_bad {limit:g}: {bad} of {progress.samples_seen} samples cannot be read, named above; check "
            "the shards with: python shards/build.py verify FOLDER"
        )
