"""How the global batch is divided: ranks, accumulation steps, crops of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from n2n_dist.distributed.environment import launched_world_size
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
