"""What a run is refused for at its start, and what stops it on all ranks at the same step."""

from __future__ import annotations

import math
from pathlib import Path

from n2n_dist.data.dataset import CropDataset, RankOrder, is_tolerated
from n2n_dist.errors import Refusal
from n2n_dist.model.weights import BEST, LAST
from n2n_dist.training.backend import Backend
from n2n_dist.training.checkpoint_files import Progress, describe_differences
from n2n_dist.training.tracking import Window


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


def check_finite(
    logged: dict[str, float], progress: Progress, window: Window, backend: Backend, data: CropDataset, places: RankOrder
) -> None:
    """Refuse to go on with a loss or gradient that is not finite; nothing of it has been saved.

    Args:
        logged: the point of the curves, the same on all ranks.
        progress: after the last step of the window.
        window: the steps since the point before, of this rank.
        backend: of the run; all ranks come here.
        data: where this rank's samples are read.
        places: which samples these are.

    Raises:
        Refusal: names the first step, and the samples of the ranks whose loss it was.

    """
    broken = [name for name, value in logged.items() if not math.isfinite(value)]
    if not broken:
        return
    own = window.first_broken()
    all_ranks = backend.agree(None, own)
    first = min(window.steps - 1, *(step for steps in all_ranks for step in steps))
    ranks = [rank for rank, (loss, _) in enumerate(all_ranks) if loss == first] or list(range(backend.world_size))
    back = window.steps - first
    seen = progress.samples_seen - back * backend.plan.batch
    largest = backend.agree(None, backend.on_all(lambda: data.largest(places.at(seen))))
    value, where = max(largest[rank] for rank in ranks)
    share = backend.plan.batch // backend.world_size
    spans = [f"{seen + rank * share} to {seen + (rank + 1) * share - 1} (rank {rank})" for rank in ranks]
    raise Refusal(
        f"step {progress.step - back + 1}: {', '.join(broken)} is not finite, with the samples at positions "
        f"{', '.join(spans[:4])}{' and more' if len(spans) > 4 else ''}; the largest value there is {value:.3g} times "
        f"white, in {where}. The last checkpoint is good. Look for broken values in the data, lower optim.lr, or set "
        "optim.clip"
    )


def check_damage(progress: Progress, limit: float) -> None:
    """Refuse to go on past the tolerated share of samples that cannot be read."""
    bad = progress.bad_samples
    if not is_tolerated(bad, progress.samples_seen, limit):
        raise Refusal(
            f"data.max_bad {limit:g}: {bad} of {progress.samples_seen} samples cannot be read, named above; check "
            "the shards with: python shards/build.py verify FOLDER"
        )
