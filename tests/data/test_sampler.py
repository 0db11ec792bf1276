import itertools

from hypothesis import given
from hypothesis import strategies as st
from support.orders import divisors, orders

from n2n_dist.data.order import Order
from n2n_dist.data.sampler import RankOrder


@given(orders(), st.integers(0, 200))
def test_every_world_size_that_divides_the_batch_sees_the_same_batches(order: Order, step: int) -> None:
    seen = step * order.batch_size
    whole = [(seen + i, number) for i, number in enumerate(order.batch(seen).tolist())]
    for world_size in divisors(order.batch_size):
        share = order.batch_size // world_size
        ranks = [next(iter(RankOrder(order, seen, rank, world_size, share))) for rank in range(world_size)]
        assert list(itertools.chain.from_iterable(ranks)) == whole


@given(orders(), st.integers(0, 200), st.data())
def test_ranks_and_micro_batches_cut_the_same_batches(order: Order, step: int, data: st.DataObject) -> None:
    world_size = data.draw(st.sampled_from(divisors(order.batch_size)), "world size")
    micro_batch = data.draw(st.sampled_from(divisors(order.batch_size // world_size)), "micro-batch")
    seen = step * order.batch_size
    batch: list[tuple[int, int]] = []
    for rank in range(world_size):
        micro_batches = iter(RankOrder(order, seen, rank, world_size, micro_batch))
        for _ in range(order.batch_size // world_size // micro_batch):
            cut = next(micro_batches)
            assert len(cut) == micro_batch
            batch += cut
    assert batch == [(seen + i, number) for i, number in enumerate(order.batch(seen).tolist())]


@given(orders(), st.integers(0, 30))
def test_resume_goes_on_as_if_nothing_had_happened(order: Order, stop: int) -> None:
    uninterrupted = iter(RankOrder(order, 0, 0, 1, order.batch_size))
    for _ in range(stop):
        next(uninterrupted)
    fresh = Order(order.sizes, order.seed, order.batch_size, order.streams)
    resumed = iter(RankOrder(fresh, stop * order.batch_size, 0, 1, order.batch_size))
    for _ in range(order.batches_per_epoch + 2):  # over the end of an epoch
        assert next(resumed) == next(uninterrupted)
