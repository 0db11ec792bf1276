import pytest
import torch

from n2n_dist.errors import UserError
from n2n_dist.losses.perceptual import matched_perceptual, perceptual
from n2n_dist.losses.pixel import PIXEL_LOSSES
from n2n_dist.noise import (
    Bernoulli,
    CorrelatedGaussian,
    Gaussian,
    Impulse,
    Noise,
    NoNoise,
    Poisson,
    PoissonGaussian,
)
from n2n_dist.noise.keyed import KeyedNoise
from n2n_dist.objective import LossSettings, check_objective, loss_terms
from n2n_dist.pairs import Captures, Neighbours, Synthetic
from n2n_dist.pairs.base import Pair, Pairs
from n2n_dist.pairs.neighbours import Consistency, subsample

SYNTHETIC, CAPTURES, NEIGHBOURS = Synthetic(), Captures(), Neighbours()
MEAN = Captures(target="mean")
MATCHED, AVERAGED = LossSettings(form="matched"), LossSettings(form="averaged")


class Edges(torch.nn.Module):
    """Features that are cheap."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [torch.relu(image[..., 1:] - image[..., :-1])]


def images(count: int, seed: int = 0, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def made_pair(positions: list[int], noise: Noise | None = None) -> Pair:
    """A pair whose samples depend on their position alone."""
    inputs, targets, averaged = (
        torch.cat([images(1, 10 * position + side) for position in positions]) for side in range(3)
    )
    mask = torch.cat([images(1, 10 * position + 3)[:, :1] < 0.1 * position for position in positions])
    choice = torch.cat([(images(1, 10 * position + 4)[:, 0] * 8).long() for position in positions])
    large = torch.cat([images(1, 10 * position + 5, 32) for position in positions])
    return Pair(
        inputs,
        targets,
        mask,
        averaged,
        None if noise is None else KeyedNoise(noise, 0, positions),
        Consistency(large, choice, targets),
        gamma=2.0,
    )


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 3, 3, padding=1)


def test_total_is_the_weighted_sum_and_reaches_the_model() -> None:
    settings = LossSettings(pixel="l2", perceptual=0.25, layers=["relu1_2"])
    features = settings.extractor(3)
    model = torch.nn.Conv2d(3, 3, 1)
    inputs, targets = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    parts = loss_terms(model, features, settings, Pair(inputs, targets))
    assert parts["pixel"].item() == pytest.approx((model(inputs) - targets).square().mean().item())
    assert parts["perceptual"] > 0
    assert parts["total"].item() == pytest.approx((parts["pixel"] + 0.25 * parts["perceptual"]).item())
    parts["total"].backward()
    assert model.weight.grad.abs().sum() > 0


def test_without_lambda_there_is_no_perceptual_part() -> None:
    settings = LossSettings(perceptual=0)
    assert settings.extractor(4) is None
    inputs, targets = torch.rand(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = loss_terms(torch.nn.Identity(), None, settings, Pair(inputs, targets))
    assert parts["total"].item() == parts["pixel"].item() == pytest.approx((inputs - targets).abs().mean().item())
    assert "perceptual" not in parts


@pytest.mark.parametrize("pixel", PIXEL_LOSSES)
@pytest.mark.parametrize("form", ["plain", "matched"])
def test_losses_of_parts_average_to_that_of_the_batch(pixel: str, form: str) -> None:
    """Ranks and accumulation agree: every loss is a mean over each image first."""
    settings, model, positions = LossSettings(pixel=pixel, form=form), network(), [1, 9, 4, 6]
    noise = PoissonGaussian(lam=[10, 100])
    whole = loss_terms(model, Edges(), settings, made_pair(positions, noise), fraction=0.4)
    for parts in ([[1], [9], [4], [6]], [[1, 9], [4, 6]]):
        found = [loss_terms(model, Edges(), settings, made_pair(part, noise), fraction=0.4) for part in parts]
        assert whole.keys() == {"pixel", "consistency", "perceptual", "total"}
        for name, value in whole.items():
            torch.testing.assert_close(torch.stack([part[name] for part in found]).mean(), value)


def test_the_consistency_term_grows_and_has_one_side_without_gradient() -> None:
    pair, model, settings = made_pair([1, 2]), network(), LossSettings(pixel="l2", perceptual=0)
    found = {done: loss_terms(model, None, settings, pair, done) for done in (0.0, 0.5)}
    prediction = model(pair.inputs)
    with torch.no_grad():
        first, second = subsample(model(pair.consistency.images), pair.consistency.choice)
    by_hand = (prediction - pair.targets - first + second).square().mean()
    for done, parts in found.items():
        torch.testing.assert_close(parts["consistency"], by_hand)
        torch.testing.assert_close(parts["total"], parts["pixel"] + 2.0 * done * by_hand)
    expected = torch.autograd.grad(by_hand, model.weight)[0]
    torch.testing.assert_close(torch.autograd.grad(found[0.5]["consistency"], model.weight)[0], expected)


def test_half_precision_leaves_the_gradient_beside_a_pass_without_one() -> None:
    """Autocast keeps cast weights; those of a pass without gradients would cut them off."""
    pair, model = made_pair([1, 2]), network()
    with torch.autocast("cpu", torch.bfloat16):
        parts = loss_terms(model, None, LossSettings(pixel="l2", perceptual=0), pair, 0.5)
    parts["total"].backward()
    assert model.weight.grad.abs().sum() > 0


def test_neighbours_with_consistency_have_the_clean_image_at_rest_where_it_is_not_smooth() -> None:
    """A checkerboard: its neighbours differ, so that without the term a perfect denoiser would be pulled to grey."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    clean = ((rows + columns) % 2).float().expand(8, 1, 64, 64)
    choice = torch.randint(8, (8, 32, 32), generator=torch.Generator().manual_seed(0))
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))

    class Perfect(torch.nn.Module):
        """The clean image of either size, with a contrast that is to stay 1."""

        def __init__(self) -> None:
            super().__init__()
            self.contrast = torch.nn.Parameter(torch.ones(()))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            known = clean if image.shape[-1] == 64 else subsample(clean, choice)[0]
            return 0.5 + self.contrast * (known - 0.5)

    inputs, targets = subsample(noisy, choice)
    pair = Pair(inputs, targets, consistency=Consistency(noisy, choice, targets), gamma=2.0)
    parts = loss_terms(model := Perfect(), None, LossSettings(pixel="l2", perceptual=0), pair, 0.5)
    names = ("pixel", "consistency")
    pixel, consistency = (torch.autograd.grad(parts[name], model.contrast, retain_graph=True)[0] for name in names)
    assert pixel > 0.5  # less contrast, please
    assert abs(consistency) < 4 * 0.1 / targets.numel() ** 0.5


