import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from n2n_dist.data.dataset import Batch
from n2n_dist.errors import UserError
from n2n_dist.noise import MODELS, Bernoulli, Gaussian, Noise, NoNoise, Poisson
from n2n_dist.pairs import FIRST, SECOND, Pair, PairSettings, neighbour_pair, noisy_pair

SYNTHETIC, CAPTURES, NEIGHBOURS = (PairSettings(name=source) for source in ("synthetic", "captures", "neighbours"))


def make_batch(positions: list[int], captures: int = 1, size: int = 64, value: float | None = 0.5) -> Batch:
    """Crops that depend on their position alone."""
    images = torch.stack(
        [torch.rand(captures, 3, size, size, generator=torch.Generator().manual_seed(p)) for p in positions]
    )
    if value is not None:
        images.fill_(value)
    count = len(positions)
    return Batch(np.array(positions), np.array(positions), images, np.zeros(count), np.ones(count))


def sides(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    return pair.inputs, pair.targets


def test_the_two_fields_are_independent_and_have_the_level_of_the_noise() -> None:
    batch = make_batch(list(range(8)))
    inputs, targets = (side.double() - 0.5 for side in sides(noisy_pair(batch, Gaussian(), SYNTHETIC, 0)))
    count, variance = inputs.numel(), (25 / 255) ** 2
    for field in (inputs, targets):
        assert abs(field.mean()) < 4 * math.sqrt(variance / count)
        assert abs(field.var() - variance) < 4 * variance * math.sqrt(2 / count)
    assert abs((inputs * targets).mean()) < 4 * variance / math.sqrt(count)
    between_samples = (inputs[0] * inputs[1]).mean()
    assert abs(between_samples) < 4 * variance / math.sqrt(inputs[0].numel())


@pytest.mark.parametrize("noise", [Gaussian(sigma=[5, 75]), Poisson(lam=[5, 200])])
def test_both_fields_of_a_sample_share_one_level_of_the_range(noise: Noise) -> None:
    batch = make_batch(list(range(20)))
    inputs, targets = sides(noisy_pair(batch, noise, SYNTHETIC, seed=0))
    ratios = inputs.var((1, 2, 3)) / targets.var((1, 2, 3))
    # the variance of n values has a relative spread of about sqrt(2 / n)
    assert (ratios - 1).abs().max() < 6 * math.sqrt(2 * 2 / inputs[0].numel())
    deviations = inputs.std((1, 2, 3))
    assert deviations.max() > 2 * deviations.min()


@pytest.mark.parametrize("noise", [cls() for cls in MODELS.values()], ids=str)
@pytest.mark.parametrize("pairs", [SYNTHETIC, CAPTURES, NEIGHBOURS], ids=lambda pairs: pairs.name)
def test_pairs_depend_on_position_and_seed_alone(noise: Noise, pairs: PairSettings) -> None:
    """So they are the same for any number of ranks, micro-batches and workers."""
    positions, captures = [3, 9, 10**9, 4], 2 if pairs is CAPTURES else 1

    def made(positions: list[int], seed: int = 1) -> dict[str, Any]:
        pair = noisy_pair(make_batch(positions, captures, size=16, value=None), noise, pairs, seed)
        others = {"mask": pair.mask, "neighbours": pair.neighbours and pair.neighbours.choice}
        drawn = pair.noise and pair.noise(pair.inputs, "noise-prediction-1")
        return {"inputs": pair.inputs, "targets": pair.targets, "drawn": drawn, **others}

    whole = made(positions)
    for parts in ([[3], [9], [10**9], [4]], [[3, 9], [10**9, 4]]):
        joined = [made(part) for part in parts]
        for name, value in whole.items():
            found = [part[name] for part in joined]
            assert found == [None] * len(parts) if value is None else torch.equal(torch.cat(found), value), name
    assert (whole["mask"] is not None) == (pairs is SYNTHETIC and noise.name == "bernoulli")
    if pairs is NEIGHBOURS or (pairs is SYNTHETIC and not isinstance(noise, NoNoise)):
        assert not torch.equal(whole["targets"], made(positions, seed=2)["targets"])


def test_a_range_gives_a_sample_the_same_level_in_any_batch() -> None:
    def levels(positions: list[int]) -> list[float]:
        return noisy_pair(make_batch(positions, size=8), Gaussian(sigma=[5, 50]), SYNTHETIC, seed=1).noise.levels

    assert levels([3, 9, 4]) == levels([3]) + levels([9, 4])
    assert len(set(levels([3, 9, 4]))) == 3


def test_the_mask_says_which_pixels_of_the_target_are_kept() -> None:
    pair = noisy_pair(make_batch([0, 1], value=1.0), Bernoulli(keep=[0.3, 0.7]), SYNTHETIC, seed=0)
    assert pair.mask.shape == (2, 1, 64, 64)
    assert torch.equal(pair.mask.expand_as(pair.targets), pair.targets == 1)
    assert not torch.equal(pair.inputs, pair.targets)


def test_noise_is_added_to_the_image_and_the_image_is_left_alone() -> None:
    batch = make_batch([0, 1], value=None)
    before = batch.pixels.clone()
    pair = noisy_pair(batch, Gaussian(sigma=1), SYNTHETIC, seed=0)
    assert torch.equal(batch.pixels, before)
    for noisy in sides(pair):
        assert 0 < (noisy - before[:, 0]).abs().max() < 6 / 255


def test_supervised_pairs_have_the_clean_target_and_the_same_input() -> None:
    batch = make_batch([0, 1], value=None)
    for noise in (Gaussian(), Bernoulli()):
        pair = noisy_pair(batch, noise, PairSettings(supervised=True), seed=0)
        assert torch.equal(pair.inputs, noisy_pair(batch, noise, SYNTHETIC, seed=0).inputs)
        assert torch.equal(pair.targets, batch.pixels[:, 0])
        assert pair.mask is None  # every pixel of a clean target counts
        assert pair.noise is None


def test_captures_are_taken_as_they_are() -> None:
    for count in (2, 3):
        batch = make_batch([0, 1], captures=count, value=None)
        pair = noisy_pair(batch, NoNoise(), CAPTURES, seed=0)
        assert torch.equal(pair.inputs, batch.pixels[:, 0])
        assert torch.equal(pair.targets, batch.pixels[:, 1])
        if count == 3:
            assert torch.equal(pair.averaged, batch.pixels[:, 2])
        else:
            assert pair.averaged is None


def test_neighbours_are_of_one_image_with_or_without_added_noise() -> None:
    batch = make_batch([0, 1], size=8, value=None)
    for noise in (NoNoise(), Gaussian()):
        pair = noisy_pair(batch, noise, NEIGHBOURS, seed=0)
        assert pair.inputs.shape == pair.targets.shape == (2, 3, 4, 4)
        assert torch.equal(pair.neighbours.images, batch.pixels[:, 0]) == isinstance(noise, NoNoise)
        assert pair.neighbours.gamma == 2
        again = neighbour_pair(pair.neighbours.images, pair.neighbours.choice)
        assert all(torch.equal(a, b) for a, b in zip(sides(pair), again, strict=True))


@given(channels=st.integers(1, 4), height=st.integers(2, 9), width=st.integers(2, 9), seed=st.integers(0, 2**32))
def test_two_different_pixels_of_every_cell_that_touch(channels: int, height: int, width: int, seed: int) -> None:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, torch.zeros_like(rows), rows - columns])[:channels].expand(2, -1, -1, -1)
    where = torch.stack([rows, columns]).expand(2, -1, -1, -1)
    size = (2, height // 2, width // 2)
    choice = torch.randint(8, size, generator=torch.Generator().manual_seed(seed))
    first, second = neighbour_pair(where, choice)
    assert first.shape == second.shape == (2, 2, height // 2, width // 2)
    for side in (first, second):  # each in its own cell
        assert torch.equal(side // 2, where[:, :, : height // 2 * 2 : 2, : width // 2 * 2 : 2] // 2)
    assert torch.equal((first - second).abs().sum(1), torch.ones(size, dtype=torch.int64))
    for side, place in zip(neighbour_pair(image, choice), (first, second), strict=True):
        batch = torch.arange(2)[:, None, None]
        assert torch.equal(side, image[batch, :, place[:, 0], place[:, 1]].permute(0, 3, 1, 2))


def test_all_eight_neighbour_pairs_are_drawn_alike() -> None:
    assert len(set(zip(FIRST, SECOND, strict=True))) == 8
    choice = noisy_pair(make_batch(list(range(40)), size=32), NoNoise(), NEIGHBOURS, seed=0).neighbours.choice
    counts = torch.bincount(choice.flatten(), minlength=8)
    expected = choice.numel() / 8
    assert len(counts) == 8
    assert (counts - expected).abs().max() < 4 * math.sqrt(expected * 7 / 8)


def test_pair_settings_out_of_range_are_refused() -> None:
    for values, message in (
        ({"name": "pictures"}, r"pairs\.name 'pictures': must be synthetic, captures or neighbours"),
        ({"target": "both"}, r"pairs\.target 'both': must be one or mean"),
        ({"target": "mean"}, r"pairs\.target mean: pairs\.name synthetic has no other captures; set it to one"),
        ({"gamma": -1.0}, r"pairs\.gamma -1\.0: must be 0 or more"),
        ({"name": "neighbours", "supervised": True}, r"pairs\.supervised true: .* no clean image; use synthetic"),
    ):
        with pytest.raises(UserError, match=message):
            PairSettings(**values)


def test_the_network_sees_half_of_a_crop_of_neighbours() -> None:
    assert NEIGHBOURS.network_crop(64) == 32
    assert SYNTHETIC.network_crop(64) == CAPTURES.network_crop(64) == 64
