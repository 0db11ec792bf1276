import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from n2n_dist.data.batch import Batch
from n2n_dist.noise import Gaussian, NoNoise
from n2n_dist.pairs import Neighbours, noisy_pair
from n2n_dist.pairs.neighbours import FIRST, SECOND, subsample


def make_batch(count: int, size: int) -> Batch:
    images = torch.rand(count, 1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Batch(np.arange(count), np.arange(count), images, np.zeros(count), np.ones(count))


def test_neighbours_are_of_one_image_with_or_without_added_noise() -> None:
    batch = make_batch(2, 8)
    for noise in (NoNoise(), Gaussian()):
        pair = noisy_pair(batch, noise, Neighbours(), seed=0)
        assert pair.inputs.shape == pair.targets.shape == (2, 3, 4, 4)
        assert torch.equal(pair.consistency.images, batch.pixels[:, 0]) == isinstance(noise, NoNoise)
        assert pair.gamma == 2
        again = subsample(pair.consistency.images, pair.consistency.choice)
        assert all(torch.equal(a, b) for a, b in zip((pair.inputs, pair.targets), again, strict=True))


@given(channels=st.integers(1, 4), height=st.integers(2, 9), width=st.integers(2, 9), seed=st.integers(0, 2**32))
def test_two_different_pixels_of_every_cell_that_touch(channels: int, height: int, width: int, seed: int) -> None:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, torch.zeros_like(rows), rows - columns])[:channels].expand(2, -1, -1, -1)
    where = torch.stack([rows, columns]).expand(2, -1, -1, -1)
    size = (2, height // 2, width // 2)
    choice = torch.randint(8, size, generator=torch.Generator().manual_seed(seed))
    first, second = subsample(where, choice)
    assert first.shape == second.shape == (2, 2, height // 2, width // 2)
    for side in (first, second):  # each in its own cell
        assert torch.equal(side // 2, where[:, :, : height // 2 * 2 : 2, : width // 2 * 2 : 2] // 2)
    assert torch.equal((first - second).abs().sum(1), torch.ones(size, dtype=torch.int64))
    for side, pixel in zip(subsample(image, choice), (first, second), strict=True):
        batch = torch.arange(2)[:, None, None]
        assert torch.equal(side, image[batch, :, pixel[:, 0], pixel[:, 1]].permute(0, 3, 1, 2))


def test_all_eight_subsamples_are_drawn_alike() -> None:
    assert len(set(zip(FIRST, SECOND, strict=True))) == 8
    choice = noisy_pair(make_batch(40, 32), NoNoise(), Neighbours(), seed=0).consistency.choice
    counts = torch.bincount(choice.flatten(), minlength=8)
    expected = choice.numel() / 8
    assert len(counts) == 8
    assert (counts - expected).abs().max() < 4 * math.sqrt(expected * 7 / 8)
