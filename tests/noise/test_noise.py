import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from n2n_dist import rng
from n2n_dist.errors import UserError
from n2n_dist.noise import (
    MODELS,
    Bernoulli,
    CorrelatedGaussian,
    Gaussian,
    Impulse,
    Noise,
    NoNoise,
    Poisson,
    PoissonGaussian,
    Speckle,
    Text,
    noise_of_level,
)

SIZE = (1, 400, 500)
COUNT = math.prod(SIZE)
ADDED = [cls() for cls in MODELS.values() if cls is not NoNoise]
"""One of each model that changes the image."""


def noisy(
    noise: Noise,
    value: float,
    level: float,
    purpose: str = "noise-input",
    size: tuple[int, ...] = SIZE,
    device: str = "cpu",
) -> torch.Tensor:
    return noise(torch.full(size, value, device=device), level, rng.generator(0, 0, purpose, device))


def check_moments(values: torch.Tensor, mean: float, variance: float) -> None:
    """Compare with the mean and variance of independent values, to 4 standard errors."""
    values = values.double().flatten()
    spread = (values - values.mean()).square()
    assert abs(values.mean() - mean) <= 4 * math.sqrt(variance / len(values))
    assert abs(spread.mean() - variance) <= 4 * spread.std() / math.sqrt(len(values))


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
    assert torch.equal(noisy(Poisson(), -0.5, 30, size=(1, 10, 10)), torch.zeros(1, 10, 10))
    dark = noisy(PoissonGaussian(read=3.0), -0.5, 30)
    check_moments(dark, 0.0, (3 / 30) ** 2)


@pytest.mark.parametrize("noise", [Poisson(), PoissonGaussian()])
def test_photons_of_a_prediction_that_is_not_finite_are_not_a_number(noise: Noise) -> None:
    image = torch.tensor([math.nan, math.inf, 0.5]).view(1, 1, 3)
    noisy = noise(image, 30.0, torch.Generator().manual_seed(0))
    assert noisy.isfinite().tolist() == [[[False, False, True]]]


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, 1.5])
@pytest.mark.parametrize(
    ("noise", "level", "mean", "variance"),
    [
        (PoissonGaussian(read=2.0), 20.0, lambda x: x, lambda x: x / 20 + (2 / 20) ** 2),
        (PoissonGaussian(read=0.0), 200.0, lambda x: x, lambda x: x / 200),
        (Bernoulli(), 0.5, lambda x: x / 2, lambda x: x**2 / 4),
        (Bernoulli(), 0.1, lambda x: 0.1 * x, lambda x: 0.1 * 0.9 * x**2),
        (Impulse(), 0.5, lambda x: (x + 0.5) / 2, lambda x: x**2 / 2 + 1 / 6 - (x + 0.5) ** 2 / 4),
        (Impulse(), 1.0, lambda x: 0.5, lambda x: 1 / 12),
        (Speckle(), 1.0, lambda x: x, lambda x: x**2),
        (Speckle(), 4.5, lambda x: x, lambda x: x**2 / 4.5),
    ],
)
def test_models_have_their_mean_and_variance(
    value: float, noise: Noise, level: float, mean: Callable[[float], float], variance: Callable[[float], float]
) -> None:
    check_moments(noisy(noise, value, level), mean(value), variance(value))


def test_all_channels_of_a_pixel_are_lost_or_replaced_together() -> None:
    lost = noisy(Bernoulli(), 1.0, 0.5, size=(3, 100, 100)) == 0
    replaced = noisy(Impulse(), 2.0, 0.5, size=(3, 100, 100)) != 2
    for pixels in (lost, replaced):
        assert (pixels == pixels[:1]).all()
        check_moments(pixels[0], 0.5, 0.25)
    colours = noisy(Impulse(), 2.0, 1.0, size=(2, 400, 500)).double()
    assert abs(torch.corrcoef(colours.flatten(1))[0, 1]) < 4 / COUNT**0.5


def test_the_mask_is_that_of_the_noise() -> None:
    clean = torch.ones(3, 40, 50)
    noise, key = Bernoulli(), (0, 7, "noise-target", "cpu")
    kept = noise.kept(clean, 0.3, rng.generator(*key))
    assert kept.shape == (1, 40, 50)
    assert kept.dtype == torch.bool
    assert torch.equal(noise(clean, 0.3, rng.generator(*key)), clean * kept)


