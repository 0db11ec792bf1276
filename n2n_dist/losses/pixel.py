"""Pixel losses: the mean of a distance over the pixels that count; the distance decides what is learned.

Every mean is over an image first and then over the images: equal parts of a batch, averaged, give the loss of the batch
on any number of ranks and accumulation steps, which a division by a count over a part of the batch would not.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

LEARNS = {
    "l1": "median",
    "charbonnier": "median",
    "l2": "mean",
    "masked_l2": "mean",
    "relative_l2": "mean",
    "l0": "mode",
}
"""Every loss, and which statistic of the noisy targets it learns."""


def pixel_loss(
    name: str, prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, fraction: float = 0.0
) -> torch.Tensor:
    """Return the loss of the given name, a scalar.

    Args:
        name: one of `LEARNS`.
        prediction: float32 [B, C, H, W].
        target: of the same shape.
        mask: for `masked_l2`, which pixels of the target count, [B, 1, H, W]; None: all.
        fraction: for `l0`, the fraction of the training that is done, in [0, 1).

    """
    match name:
        case "l1":
            return F.l1_loss(prediction, target)
        case "l2":
            return F.mse_loss(prediction, target)
        case "charbonnier":
            return charbonnier(prediction, target)
        case "l0":
            return annealed_l0(prediction, target, exponent=2 * (1 - fraction))
        case "masked_l2":
            return masked_l2(prediction, target, mask)
        case "relative_l2":
            return relative_l2(prediction, target)
    raise ValueError(name)


def charbonnier(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Smooth L1, sqrt(d^2 + eps^2) with eps = 1e-3 (Lai et al. 2017)."""
    return torch.sqrt((prediction - target).square() + 1e-6).mean()


def annealed_l0(prediction: torch.Tensor, target: torch.Tensor, exponent: float) -> torch.Tensor:
    """(|d| + 1e-8)^exponent, whose exponent falls from 2 (the mean) to 0 (the mode) (Noise2Noise section 3.2)."""
    return ((prediction - target).abs() + 1e-8).pow(exponent).mean()


def masked_l2(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean square of the difference over the pixels of each image that the mask keeps (Noise2Noise section 3.2).

    As a mean over all pixels it would be smaller than with clean targets, and optim.clip would then clip less.
    """
    squares = (prediction - target).square()
    if mask is None:
        return squares.mean()
    kept = mask.sum((1, 2, 3)).clamp(min=1)
    return ((squares.mean(1, keepdim=True) * mask).sum((1, 2, 3)) / kept).mean()


def relative_l2(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(f - y)^2 / (f + 0.01)^2 without a gradient through the denominator (Noise2Noise section 3.3, high range).

    A prediction below black counts as black, lest the denominator vanish.
    """
    scale = prediction.detach().clamp(min=0) + 0.01
    return ((prediction - target) / scale).square().mean()