def test_forms_of_the_perceptual_term() -> None:
    pair, model, features = made_pair([1, 2], Gaussian()), torch.nn.Identity(), Edges()

    def term(settings: LossSettings, pair: Pair) -> torch.Tensor:
        return loss_terms(model, features, settings, pair)["perceptual"]

    first, second = (pair.noise(pair.inputs, f"noise-prediction-{draw}") for draw in (1, 2))
    assert not torch.equal(first, second)
    matched = matched_perceptual(features, first, second, pair.targets)
    torch.testing.assert_close(term(MATCHED, pair), matched)
    averaged = perceptual(features, pair.inputs, pair.averaged)
    torch.testing.assert_close(term(AVERAGED, pair), averaged)
    pair.averaged = None
    torch.testing.assert_close(term(LossSettings(), pair), perceptual(features, pair.inputs, pair.targets))
    pair.noise = None  # a clean target
    torch.testing.assert_close(term(MATCHED, pair), perceptual(features, pair.inputs, pair.targets))


def test_the_mean_of_captures_is_read_only_for_the_term_that_needs_it() -> None:
    assert AVERAGED.needs_average
    assert not LossSettings(form="averaged", perceptual=0).needs_average
    assert not MATCHED.needs_average


@pytest.mark.parametrize(
    ("noise", "pairs", "loss", "message"),
    [
        (NoNoise(), SYNTHETIC, LossSettings(), r"^noise\.name none: .*choose a noise, or set pairs\.name"),
        (Bernoulli(), CAPTURES, LossSettings(pixel="masked_l2"), r"^noise\.name bernoulli: .*; use synthetic"),
        (Bernoulli(), NEIGHBOURS, LossSettings(pixel="masked_l2"), r"^noise\.name bernoulli: .*; use synthetic"),
        (Bernoulli(), SYNTHETIC, LossSettings(), r"^loss\.pixel l1: counts .* bernoulli has lost; use masked_l2"),
        (Gaussian(), SYNTHETIC, LossSettings(pixel="masked_l2"), r"^loss\.pixel masked_l2: noise\.name gaussian .*l2"),
        (Gaussian(), SYNTHETIC, AVERAGED, r"^loss\.form averaged: needs pairs\.name captures, not synthetic"),
        (NoNoise(), NEIGHBOURS, MATCHED, r"^loss\.form matched: .* pairs\.name neighbours .* use plain"),
        (PoissonGaussian(), MEAN, MATCHED, r"^loss\.form matched: .* pairs\.target mean .* use plain"),
        (NoNoise(), CAPTURES, MATCHED, r"noise\.lam=1/a noise\.read=sqrt\(b\)/a.*the audit prints"),
        (Poisson(lam=[1, 9]), CAPTURES, MATCHED, r"^noise\.lam \[1, 9\]: describes the captures; give one number"),
    ],
    ids=str,
)
def test_what_cannot_work_together_is_refused(noise: Noise, pairs: Pairs, loss: LossSettings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_objective(noise, pairs, loss)


@pytest.mark.parametrize(
    ("noise", "pairs", "loss"),
    [
        (Bernoulli(), Synthetic(supervised=True), LossSettings()),
        (Bernoulli(), SYNTHETIC, LossSettings(pixel="masked_l2", form="matched")),
        (PoissonGaussian(), CAPTURES, MATCHED),
        (CorrelatedGaussian(), SYNTHETIC, MATCHED),
        (NoNoise(), CAPTURES, LossSettings(form="matched", perceptual=0)),
        (Impulse(), NEIGHBOURS, LossSettings(pixel="l0")),
    ],
    ids=str,
)
def test_what_can_is_not(noise: Noise, pairs: Pairs, loss: LossSettings) -> None:
    check_objective(noise, pairs, loss)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"pixel": "l3"}, r"loss\.pixel 'l3'"),
        ({"form": "other"}, r"loss\.form 'other': must be plain, averaged or matched"),
        ({"perceptual": -0.1}, r"loss\.perceptual -0\.1"),
        ({"perceptual": float("nan")}, r"loss\.perceptual nan"),
        ({"perceptual": float("inf")}, r"loss\.perceptual inf"),
        ({"layers": []}, r"loss\.layers \[\]"),
        ({"layers": ["relu1_2", "relu3_4"], "perceptual": 0.0}, r"loss\.layers .*relu3_4"),
    ],
)
def test_loss_settings_out_of_range_are_refused_by_name(values: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        LossSettings(**values)


@pytest.mark.parametrize("channels", [2, 4])
def test_vgg_sees_one_or_three_channels(channels: int) -> None:
    with pytest.raises(UserError, match=rf"loss\.perceptual 0\.01.*{channels}"):
        LossSettings().extractor(channels)
