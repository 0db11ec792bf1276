import math
from typing import Any

import pytest
import torch

from n2n_dist.errors import Refusal
from n2n_dist.noise import keys
from n2n_dist.noise.models import MODELS, Gaussian, Noise, Poisson

COUNT = 200_000


def noisy(noise: Noise, value: float, level: float, purpose: str = "noise-input", count: int = COUNT) -> torch.Tensor:
    return noise(torch.full((count,), value), level, keys.generator(0, 0, purpose, "cpu"))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sigma", [5.0, 25.0, 75.0])
def test_gaussian_has_its_mean_and_variance(value: float, sigma: float) -> None:
    field = noisy(Gaussian(), value, sigma).double()
    variance = (sigma / 255) ** 2
    assert abs(field.mean() - value) < 4 * math.sqrt(variance / COUNT)
    assert abs(field.var() - variance) < 4 * variance * math.sqrt(2 / COUNT)


@pytest.mark.parametrize("value", [0.0, 0.02, 0.3, 1.0, 1.2])
@pytest.mark.parametrize("lam", [4.0, 30.0])
def test_poisson_has_its_mean_and_variance(value: float, lam: float) -> None:
    field = noisy(Poisson(), value, lam).double()
    photons = lam * value
    assert abs(field.mean() - value) <= 4 * math.sqrt(photons / COUNT) / lam
    spread = math.sqrt((photons + 2 * photons**2) / COUNT)  # of the variance of a count
    assert abs(field.var() - value / lam) <= 4 * spread / lam**2
    counts = field * lam
    torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)


def test_noise_is_never_clipped_or_rounded() -> None:
    dark, bright = noisy(Gaussian(), 0.0, 25), noisy(Gaussian(), 1.0, 25)
    assert abs((dark < 0).double().mean() - 0.5) < 4 * 0.5 / COUNT**0.5
    assert abs((bright > 1).double().mean() - 0.5) < 4 * 0.5 / COUNT**0.5
    assert dark.unique().numel() > COUNT / 2
    assert noisy(Poisson(), 1.0, 4).max() > 1.5


def test_poisson_takes_what_lies_below_black_as_no_light() -> None:
    assert torch.equal(noisy(Poisson(), -0.5, 30, count=100), torch.zeros(100))


@pytest.mark.parametrize(("noise", "level"), [(Gaussian(), 25.0), (Poisson(), 30.0)])
def test_fields_are_equal_for_equal_keys_and_independent_for_other_purposes(noise: Noise, level: float) -> None:
    first, again = noisy(noise, 0.5, level), noisy(noise, 0.5, level)
    assert torch.equal(first, again)
    other = noisy(noise, 0.5, level, "noise-target")
    correlation = torch.corrcoef(torch.stack([first, other]))[0, 1]
    assert abs(correlation) < 4 / COUNT**0.5


@pytest.mark.parametrize(("noise", "low", "high"), [(Gaussian(sigma=[5, 50]), 5, 50), (Poisson(lam=[4, 60]), 4, 60)])
def test_a_range_is_drawn_from_evenly(noise: Noise, low: float, high: float) -> None:
    assert noise.level(0.0) == low
    levels = torch.tensor([noise.level(keys.uniform(0, position, "noise-level")) for position in range(4000)])
    assert levels.min() >= low
    assert levels.max() <= high
    assert abs(levels.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * 4000)


def test_a_number_is_the_level_of_every_sample() -> None:
    assert {Gaussian(sigma=25).level(u) for u in (0.0, 0.5, 0.99)} == {25}
    assert {Poisson(lam=30.0).level(u) for u in (0.0, 0.5, 0.99)} == {30}


@pytest.mark.parametrize(
    "level",
    [-1, "25", None, True, float("nan"), float("inf"), [5], [5, 1], [1, 2, 3], ["a", "b"], [-1, 5], [0.1, None]],
)
def test_levels_that_are_none_are_refused_by_name(level: Any) -> None:
    with pytest.raises(Refusal, match=r"noise\.sigma"):
        Gaussian(sigma=level)
    with pytest.raises(Refusal, match=r"noise\.lam"):
        Poisson(lam=level)


def test_zero_is_a_sigma_but_no_number_of_photons() -> None:
    assert torch.equal(noisy(Gaussian(sigma=0), 0.5, 0, count=10), torch.full((10,), 0.5))
    with pytest.raises(Refusal, match=r"noise\.lam"):
        Poisson(lam=0)


def test_models_are_chosen_by_the_name_they_carry() -> None:
    assert {name: model().name for name, model in MODELS.items()} == {name: name for name in MODELS}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("noise", "level", "variance"), [(Gaussian(), 25.0, (25 / 255) ** 2), (Poisson(), 30.0, 1 / 60)]
)
def test_noise_is_made_on_the_gpu(noise: Noise, level: float, variance: float) -> None:
    clean = torch.full((COUNT,), 0.5, device="cuda")
    field = noise(clean, level, keys.generator(0, 0, "noise-input", "cuda"))
    assert field.device.type == "cuda"
    assert abs(field.double().mean().item() - 0.5) < 4 * math.sqrt(variance / COUNT)
