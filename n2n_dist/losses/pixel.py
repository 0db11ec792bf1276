"""Pixel losses: the mean of a distance over the pixels that count, each with the statistic that it estimates.

Every mean is over an image first and then over the images: equal parts of a batch, averaged, give the loss of the batch
on any number of ranks and accumulation steps, which a division by a count over a part of the batch would not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class PixelLoss:
    """A pixel loss and what it estimates."""

    function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, float], torch.Tensor]
    """Returns a scalar; its arguments are those of a call."""
    estimates: str
    """Statistic of the noisy targets where it is least: `mean`, `median` or `mode`."""
    masked: bool = False
    """Whether it leaves out pixels that the target has lost; other losses never get a mask."""

    def __call__(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None = None,
        fraction: float = 0.0,
    ) -> torch.Tensor:
        """Return the loss, a scalar.

        Args:
            prediction: float32 [B, C, H, W].
            target: of the same shape.
            mask: pixels of the target that count, bool [B, 1, H, W]; None: all.
            fraction: fraction of the training that is done, in [0, 1), for a loss that is annealed.

        """
        return self.function(prediction, target, mask, fraction)


def l1(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, fraction: float = 0.0
) -> torch.Tensor:
    """|d|."""
    return F.l1_loss(prediction, target)


def l2(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, fraction: float = 0.0
) -> torch.Tensor:
    """d^2."""
    return F.mse_loss(prediction, target)


def charbonnier(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, fraction: float = 0.0
) -> torch.Tensor:
    """Smooth L1, sqrt(d^2 + eps^2) with eps = 1e-3 (Lai et al. 2017)."""
    return torch.sqrt((prediction - target).square() + 1e-6).mean()


def annealed_l0(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, fraction: float = 0.0
) -> torch.Tensor:
    """(|d| + 1e-8)^g, whose exponent g falls from 2 (the mean) to 0 (the mode) (Noise2Noise section 3.2)."""
    return ((prediction - target).abs() + 1e-8).pow(2 * (1 - fraction)).mean()


def masked_l2(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, fraction: float = 0.0
) -> torch.Tensor:
    """d^2 over the pixels of each image that the mask keeps (Noise2Noise section 3.2).

    As a mean over all pixels it would be smaller than with clean targets, and optim.clip would then clip less.
    """
    squares = (prediction - target).square()
    if mask is None:
        return squares.mean()
    kept = mask.sum((1, 2, 3)).clamp(min=1)
    return ((squares.mean(1, keepdim=True) * mask).sum((1, 2, 3)) / kept).mean()


def relative_l2(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, fraction: float = 0.0
) -> torch.Tensor:
    """d^2 / (f + 0.01)^2 without a gradient through the denominator (Noise2Noise section 3.3, high range).

    A prediction f below black counts as black, so that the denominator cannot vanish.
    """
    scale = prediction.detach().clamp(min=0) + 0.01
    return ((prediction - target) / scale).square().mean()


PIXEL_LOSSES: dict[str, PixelLoss] = {
    "l1": PixelLoss(l1, "median"),
    "l2": PixelLoss(l2, "mean"),
    "charbonnier": PixelLoss(charbonnier, "median"),
    "l0": PixelLoss(annealed_l0, "mode"),
    "masked_l2": PixelLoss(masked_l2, "mean", masked=True),
    "relative_l2": PixelLoss(relative_l2, "mean"),
}
"""Every loss by its `loss.pixel`."""
