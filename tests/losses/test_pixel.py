import math

import pytest
import torch

from n2n_dist import rng
from n2n_dist.losses.pixel import PIXEL_LOSSES
from n2n_dist.noise import Bernoulli, Gaussian, Impulse, Noise, Poisson, Text

SIZE = (1, 200, 200)


def random_pair(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_values_by_hand() -> None:
    prediction, target = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), torch.tensor([[[[1.0, 1.0], [0.0, 3.0]]]])
    assert PIXEL_LOSSES["l1"](prediction, target).item() == pytest.approx((1 + 2) / 4)
    assert PIXEL_LOSSES["l2"](prediction, target).item() == pytest.approx((1 + 4) / 4)
    smooth = (math.sqrt(1 + 1e-6) + math.sqrt(4 + 1e-6) + 2 * 1e-3) / 4
    assert PIXEL_LOSSES["charbonnier"](prediction, target).item() == pytest.approx(smooth)
    relative = (1 / 0.01**2 + 4 / 2.01**2) / 4
    assert PIXEL_LOSSES["relative_l2"](prediction, target).item() == pytest.approx(relative)
    mask = torch.tensor([[[[True, False], [False, True]]]])
    assert PIXEL_LOSSES["masked_l2"](prediction, target, mask).item() == pytest.approx(1 / 2)
    assert PIXEL_LOSSES["masked_l2"](prediction, target).item() == pytest.approx(5 / 4)


@pytest.mark.parametrize(("fraction", "exponent"), [(0.0, 2.0), (0.25, 1.5), (0.5, 1.0), (0.95, 0.1)])
def test_the_exponent_of_l0_falls_from_2_to_0(fraction: float, exponent: float) -> None:
    prediction, target = torch.tensor([0.0, 0.0, 0.5]), torch.tensor([0.5, 1.0, 0.5])
    expected = (0.5**exponent + 1 + 1e-8**exponent) / 3
    assert PIXEL_LOSSES["l0"](prediction, target, fraction=fraction).item() == pytest.approx(expected)
    if fraction == 0:
        torch.testing.assert_close(PIXEL_LOSSES["l0"](*random_pair()), PIXEL_LOSSES["l2"](*random_pair()))


@pytest.mark.parametrize(("name", "expected"), [("l1", 1.0), ("l2", 3.25), ("charbonnier", 1.0), ("l0", 1.0)])
def test_l1_learns_the_median_l2_the_mean_and_l0_the_mode(name: str, expected: float) -> None:
    targets = torch.tensor([0.0, 1.0, 1.0, 11.0])
    values = torch.arange(0, 11, 0.01)
    losses = torch.stack([PIXEL_LOSSES[name](value.expand(4), targets, fraction=0.95) for value in values])
    assert values[losses.argmin()].item() == pytest.approx(expected, abs=0.011)
    assert PIXEL_LOSSES[name].estimates == {"l1": "median", "charbonnier": "median", "l2": "mean", "l0": "mode"}[name]


def best_constant(name: str, noise: Noise, clean: float, level: float, fraction: float = 0.0) -> float:
    """The constant image of least loss against noisy versions of a constant image, to 0.01."""
    key = (0, 0, "noise-target", "cpu")
    image = torch.full(SIZE, clean)
    targets = noise(image, level, rng.generator(*key))[None]
    mask = noise.kept(image, level, rng.generator(*key))[None] if isinstance(noise, Bernoulli) else None
    values = torch.arange(0, 101) / 100
    losses = [PIXEL_LOSSES[name](value.expand(targets.shape), targets, mask, fraction) for value in values]
    return values[torch.stack(losses).argmin()].item()


@pytest.mark.parametrize(
    ("name", "noise", "level", "fraction", "expected"),
    [
        ("masked_l2", Bernoulli(), 0.5, 0.0, 0.8),
        ("masked_l2", Bernoulli(), 0.05, 0.0, 0.8),
        ("l2", Impulse(), 0.6, 0.0, 0.4 * 0.8 + 0.6 * 0.5),  # the colour of the noise
        ("l0", Impulse(), 0.6, 0.0, 0.4 * 0.8 + 0.6 * 0.5),  # it begins as l2
        ("l0", Impulse(), 0.6, 0.9, 0.8),
        ("l0", Impulse(), 0.9, 0.95, 0.8),
        ("l1", Impulse(), 0.45, 0.0, 0.8),
        ("l1", Impulse(), 0.9, 0.0, 0.5 / 0.9),  # the median: 0.9 v = 0.5 below the clean value
        ("l1", Text(), 0.3, 0.0, 0.8),
        ("l2", Poisson(), 5.0, 0.0, 0.8),
        ("l1", Poisson(), 2.0, 0.0, 0.5),  # the median, darker: one photon of 1.6 in the mean
        ("relative_l2", Poisson(), 1000.0, 0.0, 0.8),
    ],
    ids=str,
)
def test_the_constant_image_of_least_loss(
    name: str, noise: Noise, level: float, fraction: float, expected: float
) -> None:
    assert best_constant(name, noise, clean=0.8, level=level, fraction=fraction) == pytest.approx(expected, abs=0.016)


