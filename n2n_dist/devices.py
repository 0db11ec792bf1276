"""The device of a process, its threads, and the number format of its matrix products."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from typing import Any

import torch


def use_gpu() -> bool:
    """Whether this process computes on a GPU: there is one, and the launch file does not say `use_cpu`."""
    return torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in ("true", "1")


def set_threads(threads: int | None = None) -> None:
    """Use `threads` on a CPU, or its cores shared evenly by the ranks of this machine.

    A launcher leaves every process with one thread, a single one too, unless this is called.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // local_world_size()))


def local_world_size() -> int:
    """Return the number of ranks on this machine; a variable left over in a single process counts for nothing."""
    single = os.environ.get("WORLD_SIZE", "1") in ("", "1")
    return 1 if single else int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[None]:
    """Compute matrix products and convolutions in `dtype` (None: float32); sums and losses stay float32."""
    return torch.autocast(device.type, dtype) if dtype is not None else contextlib.nullcontext()


class DeviceTimer:
    """Seconds that a device spends in `with timer:`; a GPU records events, so that nothing waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[Any] = []

    def __enter__(self) -> None:
        self._mark()

    def __exit__(self, *error: object) -> None:
        self._mark()

    def seconds(self) -> float:
        """Return the sum since this was last called; waits for the device."""
        pairs = list(zip(self._marks[::2], self._marks[1::2], strict=True))
        self._marks = []
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return sum(begin.elapsed_time(end) for begin, end in pairs) / 1000
        return sum(end - begin for begin, end in pairs)

    def _mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process: on the GPU where it computes there, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
