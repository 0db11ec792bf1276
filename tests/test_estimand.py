import pytest

from n2n_dist.estimand import expectation
from n2n_dist.losses.pixel import PIXEL_LOSSES
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
)
from n2n_dist.objective import LossSettings
from n2n_dist.pairs import Captures, Neighbours, Synthetic
from n2n_dist.pairs.base import Pairs

SYNTHETIC, CAPTURES, NEIGHBOURS = Synthetic(), Captures(), Neighbours()


def pixels(name: str) -> LossSettings:
    return LossSettings(pixel=name, perceptual=0)


@pytest.mark.parametrize("noise", MODELS.values())
def test_the_remedy_of_every_noise_estimates_its_clean_image(noise: type[Noise]) -> None:
    assert set(noise.clean) <= {loss.estimates for loss in PIXEL_LOSSES.values()}
    assert PIXEL_LOSSES[noise.remedy].estimates in noise.clean


@pytest.mark.parametrize(
    ("noise", "pairs", "pixel", "learned"),
    [
        (Gaussian(), SYNTHETIC, "l1", "the median of noisy targets (noise gaussian): the clean image"),
        (Gaussian(), SYNTHETIC, "l2", "the mean of noisy targets (noise gaussian): the clean image"),
        (CorrelatedGaussian(), SYNTHETIC, "charbonnier", "the median of noisy targets (noise correlated): the clean"),
        (Poisson(), SYNTHETIC, "l2", "the mean of noisy targets (noise poisson): the clean image"),
        (PoissonGaussian(), CAPTURES, "relative_l2", "the mean of noisy targets (noise poisson-gaussian): the clean"),
        (Speckle(), SYNTHETIC, "l2", "the mean of"),
        (Bernoulli(), SYNTHETIC, "masked_l2", "the mean of"),
        (Impulse(density=0.9), SYNTHETIC, "l0", "the mode of noisy targets (noise impulse): the clean image"),
        (Impulse(density=[0, 0.4]), SYNTHETIC, "l1", "the median of"),
        (Text(), SYNTHETIC, "l1", "the median of noisy targets (noise text): the clean image"),
        (NoNoise(), CAPTURES, "l2", "the mean of noisy targets (the images' own noise): the clean image"),
        (NoNoise(), NEIGHBOURS, "l2", "the mean of noisy targets (the images' own noise): the clean image"),
    ],
    ids=str,
)
def test_what_is_the_clean_image_needs_no_warning(noise: Noise, pairs: Pairs, pixel: str, learned: str) -> None:
    found, warnings = expectation(noise, pairs, pixels(pixel))
    assert found.startswith(learned)
    assert found.endswith(": the clean image")
    assert warnings == []


@pytest.mark.parametrize(
    ("noise", "pairs", "pixel", "expected"),
    [
        (Poisson(), SYNTHETIC, "l1", ("learns the median of noise poisson", "darker", "set loss.pixel=l2")),
        (PoissonGaussian(), SYNTHETIC, "charbonnier", ("the median", "darker", "set loss.pixel=l2")),
        (Speckle(), SYNTHETIC, "l0", ("the mode", "darker", "set loss.pixel=l2")),
        (Impulse(density=0.2), SYNTHETIC, "l2", ("the mean", "mixed with the colours", "set loss.pixel=l0")),
        (Impulse(density=[0.1, 0.7]), SYNTHETIC, "l1", ("the median", "mixed", "set loss.pixel=l0")),
        (Text(), SYNTHETIC, "l2", ("the mean of noise text", "mixed", "set loss.pixel=l1")),
        (Text(coverage=0.6), SYNTHETIC, "l1", ("the median of noise text", "set loss.pixel=l0")),
        (NoNoise(), CAPTURES, "l1", ("the median of the images' own noise", "darker", "set loss.pixel=l2")),
        (Text(), NEIGHBOURS, "l1", ("pairs.name neighbours", "share noise text", "use captures")),
        (Text(coverage=0.45), SYNTHETIC, "l1", ("the median of noise text", "set loss.pixel=l0")),
        (Impulse(density=0.6), NEIGHBOURS, "l0", ("consistency term", "the mean of noise", "use captures")),
        (CorrelatedGaussian(), NEIGHBOURS, "l2", ("pairs.name neighbours", "share noise correlated", "use captures")),
    ],
    ids=str,
)
def test_what_is_not_is_warned_of_with_the_remedy(
    noise: Noise, pairs: Pairs, pixel: str, expected: tuple[str, ...]
) -> None:
    found, (warning,) = expectation(noise, pairs, pixels(pixel))
    assert "clean image" not in found
    for part in expected:
        assert part in warning
    remedy = warning.partition("set loss.pixel=")[2]
    if remedy:  # following it ends the warning
        assert expectation(noise, pairs, pixels(remedy))[1] == []


def test_features_of_noisy_targets_are_biased_unless_matched() -> None:
    _, (plain,) = expectation(Gaussian(), SYNTHETIC, LossSettings())
    assert plain == (
        "loss.form plain: features of noisy targets are biased, so some noise is learned as texture; "
        "set loss.form=matched, or loss.perceptual=0"
    )
    assert expectation(Gaussian(), SYNTHETIC, LossSettings(form="matched"))[1] == []
    _, (averaged,) = expectation(NoNoise(), CAPTURES, LossSettings(pixel="l2", form="averaged"))
    assert "less with more captures" in averaged
    _, (single,) = expectation(NoNoise(), NEIGHBOURS, LossSettings(pixel="l2"))
    assert single.endswith("texture; loss.perceptual=0")  # matched is refused there


def test_clean_targets_need_no_warning() -> None:
    supervised = Synthetic(supervised=True)
    assert expectation(Poisson(), supervised, LossSettings()) == ("the median of clean images", [])
