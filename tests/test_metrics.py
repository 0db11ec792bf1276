import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from n2n_dist import metrics
from n2n_dist.errors import UserError
from n2n_dist.metrics import (
    EXACT,
    LPIPS,
    METRICS,
    Metric,
    Totals,
    UnbiasedMSE,
    check_metrics,
    clip,
    psnr,
    score,
    score_captures,
    ssim,
    to_8_bit,
    unbiased_mse,
)


@pytest.fixture(scope="module")
def lpips() -> LPIPS:
    return LPIPS()


def test_psnr_by_hand() -> None:
    reference = torch.zeros(3, 3, 4, 4)
    image = reference.clone()
    image[0] = 0.1  # 20 dB
    image[1, 0] = 0.1  # one channel of three, jointly: a third of the squared error
    image[2] = 1.0
    expected = torch.tensor([20.0, 20 + 10 * math.log10(3), 0.0], dtype=torch.float64)
    torch.testing.assert_close(psnr(image, reference), expected, atol=1e-5, rtol=0)
    assert psnr(reference, reference).tolist() == [EXACT] * 3


def test_psnr_is_not_clipped() -> None:
    assert psnr(torch.full((1, 1, 4, 4), 11.0), torch.ones(1, 1, 4, 4)).item() == pytest.approx(-20)


