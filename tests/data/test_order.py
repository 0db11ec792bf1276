import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.orders import orders

from n2n_dist.data.order import Order
from n2n_dist.data.sampler import RankOrder
from n2n_dist.errors import UserError
from n2n_dist.rng import permutation


def epoch_of(order: Order, epoch: int) -> np.ndarray:
    """[batches, B]"""
    first = epoch * order.batches_per_epoch
    return np.stack([order.batch((first + n) * order.batch_size) for n in range(order.batches_per_epoch)])


@given(orders(), st.integers(0, 3))
def test_no_sample_repeats_in_an_epoch_and_only_the_tail_is_dropped(order: Order, epoch: int) -> None:
    total = int(order.sizes.sum())
    numbers = epoch_of(order, epoch).ravel()
    assert len(np.unique(numbers)) == len(numbers) == total - total % order.batch_size
    assert numbers.min() >= 0
    assert numbers.max() < total


@settings(max_examples=30)
@given(orders(), st.integers(0, 3))
def test_the_dropped_tail_is_smaller_than_a_batch_and_changes_from_epoch_to_epoch(order: Order, epoch: int) -> None:
    total = int(order.sizes.sum())
    seen = [set(epoch_of(order, epoch + n).ravel().tolist()) for n in range(12)]
    tails = [set(range(total)) - numbers for numbers in seen]
    assert {len(tail) for tail in tails} == {total % order.batch_size}
    if total % order.batch_size and total > 2:
        assert len({frozenset(tail) for tail in tails}) > 1


