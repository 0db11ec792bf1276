"""How the global batch is divided: ranks, accumulation steps, crops of one forward pass."""

from __future__ import annotations

import os
from dataclasses import dataclass

from n2n_dist.errors import UserError


@dataclass
class BatchPlan:
    """How the global batch is shared out."""

    world_size: int
    batch: int
    micro_batch: int
    """Crops in one forward pass on one rank."""
    accumulation: int
    """Forward passes in one optimiser step."""

    def __str__(self) -> str:
        return (
            f"global batch {self.batch} = {self.world_size} ranks x {self.accumulation} accumulation steps "
            f"x {self.micro_batch} crops"
        )


def plan_batch(batch: int, largest_micro_batch: int | None) -> BatchPlan:
    """Divide the global batch over the ranks of this launch and into equal micro-batches.

    Raises:
        UserError: the ranks do not divide the batch.

    """
    world_size = launched_world_size()
    if batch % world_size:
        near = max(world_size, round(batch / world_size) * world_size)
        raise UserError(f"data.batch {batch}: not divisible by {world_size} processes; try data.batch={near}")
    share = batch // world_size
    micro = max(m for m in range(1, min(share, largest_micro_batch or share) + 1) if share % m == 0)
    return BatchPlan(world_size, batch, micro, share // micro)


def launched_world_size() -> int:
    """Return the number of processes that the launcher has started.

    Raises:
        UserError: variables of a launcher are incomplete or no numbers: they are left over from another program.

    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if os.environ.get("WORLD_SIZE", "1") in ("", "1") and os.environ.get("RANK", "0") in ("", "0"):
        return 1
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        if not os.environ.get(name, "0").isdecimal():
            raise UserError(f"{name}={os.environ[name]}: not a number; unset it, a launcher sets it itself")
    present = [name for name in names if os.environ.get(name)]
    if missing := [name for name in names if name not in present]:
        raise UserError(
            f"{present[0]}={os.environ[present[0]]}: set without {missing[0]}, so it is left over from another "
            f"program; unset {' '.join(present)}, or start with accelerate launch"
        )
    return int(os.environ["WORLD_SIZE"])
