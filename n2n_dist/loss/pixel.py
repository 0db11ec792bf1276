"""Pixel losses: the mean over all elements of a distance that seeks the median (L1) or the mean (L2)."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def l1(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference; learns the median of the targets."""
    return F.l1_loss(prediction, target)


def l2(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared difference; learns the mean of the targets."""
    return F.mse_loss(prediction, target)


def charbonnier(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Smooth L1, sqrt(d^2 + eps^2) with eps = 1e-3 (Lai et al. 2017)."""
    return torch.sqrt((prediction - target).square() + 1e-6).mean()


LOSSES = {"l1": l1, "l2": l2, "charbonnier": charbonnier}
