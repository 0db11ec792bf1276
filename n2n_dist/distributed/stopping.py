"""When all ranks stop together: none may stop alone, or the others would wait for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import itemgetter

from n2n_dist import signals
from n2n_dist.distributed.backend import Backend

ASK_EVERY = 20
"""Most steps between two questions, in which other ranks go on after one has lost its data or got a signal."""
ASK_SECONDS = 2.0
"""Seconds between two questions where steps are slow; the slowest rank's time of a step counts."""


class StopAgreement:
    """Whether any rank was asked to stop. All ranks call `ask` at the same steps."""

    def __init__(self, backend: Backend) -> None:
        """Ask for the first time after the first step, which may take long."""
        self.backend = backend
        self.requested = False
        """Whether any rank had received a signal when the ranks last asked each other; equal on all of them."""
        self._next_step = 0
        self._seconds_per_step = math.inf

    def is_due(self, step: int) -> bool:
        """Return whether the ranks have to ask each other after step `step`."""
        return step >= self._next_step

    def ask(
        self, step: int, seconds_per_step: Callable[[], float] | None = None, error: Exception | None = None
    ) -> None:
        """Ask all ranks whether to stop, and choose the step of the next question. Collective.

        Args:
            step: steps that are done.
            seconds_per_step: this rank's time of a step, called when the rank has waited for its device.
            error: why this rank cannot go on.

        Raises:
            Exception: on all ranks, the first `error` of any rank.

        """
        received, seconds = zip(
            *self.backend.all_gather_or_raise(error, (signals.received(), self._seconds_per_step)), strict=True
        )
        self.requested = any(received)
        self._next_step = step + max(1, min(ASK_EVERY, int(ASK_SECONDS / max(seconds))))
        if seconds_per_step is not None:
            self._seconds_per_step = seconds_per_step()

    def first_signal(self) -> tuple[str, float]:
        """Return the name of the signal that any rank received first, and the seconds since then. Collective."""
        return max(filter(None, self.backend.all_gather_or_raise(None, signals.received())), key=itemgetter(1))
