import math
from pathlib import Path

import pytest
import torch

from n2n_dist import metrics
from n2n_dist.errors import Refusal
from n2n_dist.metrics import LPIPS, psnr, ssim, to_8_bit


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
    assert psnr(reference, reference).isinf().all()


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


def test_missing_weights_of_lpips_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ALEXNET", tmp_path / "none.safetensors")
    with pytest.raises(Refusal, match=r"none\.safetensors.*install"):
        LPIPS()
