"""Samples of one rank, in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from n2n_dist.data.order import Order


class RankOrder(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """One rank's slice of every batch, cut into micro-batches: lists of (position, sample number)."""

    def __init__(self, order: Order, samples_seen: int, rank: int, world_size: int, micro_batch: int) -> None:
        """Start after `samples_seen` samples."""
        self.order = order
        self.samples_seen = samples_seen
        self.share = order.batch_size // world_size
        self.first = rank * self.share
        self.micro_batch = micro_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield without end; the loop counts steps."""
        samples_seen = self.samples_seen
        while True:
            samples = self.at(samples_seen)
            for start in range(0, self.share, self.micro_batch):
                yield samples[start : start + self.micro_batch]
            samples_seen += self.order.batch_size

    def at(self, samples_seen: int) -> list[tuple[int, int]]:
        """Return the slice of the batch that comes after `samples_seen` samples."""
        numbers = self.order.batch(samples_seen, self.first, self.first + self.share)
        return list(enumerate(numbers.tolist(), samples_seen + self.first))
