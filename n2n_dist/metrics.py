"""Image quality: PSNR, SSIM and LPIPS against a reference, and PSNR from two noisy captures without one.

Images are float32 [N, C, H, W], black 0 and white 1.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from n2n_dist.errors import UserError
from n2n_dist.vision import import_torchvision

ALEXNET = Path(__file__).parent / "weights" / "alexnet_features_fp16.safetensors"
BLOCK = 8
"""Side of the blocks that the standard error of uMSE counts as independent, in pixels: wider than noise correlates."""


def psnr(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, [N]; the mean squared error is over all channels of an image jointly."""
    return -10 * torch.log10((image.double() - reference.double()).square().mean((1, 2, 3)))


def clip(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Clip images to black and white, or as far as their references go beyond: high dynamic range, a dark sky's noise.

    Both are [N, C, H, W] or [C, H, W].
    """
    darkest, brightest = (extreme((-3, -2, -1), keepdim=True) for extreme in (reference.amin, reference.amax))
    return image.maximum(darkest.clamp(max=0)).minimum(brightest.clamp(min=1))


def decibels(mse: float) -> float:
    """Return the PSNR of a mean squared error; infinite where that is not above zero."""
    return math.inf if mse <= 0 else -10 * math.log10(mse)


@dataclass
class UnbiasedMSE:
    """An estimate of the mean squared error against the clean image, which nobody has."""

    mse: float
    """uMSE; chance may push it below zero where the error is small."""
    standard_error: float
    """Of `mse`, from the noise alone."""

    @property
    def psnr(self) -> float:
        """Estimated PSNR (uPSNR) in dB; where `mse` is not above zero, the lower end of its interval, a bound."""
        return self.interval[0] if self.mse <= 0 else decibels(self.mse)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the PSNR in dB; its upper end is infinite where an error of zero cannot be excluded.

        No error is below zero: for the lower end such an estimate counts as zero.
        """
        margin = 1.96 * self.standard_error
        return decibels(max(self.mse, 0) + margin), decibels(self.mse - margin)


def unbiased_mse(
    first: torch.Tensor, second: torch.Tensor, first_denoised: torch.Tensor, second_denoised: torch.Tensor
) -> torch.Tensor:
    """Estimate the squared error of two denoised captures of a scene without its clean image: uMSE.

    With captures y1, y2 of independent noise, denoised to f1 and f2, each pixel contributes

        (y1 - f1) (y2 - f2) + (f1 - f2)^2 / 2 = ((f1 - y2)^2 + (f2 - y1)^2 - (y1 - y2)^2) / 2,

    whose expectation is the mean of the squared errors of f1 and f2. Marcos-Morales et al. 2022 (Evaluating
    unsupervised denoising requires unsupervised metrics) compare f1 with one further capture and estimate its noise
    from two more. Two captures are enough where both have the same noise level; taken both ways, as here, their
    levels may differ. Noise that the captures share counts as image.

    The standard error takes the scene as fixed. It comes from the differences of neighbouring blocks of 8 x 8 pixels,
    so that noise may be correlated over a few pixels. Of the two parts the first has the noise that the network
    removed; half the variance of the second stands for the product of the noise that it left.

    Args:
        first: [N, C, H, W] noisy, not clipped; 16 pixels or more a side.
        second: likewise.
        first_denoised: `first`, denoised and not clipped.
        second_denoised: likewise.

    Returns:
        [N, 2], float64: uMSE and its variance.

    """
    removed = ((first.double() - first_denoised.double()) * (second.double() - second_denoised.double())).mean(1)
    left = (first_denoised.double() - second_denoised.double()).square().mean(1) / 2
    variance = _variance_of_mean(removed) + _variance_of_mean(left) / 2
    return torch.stack([(removed + left).mean((1, 2)), variance], dim=1)


def _variance_of_mean(values: torch.Tensor) -> torch.Tensor:
    """Variance of the mean of each [H, W] of [N, H, W]; what changes slowly over the image does not count."""
    blocks = F.avg_pool2d(values[:, None], BLOCK)[:, 0]
    across, down = (blocks.diff(dim=dim).square().flatten(1) for dim in (1, 2))
    return torch.cat([across, down], dim=1).mean(1) / 2 / blocks[0].numel()


def ssim(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Structural similarity, [N]: Gaussian windows of 11x11, sigma 1.5, inside the image (Wang et al. 2004)."""
    torchmetrics = import_torchvision("torchmetrics.functional.image")
    _, values = torchmetrics.structural_similarity_index_measure(
        image, reference, data_range=1.0, reduction="none", return_full_image=True
    )
    # torchmetrics mirrors the image, and whether it counts windows over the edge depends on its version
    return values[..., 5:-5, 5:-5].mean((1, 2, 3))


def to_8_bit(image: torch.Tensor) -> torch.Tensor:
    """Clip to [0, 1] and round to multiples of 1/255, as a saved image would be."""
    return (image.clamp(0, 1) * 255).round() / 255


class LPIPS(nn.Module):
    """Learned perceptual distance v0.1 on AlexNet features, [N]; lower is nearer (Zhang et al. 2018)."""

    def __init__(self) -> None:
        """Build the network of the `lpips` package with the bundled ImageNet backbone: nothing is downloaded.

        Raises:
            UserError: the bundled weights are missing or damaged, or torchvision does not fit torch.

        """
        super().__init__()
        try:
            weights = safetensors.torch.load_file(ALEXNET)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(
                f"{ALEXNET}: the weights of AlexNet cannot be read ({error}); install the package again"
            ) from None
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # torchvision's own notes on arguments that lpips uses
            self.network = import_torchvision("lpips").LPIPS(net="alex", pnet_rand=True, verbose=False)
        self._load_backbone(weights)
        self.requires_grad_(False).eval()

    def _load_backbone(self, weights: dict[str, torch.Tensor]) -> None:
        # lpips keeps torchvision's layer numbers as names inside its slices
        for name, parameter in self.network.net.named_parameters():
            parameter.data.copy_(weights[f"features.{name.split('.', 1)[1]}"])

    def forward(self, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Compare images of 1 or 3 channels; values outside [0, 1] are clipped."""
        image, reference = (x.clamp(0, 1).expand(-1, 3, -1, -1) * 2 - 1 for x in (image, reference))
        return self.network(image, reference).reshape(-1)