@pytest.mark.parametrize("blur", [1.0, 2.5])
def test_correlated_noise_has_its_variance_and_correlation(blur: float) -> None:
    field = noisy(CorrelatedGaussian(blur=blur), 0.5, 25, size=(1, 1000, 1000))[0].double() - 0.5
    variance = (25 / 255) ** 2

    def correlation(down: float, right: float) -> float:
        return math.exp(-(down**2 + right**2) / (4 * blur**2))

    reach = range(-12, 13)
    together = sum(correlation(down, right) for down in reach for right in reach)
    squares = sum(correlation(down, right) ** 2 for down in reach for right in reach)
    assert abs(field.mean()) < 4 * math.sqrt(variance * together / field.numel())
    error = math.sqrt(2 * squares / field.numel())  # of a variance or correlation
    cut_off = 0.01  # the kernel ends at 3 standard deviations, and is sampled
    assert abs(field.var() / variance - 1) < 4 * error
    for down, right in ((0, 1), (1, 0), (2, 1), (0, 4)):
        found = (field[: 1000 - down, : 1000 - right] * field[down:, right:]).mean() / variance
        assert abs(found - correlation(down, right)) < 4 * error + cut_off
    border = torch.cat([field[0], field[-1], field[:, 0], field[:, -1]])  # as noisy as the middle
    assert abs(border.var() / variance - 1) < 4 * math.sqrt(2 * squares / border.numel())


def test_a_narrow_kernel_leaves_white_noise() -> None:
    field = noisy(CorrelatedGaussian(blur=0.1), 0.5, 25)
    check_moments(field, 0.5, (25 / 255) ** 2)
    assert abs(torch.corrcoef(torch.stack([field[..., 1:], field[..., :-1]]).flatten(1))[0, 1]) < 4 / COUNT**0.5


def test_text_covers_its_share_with_colours_that_are_level() -> None:
    strings, shares = [], []
    for position in range(200):
        image = Text()(torch.full((3, 64, 64), 2.0), 0.25, rng.generator(0, position, "noise-input", "cpu"))
        covered = (image != 2).all(0)
        assert (covered == (image != 2).any(0)).all()
        shares.append(covered.double().mean())
        strings.append(image[:, covered].T.unique(dim=0))
    assert min(shares) >= 0.25
    assert 0.25 <= torch.stack(shares).mean() < 0.33  # half of a string more
    check_moments(torch.cat(strings), 0.5, 1 / 12)
    assert torch.equal(noisy(Text(), 0.5, 0.0, size=(3, 20, 20)), torch.full((3, 20, 20), 0.5))


def test_nothing_is_added_to_images_that_are_noisy_already() -> None:
    image = torch.rand(3, 8, 8)
    assert torch.equal(NoNoise()(image, NoNoise().sample_level(0.7), rng.generator(0, 0, "noise-input", "cpu")), image)


