"""Image quality against a reference: PSNR, SSIM and LPIPS. Images are float32 [N, C, H, W], black 0 and white 1."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import lpips
import safetensors.torch
import torch
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure

from n2n_dist.errors import Refusal

ALEXNET = Path(__file__).parent / "weights" / "alexnet_features_fp16.safetensors"


def psnr(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, [N]; the mean squared error is over all channels of an image jointly."""
    return -10 * torch.log10((image.double() - reference.double()).square().mean((1, 2, 3)))


def ssim(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Structural similarity, [N]: Gaussian windows of 11x11, sigma 1.5, inside the image (Wang et al. 2004)."""
    _, values = structural_similarity_index_measure(
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
            Refusal: the bundled weights are missing.

        """
        super().__init__()
        if not ALEXNET.is_file():
            raise Refusal(f"{ALEXNET}: the weights of AlexNet are missing; install the package again")
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # torchvision's own notes on arguments that lpips uses
            self.network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        self._load_backbone(safetensors.torch.load_file(ALEXNET))
        self.requires_grad_(False).eval()

    def _load_backbone(self, weights: dict[str, torch.Tensor]) -> None:
        # lpips keeps torchvision's layer numbers as names inside its slices
        for name, parameter in self.network.net.named_parameters():
            parameter.data.copy_(weights[f"features.{name.split('.', 1)[1]}"])

    def forward(self, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Compare images of 1 or 3 channels; values outside [0, 1] are clipped."""
        image, reference = (x.clamp(0, 1).expand(-1, 3, -1, -1) * 2 - 1 for x in (image, reference))
        return self.network(image, reference).reshape(-1)
