import pytest
from hypothesis import given
from hypothesis import strategies as st

from n2n_dist.distributed.batch import BatchPlan, plan_batch
from n2n_dist.errors import UserError


def planned(world: int, batch: int, largest: int | None) -> BatchPlan:
    with pytest.MonkeyPatch.context() as patch:
        launched = {"WORLD_SIZE": str(world), "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
        for name, value in launched.items():
            patch.setenv(name, value)
        return plan_batch(batch, largest)


@given(world=st.integers(1, 64), share=st.integers(1, 64), largest=st.none() | st.integers(1, 80))
def test_plan_shares_every_sample_out_and_keeps_to_the_limit(world: int, share: int, largest: int | None) -> None:
    plan = planned(world, world * share, largest)
    assert plan.world_size * plan.accumulation * plan.micro_batch == plan.batch == world * share
    assert plan.micro_batch <= (largest or share)
    # no larger micro-batch would do
    limit = min(share, largest or share)
    assert all(share % larger for larger in range(plan.micro_batch + 1, limit + 1))


@given(world=st.integers(2, 64), batch=st.integers(1, 500))
def test_a_batch_that_cannot_be_shared_out_is_refused_with_one_that_can(world: int, batch: int) -> None:
    if batch % world == 0:
        assert planned(world, batch, None).accumulation == 1
        return
    with pytest.raises(
        UserError, match=f"data.batch {batch}: not divisible by {world} processes; try data.batch="
    ) as e:
        planned(world, batch, None)
    proposed = int(str(e.value).rpartition("=")[2])
    assert proposed > 0
    assert proposed % world == 0
    assert abs(proposed - batch) < world


def test_the_plan_reads_as_arithmetic() -> None:
    assert str(planned(4, 64, 5)) == "global batch 64 = 4 ranks x 4 accumulation steps x 4 crops"
