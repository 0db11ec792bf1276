"""Crops of a batch, as they are stored and as float32."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from n2n_dist.errors import UserError


@dataclass
class Batch:
    """Crops of one rank's slice of a global batch, as they are stored."""

    positions: np.ndarray
    """Position of each sample in the run, int64 [B]."""
    samples: np.ndarray
    """Number of each sample in the index, int64 [B]."""
    pixels: torch.Tensor
    """uint8, uint16 or float32 [B, K, C, H, W]: the K images that the source of pairs chose."""
    black: np.ndarray
    """Value that means no light in each sample, float64 [B]."""
    white: np.ndarray
    """Value that means full light, float64 [B]."""
    bad: list[UserError] = field(default_factory=list)
    """One message for each sample that could not be read and was replaced; zeros where its source is unavailable."""

    def to(self, device: torch.device) -> Batch:
        """Move the pixels to `device`, a GPU by way of page-locked memory: the copy goes on after the return."""
        pixels = self.pixels.pin_memory() if device.type == "cuda" else self.pixels
        return replace(self, pixels=pixels.to(device, non_blocking=True))

    def normalised(self) -> torch.Tensor:
        """Return float32 [B, K, C, H, W] with black at 0 and white at 1, not clipped.

        The arithmetic is that of `Image.normalised`, so that the values are the same to the bit.
        """

        def level(values: np.ndarray) -> torch.Tensor:
            level = torch.from_numpy(values.astype(np.float32)).view(-1, 1, 1, 1, 1)
            return level.to(self.pixels.device, non_blocking=True)

        images = self.pixels.to(torch.float32, copy=True)
        return images.sub_(level(self.black)).div_(level(self.white - self.black))
