import gc
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from n2n_dist.data.batch import Batch
from n2n_dist.data.dataset import CropDataset
from n2n_dist.data.loader import IN_USE, PREFETCH, Address, Buffers, copied_ahead, make_loader
from n2n_dist.data.order import Order
from n2n_dist.data.sampler import RankOrder
from n2n_dist.pairs import Synthetic
from n2n_dist.shards.index import Index

CPU = torch.device("cpu")
COUNT = 2 * (PREFETCH + IN_USE) + 3
"""More batches than there are buffers."""


@pytest.fixture
def expected(make_shards: Callable[..., Path]) -> tuple[CropDataset, list[Batch]]:
    dataset = CropDataset(Index([make_shards(12)]), 0, 16, Synthetic())
    places = itertools.islice(RankOrder(Order(dataset.index.sizes, 0, 4), 0, 0, 1, 4), COUNT)
    return dataset, [dataset[cut] for cut in places]


def loader(dataset: CropDataset, workers: int, device: torch.device = CPU) -> itertools.islice:
    return itertools.islice(
        make_loader(dataset, RankOrder(Order(dataset.index.sizes, 0, 4), 0, 0, 1, 4), workers, device), COUNT
    )


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kept", [1, COUNT])
def test_batches_stay_as_they_were_received_however_many_are_kept(
    expected: tuple[CropDataset, list[Batch]], workers: int, kept: int
) -> None:
    dataset, batches = expected
    held: list[tuple[Batch, Batch]] = []
    for batch, wanted in zip(loader(dataset, workers), batches, strict=True):
        held = [*held, (batch, wanted)][-kept:]
        for found, same in held:
            assert torch.equal(found.pixels, same.pixels)
            assert found.samples.tolist() == same.samples.tolist()
            assert (found.black.tolist(), found.white.tolist()) == (same.black.tolist(), same.white.tolist())
    assert len(held) == kept


def take(buffers: Buffers, worker: int) -> tuple[int, np.ndarray]:
    taken = buffers.take(worker)
    assert taken is not None
    return taken


def test_a_buffer_is_free_again_when_no_tensor_uses_it() -> None:
    buffers = Buffers(workers=2, count=2, size=12)
    place, memory = take(buffers, 1)
    memory[:] = np.arange(12)
    assert buffers.take(1) is not None
    assert buffers.take(1) is None
    assert buffers.take(0) is not None, "each worker has its own"
    pixels = buffers.open(Address(1, place, np.dtype(np.uint16), (2, 3)))
    part = pixels[1:]
    assert part.tolist() == [[6 + 7 * 256, 8 + 9 * 256, 10 + 11 * 256]]
    del pixels
    gc.collect()
    assert buffers.take(1) is None, "a part of it is still in use"
    del part
    gc.collect()
    again, _ = take(buffers, 1)
    assert again == place


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_reach_the_gpu_unchanged_while_it_computes(
    expected: tuple[CropDataset, list[Batch]], workers: int
) -> None:
    dataset, batches = expected
    busy = torch.rand(2000, 2000, device="cuda")
    sums = []
    for batch in loader(dataset, workers, torch.device("cuda")):
        assert batch.pixels.device.type == "cuda"
        for _ in range(20):  # the copies run ahead of this
            busy = (busy @ busy).clamp(0, 1)
        sums.append((batch.normalised(), batch))
    for (images, _), wanted in zip(sums, batches, strict=True):
        assert torch.equal(images.cpu(), wanted.normalised())


@pytest.mark.gpu
def test_every_batch_is_handed_over_once_and_in_order(expected: tuple[CropDataset, list[Batch]]) -> None:
    _, batches = expected
    device = torch.device("cuda")
    for count in (0, 1, 5):
        found = list(copied_ahead(batches[:count], device))
        assert [batch.samples.tolist() for batch in found] == [batch.samples.tolist() for batch in batches[:count]]


def test_a_program_that_ends_early_ends_its_workers(make_shards: Callable[..., Path]) -> None:
    code = f"""
import sys, torch
from n2n_dist.data.dataset import CropDataset
from n2n_dist.data.sampler import RankOrder
from n2n_dist.data.loader import make_loader
from n2n_dist.data.order import Order
from n2n_dist.pairs import Synthetic
from n2n_dist.shards.index import Index
dataset = CropDataset(Index([{str(make_shards(12))!r}]), 0, 16, Synthetic())
batches = make_loader(dataset, RankOrder(Order(dataset.index.sizes, 0, 4), 0, 0, 1, 4), 1, torch.device("cpu"))
next(batches)
sys.exit(3)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 3
