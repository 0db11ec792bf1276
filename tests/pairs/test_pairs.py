import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from n2n_dist.data.batch import Batch
from n2n_dist.errors import UserError
from n2n_dist.noise import MODELS, Bernoulli, Gaussian, Noise, NoNoise, Poisson
from n2n_dist.pairs import Captures, Neighbours, Synthetic, noisy_pair
from n2n_dist.pairs.base import Pair, Pairs
from n2n_dist.shards.records import Member, Sample

SYNTHETIC, CAPTURES, NEIGHBOURS = Synthetic(), Captures(), Neighbours()


def make_batch(positions: list[int], captures: int = 1, size: int = 64, value: float | None = 0.5) -> Batch:
    """Crops that depend on their position alone."""
    images = torch.stack(
        [torch.rand(captures, 3, size, size, generator=torch.Generator().manual_seed(p)) for p in positions]
    )
    if value is not None:
        images.fill_(value)
    count = len(positions)
    return Batch(np.array(positions), np.array(positions), images, np.zeros(count), np.ones(count))


def make_sample(captures: int) -> Sample:
    members = [Member("png", offset=number, size=1) for number in range(captures)]
    return Sample("a", members, Member("png", 99, 1), (8, 8, 1), "uint8", 0.0, 255.0)


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
def test_pairs_depend_on_position_and_seed_alone(noise: Noise, pairs: Pairs) -> None:
    """So they are the same for any number of ranks, micro-batches and workers."""
    positions, captures = [3, 9, 10**9, 4], 2 if pairs is CAPTURES else 1

    def made(positions: list[int], seed: int = 1) -> dict[str, Any]:
        pair = noisy_pair(make_batch(positions, captures, size=16, value=None), noise, pairs, seed)
        others = {"mask": pair.mask, "neighbours": pair.consistency and pair.consistency.choice}
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
        pair = noisy_pair(batch, noise, Synthetic(supervised=True), seed=0)
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


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (Captures, {"target": "both"}, r"pairs\.target 'both': must be one or mean"),
        (Neighbours, {"gamma": -1.0}, r"pairs\.gamma -1\.0: must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(cls: type[Pairs], values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cls(**values)


def test_the_network_sees_half_of_a_crop_of_neighbours() -> None:
    assert NEIGHBOURS.network_crop(64) == 32
    assert SYNTHETIC.network_crop(64) == CAPTURES.network_crop(64) == 64


@pytest.mark.parametrize("pairs", [SYNTHETIC, CAPTURES, Captures(target="mean"), Captures(supervised=True), NEIGHBOURS])
@pytest.mark.parametrize("averaged", [False, True])
def test_as_many_images_are_chosen_as_announced(pairs: Pairs, averaged: bool) -> None:
    for count in range(pairs.min_captures, 5):
        for turn in range(20):
            chosen = pairs.images(make_sample(count), turn, averaged)
            assert len(chosen) == pairs.image_count(averaged)
            assert all(chosen)


@given(captures=st.integers(2, 7), turn=st.integers(0, 10**12))
def test_captures_take_turns(captures: int, turn: int) -> None:
    sample = make_sample(captures)
    turns = [CAPTURES.images(sample, turn + k, averaged=False) for k in range(captures * (captures - 1))]
    assert len({(first.offset, second.offset) for (first,), (second,) in turns}) == len(turns)
    singles = {NEIGHBOURS.images(sample, turn + k, averaged=False)[0][0].offset for k in range(captures)}
    assert len(singles) == captures
    for k in range(captures):
        (first,), rest = Captures(target="mean").images(sample, turn + k, averaged=False)
        assert sorted(member.offset for member in [first, *rest]) == list(range(captures))
        (_,), (target,), others = CAPTURES.images(sample, turn + k, averaged=True)
        assert others == rest
        assert target in rest


def test_what_is_clean_is_the_first_capture_or_the_reference() -> None:
    sample = make_sample(3)
    for turn in range(6):
        assert SYNTHETIC.images(sample, turn, averaged=False) == [[sample.captures[0]]]
        assert Captures(supervised=True).images(sample, turn, averaged=False)[1] == [sample.clean]
