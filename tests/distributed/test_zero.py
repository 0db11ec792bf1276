"""What needs several processes is tested with runs, in tests/dist/test_elastic.py and test_stops.py."""

import pytest
import torch

from n2n_dist.distributed import zero
from n2n_dist.distributed.batch import BatchPlan

PLAN = BatchPlan(world_size=2, batch=24, micro_batch=4, accumulation=3)


@pytest.mark.parametrize("stage", [1, 2])
def test_batch_stage_and_clipping_are_ours(stage: int) -> None:
    written = zero.configuration(stage, PLAN, clip=0.05, dtype=None)
    assert written["train_batch_size"] == 24
    assert written["train_micro_batch_size_per_gpu"] == 4
    assert written["gradient_accumulation_steps"] == 3
    assert written["gradient_clipping"] == 0.05
    assert written["zero_optimization"]["stage"] == stage
    assert "torch_autocast" not in written


def test_bfloat16_is_for_products_only() -> None:
    written = zero.configuration(1, PLAN, clip=0, dtype=torch.bfloat16)
    assert written["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert "bf16" not in written
