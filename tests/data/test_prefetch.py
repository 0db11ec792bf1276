"""What the prefetcher fetches and keeps; tests/shards/test_cache.py has what is read beside it."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path

from support.servers import serve

from n2n_dist.data.order import Order
from n2n_dist.data.prefetch import Prefetcher
from n2n_dist.shards.cache import Cache
from n2n_dist.shards.index import Index


def kept(cache: Cache) -> set[str]:
    """Names of the tars in a cache."""
    return {path.name.partition("-")[2] for path in cache.folder.glob("*.tar")}


def test_the_prefetcher_goes_ahead_up_to_half_of_the_cache(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_shards(40, shard_samples=4)
    shard = sum(path.stat().st_size for path in folder.glob("shard-000000.*"))
    cache = Cache(tmp_path / "cache", limit=9 * shard, timeout=1.0)
    with serve(folder, lambda name, count: "500" if count == 1 else None) as server:
        index = Index([server.url], cache)
        order = Order(index.sizes, 0, 4, streams=1)
        comes = [shard for _, shard in itertools.islice(order.upcoming_shards(0, 0, 4), 10)]
        prefetcher = Prefetcher(index, order, 0, range(4))
        prefetcher.start()
        for reached, expected in ((0, 5), (4, 6), (8, 7)):  # what is being used, and four more
            prefetcher.reached = reached
            deadline = time.monotonic() + 10
            while len(list(cache.folder.glob("*.tar"))) < expected and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.7)  # it would be further by now
            names = {index.shards[n].name for n in comes[:expected]}
            assert kept(cache) == names
        prefetcher.stopped.set()
        prefetcher.join(5)
        assert not prefetcher.is_alive()


def test_what_comes_next_stays_when_what_is_done_with_was_used_later(
    make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_shards(24, shard_samples=4)
    shard = sum(path.stat().st_size for path in folder.glob("shard-000000.*"))
    index = Index([f"file://{folder}"], Cache(tmp_path / "cache", limit=4 * shard + shard // 2))
    order = Order(index.sizes, 0, 4, streams=1)
    comes = [shard for _, shard in itertools.islice(order.upcoming_shards(0, 0, 4), 6)]
    prefetcher = Prefetcher(index, order, 0, range(4))
    prefetcher.start()
    tar = {n: index.shards[n].name for n in comes}
    while not kept(index.cache) >= {tar[comes[1]], tar[comes[2]]}:
        time.sleep(0.02)
    for file in index.remote_files(comes[5]):  # as a validation set would, between two training steps
        index.cache.fetch(file)
    time.sleep(1.2)
    for file in index.remote_files(comes[4]):
        index.cache.fetch(file)
    assert {tar[comes[1]], tar[comes[2]]} <= kept(index.cache)
    prefetcher.stopped.set()
