"""The loader's batches as the loop takes them: with the time spent on them, and what could not be read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from n2n_dist.data.batch import Batch
from n2n_dist.devices import DeviceTimer
from n2n_dist.errors import UserError
from n2n_dist.shards.cache import SourceUnavailableError


@dataclass
class Reading:
    """Cost of reading the batches of one step, on one rank."""

    timer: DeviceTimer
    """Time of data, noise and forward passes."""
    waited: float = 0.0
    """Seconds for which the loop waited for the loader."""
    replaced: list[UserError] = field(default_factory=list)
    """One message for each sample that could not be read and was replaced."""

    def own_seconds(self) -> float:
        """Return the seconds of `timer`; waits for the device."""
        return self.timer.seconds()


class Batches:
    """An iterator over the batches of one rank."""

    def __init__(self, loader: Iterator[Batch], device: torch.device) -> None:
        """Take batches from `loader`, whose pixels are on `device`."""
        self.source_error: SourceUnavailableError | None = None
        """Why this rank's crops are zeros by now; the other ranks do not know yet."""
        self._loader = loader
        self._device = device
        self._reading = Reading(DeviceTimer(device))

    @property
    def timer(self) -> DeviceTimer:
        """Times what this rank does without the others, in `with batches.timer:`."""
        return self._reading.timer

    def __next__(self) -> Batch:
        """Return the next batch; samples that were replaced in it are named on the terminal."""
        start = time.perf_counter()
        batch = next(self._loader)
        self._reading.waited += time.perf_counter() - start
        for message in batch.bad:
            self._reading.replaced.append(message)
            if isinstance(message, SourceUnavailableError):
                self.source_error = self.source_error or message
            elif self.source_error is None:
                print(f"replaced an unreadable sample: {message}", flush=True)
        return batch

    def since_last_step(self) -> Reading:
        """Return what was read since this was called before."""
        reading, self._reading = self._reading, Reading(DeviceTimer(self._device))
        return reading
