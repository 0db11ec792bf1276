"""Which rank all others wait for."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import median_low

STRAGGLER_RATIO = 1.5
"""A rank that takes this many times the median is worth a warning."""
STRAGGLER_SECONDS = 10.0
"""Least time over which that is measured: a single step says nothing."""
SILENCE_SECONDS = 600.0
"""Time between two warnings of one rank."""


class Stragglers:
    """Finds a rank that all others wait for."""

    def __init__(self, hosts: Sequence[str]) -> None:
        """Start; `hosts` names the machine of each rank."""
        self.hosts = hosts
        self._sums: list[float] | None = None  # of the first point, where the networks compile, nothing is concluded
        self._since = time.monotonic()
        self._warned_at: dict[int, float] = {}

    def add(self, times: Sequence[float]) -> list[str]:
        """Add each rank's own seconds since the last point; return a warning at most every ten minutes and rank."""
        now = time.monotonic()
        if self._sums is None:
            self._sums, self._since = [0.0] * len(times), now
            return []
        self._sums = [total + own for total, own in zip(self._sums, times, strict=True)]
        if now - self._since < STRAGGLER_SECONDS:
            return []
        slowest, usual = max(self._sums), median_low(self._sums)
        rank = self._sums.index(slowest)
        self._sums, self._since = [0.0] * len(times), now
        if slowest < STRAGGLER_RATIO * usual or now - self._warned_at.get(rank, -math.inf) < SILENCE_SECONDS:
            return []
        self._warned_at[rank] = now
        return [
            f"rank {rank} on {self.hosts[rank]} is slow, and all wait for it: its data and forward passes take "
            f"{slowest / usual:.1f} times as long as the median rank's; look there for other programs, a throttled "
            "processor, slow storage"
        ]
