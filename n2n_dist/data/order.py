"""Which sample comes when: a pure function of (seed, samples seen).

One epoch is a line of samples: the shards permuted, the samples shuffled inside each shard, all concatenated.
The line is cut into C equal spans; stream c walks through span c and gives its next B / C samples to every
batch, so that a batch mixes C parts of the line while only C shards are in use at a time. No sample repeats
in an epoch, and the tail that does not fill a batch is shorter than B and another one in every epoch.

Randomness comes from the raw output of a counter-based bit generator (Philox, Salmon et al. 2011), which numpy
keeps stable between releases, unlike its shuffles.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from n2n_dist.errors import UserError
from n2n_dist.rng import permutation

MAX_STREAMS = 64


class Order:
    """The batches of a run over shards of the given sizes."""

    def __init__(self, sizes: np.ndarray, seed: int, batch: int, streams: int | None = None) -> None:
        """Cut the epoch's line.

        Args:
            sizes: samples of each shard, int64 [shards].
            seed: chooses the order.
            batch: B, samples in a global batch.
            streams: C, which must divide B; default the largest divisor of B up to 64.

        Raises:
            UserError: fewer samples than B, or a C that does not divide B.

        """
        total = int(np.sum(sizes))
        if total < batch:
            raise UserError(
                f"data.batch {batch}: more than the {total} samples of data.shards; lower it to {total} or less"
            )
        self.streams = streams or max(c for c in range(1, min(batch, MAX_STREAMS) + 1) if batch % c == 0)
        if self.streams < 1 or batch % self.streams:
            raise UserError(f"data.streams {streams}: must divide data.batch {batch}")
        self.sizes = np.asarray(sizes, np.int64)
        self.seed = seed
        self.batch_size = batch
        self.batches_per_epoch = total // batch
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._epoch = functools.lru_cache(maxsize=2)(self._permute_shards)
        self._inside = functools.lru_cache(maxsize=2 * self.streams)(self._permute_samples)

    @property
    def samples_per_epoch(self) -> int:
        """Samples after which the next epoch begins."""
        return self.batches_per_epoch * self.batch_size

    def batch(self, samples_seen: int, first: int = 0, last: int | None = None) -> np.ndarray:
        """Return the numbers of the next B samples, or of a part of them, int64 [B] or [last - first].

        A part costs only its own share of the work: a rank of thousands asks for its slice.

        Args:
            samples_seen: samples that came before, a multiple of B.
            first: start of the part in the batch.
            last: its end; default B.

        """
        epoch, step = divmod(samples_seen // self.batch_size, self.batches_per_epoch)
        share = self.batch_size // self.streams
        span = self.batches_per_epoch * share
        stream, offset = np.divmod(np.arange(first, self.batch_size if last is None else last), share)
        return self._at(epoch, stream * span + step * share + offset)

    def upcoming_shards(self, samples_seen: int, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield, without end, the shards that slots [first, stop) of the batches read from, in the order of their use.

        Args:
            samples_seen: samples that came before, a multiple of B.
            first: of the slots, such as those of one machine's ranks.
            stop: behind the last of them.

        Yields:
            samples seen before the batch that needs the shard, and the shard; again when a stream comes to it again.

        """
        epoch, now = divmod(samples_seen // self.batch_size, self.batches_per_epoch)
        share = self.batch_size // self.streams
        span = self.batches_per_epoch * share
        while True:
            shards, ends = self._epoch(epoch)
            steps, visited = [], []
            for stream in range(first // share, -(-stop // share)):
                low, high = max(first - stream * share, 0), min(stop - stream * share, share)  # of a batch's share
                line = stream * span
                begin, end = np.searchsorted(ends, [line, line + span - 1], "right")
                visit = np.arange(begin, end + 1)
                starts = np.maximum(ends[visit] - self.sizes[shards[visit]] - line, 0)
                step = np.maximum(-(-(starts - high + 1) // share), now)
                # the stream may be past the shard, or step over a small one with the slots that are not asked for
                used = step * share + low < np.minimum(ends[visit] - line, span)
                steps.append(step[used])
                visited.append(visit[used])
            found = np.unique(np.stack([np.concatenate(steps), np.concatenate(visited)], axis=1), axis=0)
            for step, visit in found.tolist():
                yield (epoch * self.batches_per_epoch + step) * self.batch_size, int(shards[visit])
            epoch, now = epoch + 1, 0

    def _at(self, epoch: int, line: np.ndarray) -> np.ndarray:
        """Return the samples at the given positions of an epoch's line, which ascend."""
        shards, ends = self._epoch(epoch)
        visits = np.searchsorted(ends, line, side="right")
        here = shards[visits]
        numbers, offsets = self._starts[here], line - (ends[visits] - self.sizes[here])
        cuts = [0, *(np.flatnonzero(np.diff(visits)) + 1).tolist(), len(line)]
        for start, stop in itertools.pairwise(cuts):
            numbers[start:stop] += self._inside(epoch, int(here[start]))[offsets[start:stop]]
        return numbers

    def _permute_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        shards = permutation(len(self.sizes), f"{self.seed}/{epoch}")
        return shards, np.cumsum(self.sizes[shards])

    def _permute_samples(self, epoch: int, shard: int) -> np.ndarray:
        return permutation(int(self.sizes[shard]), f"{self.seed}/{epoch}/{shard}")
