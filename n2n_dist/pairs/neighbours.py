"""Pairs of neighbouring pixels of single noisy images (Neighbor2Neighbor, Huang et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from n2n_dist.errors import UserError
from n2n_dist.noise.keyed import KeyedNoise
from n2n_dist.pairs.base import Pair, Pairs
from n2n_dist.shards.records import Member, Sample

FIRST = (0, 0, 1, 1, 2, 2, 3, 3)
SECOND = (1, 2, 0, 3, 0, 3, 1, 2)
"""Indices in a cell of 2 x 2, counted along rows, of the eight ordered pairs of pixels that touch along a side."""


@dataclass
class Neighbours(Pairs):
    """Single noisy images: random pairs of neighbouring pixels, with a consistency term."""

    name: str = "neighbours"
    """Source of the pairs: two sub-sampled halves of one noisy image."""
    gamma: float = 2.0
    """Weight of the consistency term at the end of training, to which it grows from 0."""

    uses_neighbours = True

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < float("inf"):
            raise UserError(f"pairs.gamma {self.gamma}: must be 0 or more")

    def image_count(self, averaged: bool) -> int:
        """Return 1."""
        return 1

    def images(self, sample: Sample, turn: int, averaged: bool) -> list[list[Member]]:
        """Choose a capture; they take turns."""
        return [[sample.captures[turn % len(sample.captures)]]]

    def pair(self, images: torch.Tensor, noise: KeyedNoise) -> Pair:
        """Add noise to [B, 1, C, H, W], if there is any to add, and sub-sample it."""
        noisy = noise(images[:, 0], "noise-input")
        size = noisy.shape[-2] // 2, noisy.shape[-1] // 2
        generators = (noise.generator(sample, "neighbours", noisy.device) for sample in range(len(noisy)))
        choice = torch.stack(
            [torch.randint(len(FIRST), size, generator=generator, device=noisy.device) for generator in generators]
        )
        inputs, targets = subsample(noisy, choice)
        return Pair(inputs, targets, consistency=Consistency(noisy, choice, targets), gamma=self.gamma)

    def network_crop(self, crop: int) -> int:
        """Return half of the crop."""
        return crop // 2


@dataclass
class Consistency:
    """Regularise neighbours: f(g1(y)) - g2(y) = g1(f(y)) - g2(f(y)) in the mean (Neighbor2Neighbor section 4.2).

    Without it the network would learn that neighbouring pixels of the clean image are alike.
    """

    images: torch.Tensor
    """y, float32 [B, C, H, W]."""
    choice: torch.Tensor
    """The sub-samplings g1 and g2, see `subsample`."""
    targets: torch.Tensor
    """g2(y)."""

    def __call__(self, model: nn.Module, prediction: torch.Tensor) -> torch.Tensor:
        """Return the mean square of the difference of both sides, given the prediction f(g1(y))."""
        # after the pass with gradients: autocast keeps the weights that it has cast, with or without their gradients
        with torch.no_grad():
            first, second = subsample(model(self.images), self.choice)
        return (prediction - self.targets - (first - second)).square().mean()


def subsample(images: torch.Tensor, choice: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Take two neighbouring pixels of every cell of 2 x 2.

    Args:
        images: [B, C, H, W]; an odd last row or column is left out.
        choice: which of the eight ordered pairs, int64 [B, H // 2, W // 2] in [0, 8).

    Returns:
        two images [B, C, H // 2, W // 2].

    """
    count, channels, height, width = images.shape
    rows, columns = height // 2, width // 2
    cells = images[..., : 2 * rows, : 2 * columns].reshape(count, channels, rows, 2, columns, 2)
    cells = cells.transpose(3, 4).reshape(count, channels, rows, columns, 4)

    def take(pixels: Sequence[int]) -> torch.Tensor:
        pixel = torch.tensor(pixels, device=images.device)[choice][:, None, ..., None]
        return cells.gather(-1, pixel.expand(-1, channels, -1, -1, -1))[..., 0]

    return take(FIRST), take(SECOND)
