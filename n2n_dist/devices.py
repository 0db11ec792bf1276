"""The device of a process, its threads, and the number format of its matrix products."""

from __future__ import annotations

import contextlib
import os

import torch


def use_gpu() -> bool:
    """Whether this process computes on a GPU: there is one, and the launch file does not say `use_cpu`."""
    return torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in ("true", "1")


def set_threads(threads: int | None = None) -> None:
    """Use `threads` on a CPU, or its cores shared evenly by the ranks of this machine.

    A launcher leaves every process with one thread, a single one too, unless this is called.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[None]:
    """Compute matrix products and convolutions in `dtype` (None: float32); sums and losses stay float32."""
    return torch.autocast(device.type, dtype) if dtype is not None else contextlib.nullcontext()
