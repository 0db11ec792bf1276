"""A thread that fills the cache ahead of training; what is read never depends on it."""

from __future__ import annotations

import threading
from collections import deque

from n2n_dist.data.order import Order
from n2n_dist.shards.cache import RemoteFile, SourceUnavailableError
from n2n_dist.shards.index import Index


class Prefetcher(threading.Thread):
    """Fetches the shards that this machine needs next; one runs on each machine.

    It keeps less than half of the cache, and no more than an epoch, between itself and training.
    """

    def __init__(self, index: Index, order: Order, samples_seen: int, slots: range) -> None:
        """Prepare; `start` begins.

        Args:
            index: the shards.
            order: of the run.
            samples_seen: where the run begins.
            slots: of every batch, those that ranks of this machine read.

        """
        super().__init__(daemon=True, name="prefetcher")
        self.index = index
        self.upcoming = order.upcoming_shards(samples_seen, slots.start, slots.stop)
        self.epoch = order.batches_per_epoch * order.batch_size
        self.reached = samples_seen
        """Samples that training has seen; the loop sets this."""
        self.stopped = threading.Event()
        self._ahead: deque[tuple[int, list[RemoteFile]]] = deque()
        self._bytes_ahead = 0

    def run(self) -> None:
        """Go on until `stopped` is set. A source that fails is tried again: who needs the file now will say so."""
        for needed, shard in self.upcoming:
            files = self.index.remote_files(shard)
            size = sum(file.bytes for file in files)
            while self._is_far(needed, size):
                self._keep()
                if self.stopped.wait(0.5):
                    return
            self._ahead.append((needed, files))
            self._bytes_ahead += size
            for file in files:
                if self.index.cache.use(file):
                    continue
                self._keep()
                while not self.stopped.is_set():
                    try:
                        self.index.cache.fetch(file)
                        break
                    except SourceUnavailableError:
                        self.stopped.wait(self.index.cache.timeout)

    def _keep(self) -> None:
        """Mark what is still to come as used: else it would go before files that are done with, but were used later."""
        for _, files in self._ahead:
            for file in files:
                self.index.cache.use(file)

    def _is_far(self, needed: int, size: int) -> bool:
        while self._ahead and self._ahead[0][0] <= self.reached:
            self._bytes_ahead -= sum(file.bytes for file in self._ahead.popleft()[1])
        full = bool(self._ahead) and self._bytes_ahead + size > self.index.cache.limit / 2
        return full or needed > self.reached + self.epoch
