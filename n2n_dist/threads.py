"""Threads of a process that computes on a CPU."""

from __future__ import annotations

import os

import torch


def set_threads(threads: int | None = None) -> None:
    """Use `threads`, or the cores of this machine shared evenly by its ranks.

    A launcher leaves every process with one thread, a single one too, unless this is called.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
