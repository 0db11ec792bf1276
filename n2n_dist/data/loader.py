"""The loader: batches are read ahead by worker processes and, for a GPU, copied there one ahead."""

from __future__ import annotations

import ctypes
import functools
import math
import multiprocessing.sharedctypes
import multiprocessing.util
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from n2n_dist import signals
from n2n_dist.data.batch import Batch
from n2n_dist.data.dataset import CropDataset
from n2n_dist.data.sampler import RankOrder
from n2n_dist.errors import UserError

PREFETCH = 4
"""Micro-batches that each worker reads ahead."""
IN_USE = 3
"""Micro-batches that training may hold before the workers take fresh memory."""


def make_loader(dataset: CropDataset, order: RankOrder, workers: int, device: torch.device) -> Iterator[Batch]:
    """Yield the micro-batches of `order`, their pixels on `device`, read ahead in `workers` processes."""
    ending = multiprocessing.sharedctypes.RawValue(ctypes.c_int, 0)
    multiprocessing.util.Finalize(None, setattr, (ending, "value", 1), exitpriority=0)  # before children are ended
    buffers = Buffers(workers, PREFETCH + IN_USE, dataset.bytes(order.micro_batch)) if workers else None
    loader = torch.utils.data.DataLoader(
        _Sender(dataset, buffers) if buffers else dataset,
        sampler=order,
        batch_size=None,  # `order` gives batches already
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=functools.partial(_start_worker, ending),
    )
    with signals.held():
        batches = (parcel.open(buffers) for parcel in loader) if buffers else iter(loader)
    return copied_ahead(batches, device) if device.type == "cuda" else batches


def _start_worker(ending: signals.Flag, worker: int) -> None:
    signals.leave_to_parent(ending)


def copied_ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Copy every batch to a GPU while the batch before it is used, on a stream of its own."""
    stream = torch.cuda.Stream(device)
    ready: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = batch.to(device), stream.record_event()
        if ready is not None:
            yield _hand_over(*ready)
        ready = copied
    if ready is not None:
        yield _hand_over(*ready)


def _hand_over(batch: Batch, event: torch.cuda.Event) -> Batch:
    """Let the stream that computes wait for the copy, and keep the memory until it has computed."""
    computing = torch.cuda.current_stream(batch.pixels.device)
    computing.wait_event(event)
    batch.pixels.record_stream(computing)
    return batch


@dataclass
class Address:
    """A buffer, and how its first bytes are read as pixels."""

    worker: int
    number: int
    dtype: np.dtype
    shape: Sequence[int]


class Buffers:
    """Memory that workers share with the training process and that is used again once a batch is forgotten.

    Fresh memory costs a page fault every 4 KiB, in both processes: more time than reading the crops into it.
    """

    def __init__(self, workers: int, count: int, size: int) -> None:
        """Reserve `count` buffers of `size` bytes for each worker; what is never used takes no memory."""
        storage = torch.UntypedStorage._new_shared(workers * count * size)
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._memory.set_(storage, 0, (workers, count, size), (count * size, size, 1))
        self._taken = torch.zeros(workers, count, dtype=torch.bool).share_memory_()

    def take(self, worker: int) -> tuple[int, np.ndarray] | None:
        """Return a free buffer of a worker, which alone may call this, and its number; None if there is none."""
        taken = self._taken.numpy()[worker]
        number = int(taken.argmin())
        if taken[number]:
            return None
        taken[number] = True
        return number, self._memory.numpy()[worker, number]

    def open(self, address: Address) -> torch.Tensor:
        """Return what a worker has written; its buffer is free again when no tensor uses it any more."""
        size = math.prod(address.shape) * address.dtype.itemsize
        buffer = self._memory.numpy()[address.worker, address.number]
        pixels = buffer[:size].view(address.dtype).reshape(address.shape)
        weakref.finalize(pixels, self._free, address.worker, address.number).atexit = False
        return torch.from_numpy(pixels)

    def _free(self, worker: int, number: int) -> None:
        self._taken.numpy()[worker, number] = False


@dataclass
class _Parcel:
    """A batch on its way from a worker: the pixels stay where they are."""

    positions: np.ndarray
    samples: np.ndarray
    pixels: Address | torch.Tensor
    black: np.ndarray
    white: np.ndarray
    bad: list[UserError]

    def open(self, buffers: Buffers) -> Batch:
        pixels = self.pixels if isinstance(self.pixels, torch.Tensor) else buffers.open(self.pixels)
        return Batch(self.positions, self.samples, pixels, self.black, self.white, self.bad)


class _Sender(torch.utils.data.Dataset[Any]):
    """The data set as the workers see it."""

    def __init__(self, dataset: CropDataset, buffers: Buffers) -> None:
        self.dataset = dataset
        self.buffers = buffers

    def __getitem__(self, samples: list[tuple[int, int]]) -> _Parcel:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        pixels: Address | torch.Tensor
        if taken := self.buffers.take(info.id):
            number, memory = taken
            batch = self.dataset.read(samples, memory)
            pixels = Address(info.id, number, batch.pixels.numpy().dtype, batch.pixels.shape)
        else:
            batch = self.dataset[samples]
            pixels = batch.pixels
        return _Parcel(batch.positions, batch.samples, pixels, batch.black, batch.white, batch.bad)