@given(orders(), st.integers(0, 200), st.data())
def test_a_part_of_a_batch_is_its_slice(order: Order, step: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, order.batch_size - 1))
    last = data.draw(st.integers(first + 1, order.batch_size))
    seen = step * order.batch_size
    assert order.batch(seen, first, last).tolist() == order.batch(seen).tolist()[first:last]


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_seeds_and_epochs_differ_in_order_and_in_the_dropped_tail(seed: int) -> None:
    sizes = np.array([50, 70, 30])
    order, other = Order(sizes, seed, 64), Order(sizes, seed + 1, 64)
    epochs = [epoch_of(order, 0), epoch_of(order, 1), epoch_of(other, 0)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not np.array_equal(epochs[a], epochs[b])
        assert set(epochs[a].ravel()) != set(epochs[b].ravel())


def test_a_batch_mixes_as_many_shards_as_streams() -> None:
    order = Order(np.full(32, 100), 0, 16, streams=8)
    shards = [set(batch // 100) for batch in epoch_of(order, 0)]
    assert all(len(found) <= 16 for found in shards)  # the two samples of a stream may lie on both sides of a cut
    assert np.mean([len(found) for found in shards]) == pytest.approx(8, abs=0.5)
    # a stream stays in its shard: few are open at a time
    assert sum(len(b - a) for a, b in itertools.pairwise(shards)) <= 32


@given(orders(), st.integers(0, 3))
def test_a_stream_reads_one_shard_after_another(order: Order, epoch: int) -> None:
    shard_of = np.repeat(np.arange(len(order.sizes)), order.sizes)
    batches = epoch_of(order, epoch)
    streams = shard_of[batches].reshape(len(batches), order.streams, -1).swapaxes(0, 1).reshape(order.streams, -1)
    runs = [[shard for shard, _ in itertools.groupby(stream.tolist())] for stream in streams]
    for stream in runs:
        assert len(set(stream)) == len(stream), "a shard that was left is not used again"
    line = [shard for shard, _ in itertools.groupby(itertools.chain.from_iterable(runs))]
    assert len(set(line)) == len(line), "only a shard that is cut between two streams is in both"


def test_every_place_of_a_batch_draws_evenly_from_all_shards() -> None:
    batches = np.stack([Order(np.full(16, 25), seed, 8).batch(160) for seed in range(4000)])
    for place in range(8):
        counts = np.bincount(batches[:, place] // 25, minlength=16)
        # 4 standard errors of a binomial count
        assert np.abs(counts - 250).max() < 4 * (4000 * (1 / 16) * (15 / 16)) ** 0.5
    offsets = np.bincount(batches.ravel() % 25, minlength=25)
    assert np.abs(offsets - 1280).max() < 4 * (32000 * (1 / 25) * (24 / 25)) ** 0.5
    # two streams are 50 places of the line apart, two shards: never in the same one
    assert all(len(set(batch // 25)) == 8 for batch in batches)


def test_every_shard_and_sample_is_as_likely_to_come_first() -> None:
    firsts = [int(Order(np.array([10, 20, 30]), seed, 1).batch(0)[0]) for seed in range(6000)]
    counts = np.bincount(firsts, minlength=60)
    # the shard is drawn first, and evenly: 2000 each, 4 standard errors
    for low, high in ((0, 10), (10, 30), (30, 60)):
        assert abs(counts[low:high].sum() - 2000) < 4 * (6000 * (1 / 3) * (2 / 3)) ** 0.5
        expected = 2000 / (high - low)
        assert np.abs(counts[low:high] - expected).max() < 5 * expected**0.5


@pytest.mark.parametrize(("batch", "streams"), [(1, 1), (16, 16), (64, 64), (97, 1), (128, 64), (130, 26), (192, 64)])
def test_streams_default_to_the_largest_divisor_up_to_64(batch: int, streams: int) -> None:
    assert Order(np.array([1000]), 0, batch).streams == streams


def test_order_is_a_format_that_releases_keep() -> None:
    order = Order(np.array([5, 3, 6]), 0, 4, 2)
    batches = [order.batch(seen).tolist() for seen in (0, 4, 8, 12)]
    assert batches == [[10, 11, 3, 2], [9, 8, 1, 4], [12, 13, 0, 5], [3, 2, 13, 12]]


def test_fewer_samples_than_a_batch_are_refused_with_both_numbers() -> None:
    assert len(Order(np.array([3, 4]), 0, 7).batch(0)) == 7
    with pytest.raises(UserError, match=r"data\.batch 8.*7 samples"):
        Order(np.array([3, 4]), 0, 8)


@pytest.mark.parametrize("streams", [3, -2, 16])
def test_streams_that_do_not_divide_the_batch_are_refused(streams: int) -> None:
    with pytest.raises(UserError, match=f"data.streams {streams}.*8"):
        Order(np.array([100]), 0, 8, streams)


def test_many_shards_take_little_time_and_memory() -> None:
    order = Order(np.full(100_000, 1000), 0, 256)  # 10^8 samples
    batch = order.batch(order.batches_per_epoch // 2 * 256)
    assert len(np.unique(batch)) == 256
    assert batch.max() < 100_000_000


def test_a_rank_of_thousands_does_its_own_share_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def counted(count: int, key: str) -> np.ndarray:
        drawn.append(count)
        return permutation(count, key)

    monkeypatch.setattr("n2n_dist.data.order.permutation", counted)
    order = Order(np.full(100_000, 1000), 0, 16384)
    places = iter(RankOrder(order, 10**9 // 16384 * 16384, 4095, 4096, 4))
    for _ in range(20):
        next(places)
    # 20 batches take 5,120 samples of its stream, out of shards of 1,000
    assert 6 <= drawn.count(1000) <= 7, "only its own stream is shuffled"


def test_order_works_without_torch() -> None:
    program = "import sys, n2n_dist.data.order, n2n_dist.errors; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@given(orders(), st.integers(0, 60), st.data())
def test_upcoming_shards_are_those_that_the_batches_walk_into(order: Order, step: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, order.batch_size - 1), "first")
    stop = data.draw(st.integers(first + 1, order.batch_size), "stop")
    share = order.batch_size // order.streams
    ends = np.cumsum(order.sizes)
    last = (step // order.batches_per_epoch + 3) * order.batches_per_epoch  # to the end of an epoch, two epochs on
    expected, at = [], {}
    for batch in range(step, last):
        if batch % order.batches_per_epoch == 0:
            at = {}
        numbers = order.batch(batch * order.batch_size)
        for place in range(first, stop):
            shard, stream = int(np.searchsorted(ends, numbers[place], "right")), place // share
            if at.get(stream) != shard:
                expected.append((batch * order.batch_size, shard))
                at[stream] = shard
    expected = list(dict.fromkeys(expected))  # two streams may walk into a shard with the same batch
    found = order.upcoming_shards(step * order.batch_size, first, stop)
    assert list(itertools.islice(found, len(expected))) == expected
    assert next(found)[0] >= last * order.batch_size


def test_upcoming_shards_of_a_large_set_come_at_once() -> None:
    order = Order(np.full(100_000, 1000), 0, 256)  # 10^8 samples
    seen = order.batches_per_epoch // 2 * 256
    found = list(itertools.islice(order.upcoming_shards(seen, 0, 256), 1000))
    assert [position for position, _ in found] == sorted(position for position, _ in found)
    assert {shard for _, shard in found[:64]} >= {int(number) // 1000 for number in order.batch(seen)}