def test_clipped_targets_lift_black() -> None:
    targets = Gaussian()(torch.zeros(SIZE), 25, rng.generator(0, 0, "noise-target", "cpu"))
    values = torch.arange(-100, 101) / 1000
    best = [
        values[torch.stack([PIXEL_LOSSES["l2"](value.expand(SIZE), seen) for value in values]).argmin()].item()
        for seen in (targets, targets.clamp(min=0))
    ]
    # the mean of half a Gaussian: 10 levels
    assert best == pytest.approx([0, 25 / 255 / math.sqrt(2 * math.pi)], abs=0.0015)


@pytest.mark.parametrize("clean", [0.02, 0.5, 3.0])
def test_relative_l2_is_at_rest_at_the_mean(clean: float) -> None:
    """Its least value is elsewhere, but no gradient passes through the denominator."""
    targets = Poisson()(torch.full(SIZE, clean), 30, rng.generator(0, 0, "noise-target", "cpu"))
    count = targets.numel()

    def gradient(value: float) -> torch.Tensor:
        prediction = torch.full(SIZE, value, requires_grad=True)
        PIXEL_LOSSES["relative_l2"](prediction, targets).backward()
        return prediction.grad.double() * count

    at_rest = gradient(clean)
    assert abs(at_rest.mean()) < 4 * at_rest.std() / count**0.5
    assert gradient(0.9 * clean).mean() < 0 < gradient(1.1 * clean).mean()


def test_relative_l2_takes_a_prediction_below_black_as_black() -> None:
    prediction = torch.tensor([-0.01, -5.0], requires_grad=True)
    loss = PIXEL_LOSSES["relative_l2"](prediction, torch.zeros(2))
    assert loss.item() == pytest.approx((1 + 500**2) / 2)
    loss.backward()
    assert prediction.grad.isfinite().all()


def test_lost_pixels_of_the_target_have_no_gradient() -> None:
    prediction, target = random_pair()
    prediction.requires_grad_()
    mask = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.5
    PIXEL_LOSSES["masked_l2"](prediction, target * mask, mask).backward()
    assert not prediction.grad[~mask.expand(-1, 3, -1, -1)].any()
    kept = mask.sum((1, 2, 3), keepdim=True)  # every image counts alike, however much of it is lost
    expected = 2 * (prediction - target) / (4 * 3 * kept) * mask
    torch.testing.assert_close(prediction.grad, expected.detach())


@pytest.mark.parametrize("keep", [0.05, 0.5, 1.0])
def test_masked_l2_is_in_the_mean_that_of_the_clean_image(keep: float) -> None:
    """As large as with clean targets: optim.clip and the weight of a perceptual term mean the same."""
    prediction, clean = random_pair()
    masks = [torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(n)) < keep for n in range(2000)]
    found = torch.stack([PIXEL_LOSSES["masked_l2"](prediction, clean * mask, mask) for mask in masks])
    expected = PIXEL_LOSSES["masked_l2"](prediction, clean)
    # an image of which all 64 pixels are lost counts nothing
    lost = (1 - keep) ** 64 * expected
    assert abs(found.mean() - (expected - lost)) <= 4 * found.std() / len(masks) ** 0.5 + 1e-6


def test_an_image_whose_target_lost_every_pixel_counts_nothing() -> None:
    prediction, target = random_pair()
    prediction.requires_grad_()
    mask = torch.ones(4, 1, 8, 8, dtype=torch.bool)
    mask[0] = False
    PIXEL_LOSSES["masked_l2"](prediction, target * mask, mask).backward()
    assert not prediction.grad[0].any()
    assert prediction.grad[1:].isfinite().all()


@pytest.mark.parametrize("name", PIXEL_LOSSES)
@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.999])
def test_gradient_is_finite_where_prediction_and_target_agree(name: str, fraction: float) -> None:
    prediction = torch.zeros(1, 1, 2, 2, requires_grad=True)
    PIXEL_LOSSES[name](prediction, torch.zeros(1, 1, 2, 2), fraction=fraction).backward()
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_mean_over_micro_batches_is_that_of_the_batch(name: str) -> None:
    prediction, target = random_pair()
    mask = (
        torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        < torch.tensor([0, 0.2, 0.6, 1])[:, None, None, None]
    )
    whole = PIXEL_LOSSES[name](prediction, target, mask, 0.6)
    for parts in (2, 4):
        chunks = zip(*(whole_.chunk(parts) for whole_ in (prediction, target, mask)), strict=True)
        torch.testing.assert_close(torch.stack([PIXEL_LOSSES[name](*chunk, 0.6) for chunk in chunks]).mean(), whole)