def test_values_of_the_reference_pair(lpips: LPIPS, astronaut_pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    clean, noisy = astronaut_pair
    assert psnr(noisy, clean).item() == pytest.approx(20.8596, abs=1e-4)
    with torch.inference_mode():
        assert lpips(noisy, clean).item() == pytest.approx(0.478304, abs=2e-5)


def test_ssim_agrees_with_scikit_image(astronaut_pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    measure = pytest.importorskip("skimage.metrics")
    clean, noisy = (image[..., :128, :160] for image in astronaut_pair)
    both = ssim(torch.cat([noisy, clean]), torch.cat([clean, clean]))
    expected = measure.structural_similarity(
        *(image[0].permute(1, 2, 0).double().numpy() for image in (noisy, clean)),
        channel_axis=2,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert both.shape == (2,)
    assert both[0].item() == pytest.approx(expected, abs=1e-4)
    assert both[1].item() == pytest.approx(1)


def test_ssim_of_a_single_image_is_a_vector() -> None:
    image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert ssim(image, image).shape == (1,)


def test_to_8_bit_clips_and_rounds() -> None:
    values = torch.tensor([-0.3, 0.0, 0.4 / 255, 0.6 / 255, 0.5019, 1.0, 1.7])
    assert (to_8_bit(values) * 255).tolist() == pytest.approx([0, 0, 0, 1, 128, 255, 255], abs=1e-4)


def test_lpips_clips_repeats_grey_and_measures_each_image(lpips: LPIPS) -> None:
    grey, other = torch.rand(2, 2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    found = lpips(grey, other)
    assert found.shape == (2,)
    torch.testing.assert_close(found[1:], lpips(grey[1:], other[1:]))
    torch.testing.assert_close(found, lpips(grey.repeat(1, 3, 1, 1), other.repeat(1, 3, 1, 1)))
    torch.testing.assert_close(lpips(grey * 3 - 1, other), lpips((grey * 3 - 1).clamp(0, 1), other))
    assert lpips(grey, grey).abs().max() < 1e-6
    assert not any(p.requires_grad for p in lpips.parameters())


def test_missing_or_damaged_weights_of_lpips_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tmp_path / "short.safetensors"
    short.write_bytes(metrics.ALEXNET.read_bytes()[:1000])
    for path in (short, tmp_path / "none.safetensors"):
        monkeypatch.setattr(metrics, "ALEXNET", path)
        with pytest.raises(UserError, match=rf"{path}.*install the package again"):
            LPIPS()


def blur(images: torch.Tensor) -> torch.Tensor:
    """Return the binomial mean over 3 x 3 pixels of images [N, 1, H, W]."""
    weights = torch.tensor([1.0, 2.0, 1.0]) / 4
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), weights.outer(weights)[None, None])


@pytest.mark.parametrize(
    ("sigmas", "correlated", "photons"),
    [((25, 25), False, None), ((25, 12), False, None), ((25, 25), True, None), ((0, 0), False, 30)],
    ids=["equal", "unequal", "correlated", "poisson"],
)
def test_intervals_of_unbiased_mse_cover_the_true_error(
    astronaut_pair: tuple[torch.Tensor, torch.Tensor],
    sigmas: tuple[float, float],
    correlated: bool,
    photons: float | None,
) -> None:
    cases, size = 1000, 64
    tiles = astronaut_pair[0].mean(1).unfold(1, size, 40).unfold(2, size, 40).reshape(-1, 1, size, size)
    clean = tiles[torch.arange(cases) % len(tiles)]
    generator = torch.Generator().manual_seed(0)

    def capture(sigma: float) -> torch.Tensor:
        field = torch.randn(clean.shape, generator=generator) * sigma / 255
        field = blur(field) / 0.375 if correlated else field
        return clean + field if photons is None else torch.poisson(clean * photons, generator=generator) / photons

    noisy = [capture(sigma) for sigma in sigmas]
    # as a trained network does, it blurs a little and leaves some of the noise, the smooth part
    denoised = [clean + 0.2 * (blur(clean) - clean) + 0.5 * blur(blur(image - clean)) for image in noisy]
    true = torch.stack([(image - clean).double().square().mean((1, 2, 3)) for image in denoised]).mean(0)
    mse, variance = unbiased_mse(*noisy, *denoised).unbind(1)

    estimates = [UnbiasedMSE(*case) for case in zip(mse.tolist(), variance.sqrt().tolist(), strict=True)]
    inside = [
        low <= -10 * math.log10(t) <= high for t, (low, high) in zip(true, (e.interval for e in estimates), strict=True)
    ]
    assert 0.93 <= sum(inside) / cases <= 0.98
    excess = (mse - true).mean() / ((mse - true).std() / cases**0.5)
    assert abs(excess) < 4, "the estimate is biased"


def test_unbiased_mse_of_captures_as_they_are_is_half_their_difference() -> None:
    first, second = torch.rand(2, 2, 1, 32, 40, generator=torch.Generator().manual_seed(0))
    found = unbiased_mse(first, second, first, second)
    torch.testing.assert_close(found[:, 0], (first - second).double().square().mean((1, 2, 3)) / 2)
    assert (found[:, 1] > 0).all()


def test_an_unbiased_mse_at_or_below_zero_is_a_lower_bound_of_the_psnr() -> None:
    exact = UnbiasedMSE(1e-3, 1e-5)
    assert exact.psnr == pytest.approx(30)
    assert exact.interval == pytest.approx((29.916, 30.086), abs=1e-3)
    below = UnbiasedMSE(-1e-5, 1e-4)
    assert below.psnr == below.interval[0] == pytest.approx(-10 * math.log10(1.96e-4))
    assert UnbiasedMSE(-1e-3, 1e-4).psnr == below.psnr
    assert below.interval[1] == math.inf
    assert UnbiasedMSE(0.0, 0.0).psnr == math.inf
    assert math.isnan(UnbiasedMSE(math.nan, math.nan).psnr)


def test_images_are_clipped_to_black_and_white_or_as_far_as_their_reference_goes() -> None:
    image = torch.tensor([-0.5, 0.5, 1.5, 5.0]).view(1, 1, 1, 4)
    references = torch.stack([torch.full((1, 1, 4), 0.5), torch.tensor([-0.1, 0.0, 1.0, 4.0]).view(1, 1, 4)])
    expected = [[0, 0.5, 1, 1], [pytest.approx(-0.1), 0.5, 1.5, 4]]
    assert clip(image.repeat(2, 1, 1, 1), references).flatten(1).tolist() == expected
    assert [clip(image[0], reference).flatten().tolist() for reference in references] == expected


def random_images(count: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, 32, 40, generator=torch.Generator().manual_seed(seed))


def test_a_score_has_every_metric_that_fits_and_clips_the_denoised_image_alone() -> None:
    clean, noisy = random_images(2, 3), 3 * random_images(2, 3, seed=1) - 1
    found = score(noisy, noisy, clean)
    assert list(found) == ["noisy_psnr", "psnr", "ssim", "lpips"]
    assert torch.equal(found["noisy_psnr"], psnr(noisy, clean))
    assert torch.equal(found["psnr"], psnr(noisy.clamp(0, 1), clean))
    assert torch.equal(found["ssim"], ssim(noisy.clamp(0, 1), clean))
    assert all(values.shape == (2,) for values in found.values())
    assert "lpips" not in score(noisy[:, :2], noisy[:, :2], clean[:, :2])
    assert list(score(noisy, noisy, clean, ["psnr"])) == ["psnr"]


def test_an_exact_match_keeps_the_mean_finite() -> None:
    clean = random_images(1)
    totals = Totals()
    for noisy in (clean, clean + 0.1):
        totals.add(score(noisy, noisy, clean))
    assert totals.summary()["noisy_psnr"] == pytest.approx((100 + 20) / 2, abs=1e-3)


def test_totals_of_ranks_add_up_to_those_of_all_samples() -> None:
    clean, captures = random_images(6), [random_images(6, seed=seed) for seed in (1, 2)]

    def totals(samples: range) -> Totals:
        found = Totals()
        for n in samples:
            first, second = (capture[n : n + 1] for capture in captures)
            if n % 2:
                found.add(score(first, second, clean[n : n + 1]))
            else:
                found.add(score_captures(first, second, first / 2, second / 2))
        return found

    whole, part, other = totals(range(6)), totals(range(1)), totals(range(1, 6))
    other_vector = torch.cat(list(other.sums.values()))
    part.add_up(lambda vector: vector + other_vector)
    assert list(whole.summary()) == [
        "noisy_psnr",
        "psnr",
        "ssim",
        "lpips",
        "noisy_upsnr",
        "upsnr",
        "upsnr_low",
        "upsnr_high",
        "psnr_to_capture",
    ]
    assert part.summary() == pytest.approx(whole.summary())
    assert part.summary()["psnr"] == pytest.approx(psnr(captures[1][1::2], clean[1::2]).mean().item())
    assert Totals().summary() == {}


def test_a_metric_from_elsewhere_is_scored_and_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def largest_error(noisy: torch.Tensor, denoised: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        if noisy.shape[1] == 2:
            raise UserError("not of two channels")
        return (denoised - reference).abs().amax((1, 2, 3))

    monkeypatch.setitem(METRICS, "largest_error", Metric(largest_error, higher_is_better=False))
    totals = Totals()
    totals.add(score(random_images(1), torch.zeros(1, 1, 32, 40), torch.ones(1, 1, 32, 40)))
    assert totals.summary()["largest_error"] == 1
    check_metrics(1, torch.device("cpu"))
    with pytest.raises(UserError, match="two channels"):
        check_metrics(2, torch.device("cpu"))
