import math

import numpy as np
import pytest
import torch

from n2n_dist.data.dataset import Batch
from n2n_dist.errors import Refusal
from n2n_dist.noise.models import Gaussian, Noise, Poisson
from n2n_dist.objective import LossSettings, PairSettings, losses, noisy_pair

SYNTHETIC, CAPTURES = PairSettings(), PairSettings(source="captures")


def make_batch(positions: list[int], captures: int = 1, size: int = 64, value: float | None = 0.5) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(len(positions), captures, 3, size, size, generator=generator)
    if value is not None:
        images.fill_(value)
    count = len(positions)
    return Batch(np.array(positions), np.array(positions), images, np.zeros(count), np.ones(count))


def test_the_two_fields_are_independent_and_have_the_level_of_the_noise() -> None:
    batch = make_batch(list(range(8)))
    inputs, targets = (noisy.double() - 0.5 for noisy in noisy_pair(batch, Gaussian(sigma=25), SYNTHETIC, seed=0))
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
    inputs, targets = noisy_pair(batch, noise, SYNTHETIC, seed=0)
    ratios = inputs.var((1, 2, 3)) / targets.var((1, 2, 3))
    # the variance of n values has a relative spread of about sqrt(2 / n)
    assert (ratios - 1).abs().max() < 6 * math.sqrt(2 * 2 / inputs[0].numel())
    deviations = inputs.std((1, 2, 3))
    assert deviations.max() > 2 * deviations.min()


def test_noise_depends_on_position_and_seed_alone() -> None:
    positions = [3, 9, 10**9, 4]
    whole = noisy_pair(make_batch(positions), Gaussian(sigma=[5, 50]), SYNTHETIC, seed=1)
    for i, position in enumerate(positions):
        alone = noisy_pair(make_batch([position]), Gaussian(sigma=[5, 50]), SYNTHETIC, seed=1)
        for a, b in zip(whole, alone, strict=True):
            assert torch.equal(a[i], b[0])
    other = noisy_pair(make_batch(positions), Gaussian(sigma=[5, 50]), SYNTHETIC, seed=2)
    assert not torch.equal(whole[0], other[0])


def test_noise_is_added_to_the_image_and_the_image_is_left_alone() -> None:
    batch = make_batch([0, 1], value=None)
    before = batch.pixels.clone()
    inputs, targets = noisy_pair(batch, Gaussian(sigma=1), SYNTHETIC, seed=0)
    assert torch.equal(batch.pixels, before)
    for noisy in (inputs, targets):
        assert 0 < (noisy - before[:, 0]).abs().max() < 6 / 255


def test_supervised_pairs_have_the_clean_target_and_the_same_input() -> None:
    batch = make_batch([0, 1], value=None)
    noisy_input, _ = noisy_pair(batch, Gaussian(), SYNTHETIC, seed=0)
    inputs, targets = noisy_pair(batch, Gaussian(), PairSettings(supervised=True), seed=0)
    assert torch.equal(inputs, noisy_input)
    assert torch.equal(targets, batch.pixels[:, 0])


def test_captures_are_taken_as_they_are() -> None:
    batch = make_batch([0, 1], captures=2, value=None)
    inputs, targets = noisy_pair(batch, Gaussian(), CAPTURES, seed=0)
    assert torch.equal(inputs, batch.pixels[:, 0])
    assert torch.equal(targets, batch.pixels[:, 1])


def test_pair_settings_say_what_to_read() -> None:
    assert SYNTHETIC.crops == PairSettings(supervised=True).crops == "image"
    assert CAPTURES.crops == "captures"
    assert PairSettings(source="captures", supervised=True).crops == "supervised"
    with pytest.raises(Refusal, match=r"pairs\.source 'pictures'"):
        PairSettings(source="pictures")


def test_total_is_the_weighted_sum_and_reaches_the_model() -> None:
    settings = LossSettings(pixel="l2", perceptual=0.25, layers=["relu1_2"])
    features = settings.extractor(3)
    model = torch.nn.Conv2d(3, 3, 1)
    inputs, targets = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    parts = losses(model, features, settings, inputs, targets)
    assert parts["pixel"].item() == pytest.approx((model(inputs) - targets).square().mean().item())
    assert parts["perceptual"] > 0
    assert parts["total"].item() == pytest.approx((parts["pixel"] + 0.25 * parts["perceptual"]).item())
    parts["total"].backward()
    assert model.weight.grad.abs().sum() > 0


def test_without_lambda_there_is_no_perceptual_part() -> None:
    settings = LossSettings(perceptual=0)
    assert settings.extractor(4) is None
    inputs, targets = torch.rand(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = losses(torch.nn.Identity(), None, settings, inputs, targets)
    assert parts["total"].item() == parts["pixel"].item() == pytest.approx((inputs - targets).abs().mean().item())
    assert "perceptual" not in parts


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"pixel": "l3"}, r"loss\.pixel 'l3'"),
        ({"perceptual": -0.1}, r"loss\.perceptual -0\.1"),
        ({"perceptual": float("nan")}, r"loss\.perceptual nan"),
        ({"perceptual": float("inf")}, r"loss\.perceptual inf"),
        ({"layers": []}, r"loss\.layers \[\]"),
        ({"layers": ["relu1_2", "relu3_4"], "perceptual": 0.0}, r"loss\.layers .*relu3_4"),
    ],
)
def test_loss_settings_out_of_range_are_refused_by_name(values: dict, named: str) -> None:
    with pytest.raises(Refusal, match=named):
        LossSettings(**values)


@pytest.mark.parametrize("channels", [2, 4])
def test_vgg_sees_one_or_three_channels(channels: int) -> None:
    with pytest.raises(Refusal, match=rf"loss\.perceptual 0\.01.*{channels}"):
        LossSettings().extractor(channels)
