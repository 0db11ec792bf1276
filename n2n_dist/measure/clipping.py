"""Find the values at which images were clipped; numpy only."""

from __future__ import annotations

import numpy as np

EXTREMES = 5
"""Distinct values that are counted at either end."""
PILE_UP = 3
"""An end is clipped if its value occurs so many times as often as the next ones do: a tail only thins out."""


class Extremes:
    """Counts the lowest and highest distinct values of many arrays, to find where they were clipped."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.total = 0
        self._ends: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0), np.empty(0, np.int64))] * 2

    def add(self, values: np.ndarray) -> None:
        """Count finite values of any shape."""
        self.total += values.size
        for end, extreme, part in ((0, np.min, slice(EXTREMES)), (1, np.max, slice(-EXTREMES, None))):
            kept, known = (list(one) for one in self._ends[end])
            left = values.ravel()
            for _ in range(EXTREMES):  # a sort of all values would take far longer
                if left.size:
                    kept.append(extreme(left))
                    others = left[left != kept[-1]]
                    known.append(left.size - others.size)
                    left = others
            union, positions = np.unique(kept, return_inverse=True)
            self._ends[end] = union[part], np.bincount(positions, known).astype(np.int64)[part]

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        return float(self._ends[0][0][0]), float(self._ends[1][0][-1])

    def clipped(self) -> tuple[float, float]:
        """Return the fractions of values that pile up at the lowest and at the highest one; 0 where they do not."""
        low, high = self._ends[0][1], self._ends[1][1][::-1]
        return self._piled_fraction(low), self._piled_fraction(high)

    def _piled_fraction(self, counts: np.ndarray) -> float:
        piled = len(counts) > 1 and counts[0] > PILE_UP * counts[1:].mean()
        return float(counts[0] / self.total) if piled else 0.0
