"""The steps since the last point of the training curves: measured on each rank, reduced over all of them at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from n2n_dist.devices import peak_memory_bytes
from n2n_dist.distributed.backend import Backend
from n2n_dist.training.batches import Reading


@dataclass
class Point:
    """One point of the training curves, equal on all ranks."""

    curves: dict[str, float]
    """Values by the names of their curves."""
    bad_samples: int
    """Samples that were replaced since the point before, over all ranks."""
    minutes_since_save: float
    """By rank 0's clock."""
    own_seconds: list[float]
    """Of each rank since the point before: data, noise and forward passes, in which it waits for no other rank."""


class StepLog:
    """Collects the steps since the last point; nothing waits for the device before `reduce`."""

    def __init__(self, backend: Backend, batches_per_epoch: int) -> None:
        """Start with no step."""
        self.backend = backend
        self.batches_per_epoch = batches_per_epoch
        self.restart()

    def restart(self) -> None:
        """Begin a new point."""
        self._start = time.perf_counter()
        self.steps = 0
        self._losses: dict[str, torch.Tensor] = {}
        self._totals: list[torch.Tensor] = []
        self._gradient_norms: list[torch.Tensor] = []
        self._readings: list[Reading] = []

    def add(self, losses: Mapping[str, torch.Tensor], gradient_norm: torch.Tensor, reading: Reading) -> None:
        """Count one step: this rank's losses, the global gradient norm, and what its batches were read with."""
        self.steps += 1
        self._losses = {name: self._losses.get(name, 0) + value for name, value in losses.items()}
        self._totals.append(losses["total"])
        self._gradient_norms.append(gradient_norm)
        self._readings.append(reading)

    def seconds_per_step(self) -> float:
        """Return this rank's mean time of a step."""
        return (time.perf_counter() - self._start) / self.steps

    def reduce(self, learning_rate: float, minutes_since_save: float) -> Point:
        """Reduce over all ranks what each has measured. Collective; the names of the curves are only here.

        Args:
            learning_rate: of the last step.
            minutes_since_save: by this rank's clock; rank 0's counts.

        """
        rank, world_size = self.backend.rank, self.backend.world_size
        means = torch.stack(list(self._losses.values())).double().cpu() / self.steps  # waits for the device
        seconds = time.perf_counter() - self._start
        measured = dict(zip(self._losses, means.tolist(), strict=True)) | {
            "waiting": sum(reading.waited for reading in self._readings) / seconds,
            "bad_samples": sum(len(reading.replaced) for reading in self._readings),
            "minutes_since_save": minutes_since_save if rank == 0 else 0.0,
        }
        own_seconds = sum(reading.own_seconds() for reading in self._readings)
        measured |= {f"own_seconds/{r}": own_seconds if r == rank else 0.0 for r in range(world_size)}
        sums = self.backend.sum(torch.tensor(list(measured.values()), dtype=torch.float64)).tolist()
        summed = dict(zip(measured, sums, strict=True))
        each_rank = [summed[f"own_seconds/{r}"] for r in range(world_size)]
        curves = {f"train/{name}": summed[name] / world_size for name in self._losses}
        curves |= {
            # the largest: ZeRO skips a step whose gradient is not finite without a message
            "train/gradient_norm": torch.stack(self._gradient_norms).max().item(),
            "train/learning_rate": learning_rate,
            "speed/images_per_second": self.steps * self.backend.plan.batch / seconds,
            "speed/minutes_per_epoch": seconds / self.steps * self.batches_per_epoch / 60,
            "speed/waiting_for_data": summed["waiting"] / world_size,
            "memory/peak_gib": peak_memory_bytes(self.backend.device) / 2**30,
        }
        if world_size > 1:
            curves["speed/slowest_rank"] = max(each_rank) / torch.tensor(each_rank).median().item()
        return Point(curves, int(summed["bad_samples"]), summed["minutes_since_save"], each_rank)

    def first_nonfinite(self) -> tuple[int, int]:
        """Return the first of the steps, from 0, whose loss on this rank is not finite, and whose gradient is not.

        Where all are finite, the number of steps.
        """

        def first(values: list[torch.Tensor]) -> int:
            finite = torch.isfinite(torch.stack(values)).tolist()
            return finite.index(False) if False in finite else self.steps

        return first(self._totals), first(self._gradient_norms)