@pytest.mark.parametrize("noise", ADDED, ids=str)
def test_fields_are_equal_for_equal_keys_and_independent_for_other_purposes(noise: Noise) -> None:
    first, again = (noisy(noise, 0.4, noise.sample_level(0.5)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.dtype == torch.float32
    assert first.shape == SIZE
    other = noisy(noise, 0.4, noise.sample_level(0.5), "noise-target")
    correlation = torch.corrcoef(torch.stack([first, other]).flatten(1).double())[0, 1]
    # as many independent values as pixels, or as kernels, or some tens of strings
    count = {"correlated": COUNT / (2 * math.pi), "text": 100}.get(noise.name, COUNT)
    assert abs(correlation) < 4 / count**0.5


def test_fields_are_those_of_every_cpu() -> None:
    """What the keys gave when this was written: a run that is continued on another machine sees the same noise."""
    known = {
        "gaussian": [0.4961, 0.37761, 0.37878, 0.33301],
        "correlated": [0.56435, 0.583, 0.57378, 0.48859],
        "poisson": [0.36667, 0.53333, 0.26667, 0.4],
        "poisson-gaussian": [0.36398, 0.47051, 0.35212, 0.37685],
        "bernoulli": [0.0, 0.0, 0.0, 0.4],
        "impulse": [0.4, 0.4, 0.4, 0.45616],
        "speckle": [0.91384, 0.25508, 0.39857, 0.29338],
    }
    for noise in ADDED:
        if noise.name == "text":  # strings depend on Pillow's font
            continue
        field = noisy(noise, 0.4, noise.sample_level(0.5), size=(1, 5, 4)).flatten()[:4]
        torch.testing.assert_close(field, torch.tensor(known[noise.name]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("noise", ADDED, ids=str)
def test_derivatives_with_respect_to_the_image(noise: Noise) -> None:
    """With the random numbers held fixed; of counted photons, the derivative of their mean."""
    clean = torch.full((3, 30, 30), 0.4, requires_grad=True)
    level = noise.sample_level(0.5)
    found = noise(clean, level, rng.generator(0, 0, "noise-prediction-1", "cpu"))
    (gradient,) = torch.autograd.grad(found.sum(), clean)
    step, raised = 0.01, noisy(noise, 0.41, level, "noise-prediction-1", (3, 30, 30))
    expected = torch.ones_like(clean) if noise.name.startswith("poisson") else (raised - found) / step
    torch.testing.assert_close(gradient, expected, atol=2e-4, rtol=2e-3)
    assert gradient.abs().sum() > 0


@given(
    noise=st.sampled_from([noise for noise in ADDED if noise.name != "text"]),
    values=st.lists(st.floats(-2, 100, width=32), min_size=2, max_size=12),
    channels=st.integers(1, 4),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_any_image_stays_float32_finite_and_in_shape(
    noise: Noise, values: list[float], channels: int, uniform: float
) -> None:
    """High dynamic range, and what lies below black."""
    clean = torch.tensor(values).expand(channels, 3, len(values)).contiguous()
    before = clean.clone()
    found = noise(clean, noise.sample_level(uniform), rng.generator(0, 0, "noise-input", "cpu"))
    assert found.dtype == torch.float32
    assert found.shape == clean.shape
    assert found.isfinite().all()
    assert torch.equal(clean, before)


@pytest.mark.parametrize(("noise", "low", "high"), [(Gaussian(sigma=[5, 50]), 5, 50), (Poisson(lam=[4, 60]), 4, 60)])
def test_a_range_is_drawn_from_evenly(noise: Noise, low: float, high: float) -> None:
    assert noise.sample_level(0.0) == low
    levels = torch.tensor([noise.sample_level(rng.uniform(0, position, "noise-level")) for position in range(4000)])
    assert levels.min() >= low
    assert levels.max() <= high
    assert abs(levels.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * 4000)


def test_a_number_is_the_level_of_every_sample() -> None:
    assert {Gaussian(sigma=25).sample_level(u) for u in (0.0, 0.5, 0.99)} == {25}
    assert {Poisson(lam=30.0).sample_level(u) for u in (0.0, 0.5, 0.99)} == {30}


@pytest.mark.parametrize(
    "level",
    [-1, "25", None, True, float("nan"), float("inf"), [5], [5, 1], [1, 2, 3], ["a", "b"], [-1, 5], [0.1, None]],
)
@pytest.mark.parametrize("noise", ADDED, ids=str)
def test_levels_that_are_none_are_refused_by_name(noise: Noise, level: Any) -> None:
    with pytest.raises(UserError, match=rf"noise\.{noise.level_name} .*: must be a finite number >= .* or a range"):
        type(noise)(**{noise.level_name: level})


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (Bernoulli, {"keep": 0}, r"noise\.keep 0: .* >= 0\.001 and <= 1, or"),
        (Bernoulli, {"keep": [0.5, 1.1]}, r"noise\.keep \[0\.5, 1\.1\]: "),
        (Impulse, {"density": 1.01}, r"noise\.density 1\.01: .* <= 1, or"),
        (Text, {"coverage": 0.95}, r"noise\.coverage 0\.95: .* <= 0\.9, or"),
        (Speckle, {"looks": 0}, r"noise\.looks 0: "),
        (PoissonGaussian, {"lam": 0}, r"noise\.lam 0: "),
        (PoissonGaussian, {"read": -1.0}, r"noise\.read -1\.0: must be 0 or more electrons"),
        (PoissonGaussian, {"read": math.nan}, r"noise\.read nan"),
        (CorrelatedGaussian, {"blur": 0.0}, r"noise\.blur 0\.0: must be above 0 and at most 32 pixels"),
        (CorrelatedGaussian, {"blur": 33.0}, r"noise\.blur 33\.0"),
    ],
)
def test_settings_out_of_range_are_refused(cls: type[Noise], values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cls(**values)


def test_zero_is_a_sigma_but_no_number_of_photons() -> None:
    assert torch.equal(noisy(Gaussian(sigma=0), 0.5, 0, size=(1, 2, 5)), torch.full((1, 2, 5), 0.5))
    with pytest.raises(UserError, match=r"noise\.lam"):
        Poisson(lam=0)


def test_models_are_chosen_by_the_name_they_carry() -> None:
    assert {name: model().name for name, model in MODELS.items()} == {name: name for name in MODELS}


@pytest.mark.gpu
@pytest.mark.parametrize("noise", ADDED, ids=str)
def test_noise_is_made_on_the_gpu(noise: Noise) -> None:
    level = noise.sample_level(0.5)
    field = noisy(noise, 0.4, level, device="cuda")
    assert field.device.type == "cuda"
    assert torch.equal(field, noisy(noise, 0.4, level, device="cuda"))
    there, here = field.double().cpu(), noisy(noise, 0.4, level).double()
    count = COUNT / (4 * math.pi) if noise.name == "correlated" else COUNT
    assert abs(there.mean() - here.mean()) < 4 * math.sqrt(2 * here.var() / count)
    assert there.var() == pytest.approx(here.var(), rel=0.05)


def test_a_name_and_a_level_make_a_model() -> None:
    assert noise_of_level("poisson", 12.0) == Poisson(lam=12.0)
    assert noise_of_level("bernoulli").level == 0.5
    for name, level, message in (
        ("rain", None, r"noise rain: must be one of gaussian, correlated, .*speckle$"),
        ("none", None, "noise none: must be one of"),
        ("bernoulli", 1.5, r"noise.keep 1.5: must be a finite number >= 0.001 and <= 1"),
    ):
        with pytest.raises(UserError, match=message):
            noise_of_level(name, level)
