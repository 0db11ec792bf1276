"""Pairs of clean images and two noise fields (Noise2Noise, Lehtinen et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from n2n_dist.errors import UserError
from n2n_dist.noise.base import Noise
from n2n_dist.noise.keyed import KeyedNoise
from n2n_dist.pairs.base import Pair, Pairs
from n2n_dist.shards.records import Member, Sample


@dataclass
class Synthetic(Pairs):
    """Clean images and two independent noise fields of one level, keyed by the sample's position in the run."""

    name: str = "synthetic"
    """Source of the pairs: clean images, to which noise is added twice."""
    supervised: bool = False
    """Train on the clean image as the target, for comparison (Noise2Clean)."""

    default_noise = "gaussian"

    @property
    def unmatched(self) -> None:
        """None: the target has the noise of noise.name."""

    def image_count(self, averaged: bool) -> int:
        """Return 1."""
        return 1

    def images(self, sample: Sample, turn: int, averaged: bool) -> list[list[Member]]:
        """Choose the first capture, the clean image."""
        return [[sample.captures[0]]]

    def pair(self, images: torch.Tensor, noise: KeyedNoise) -> Pair:
        """Add noise to [B, 1, C, H, W] twice, or once if supervised."""
        clean = images[:, 0]
        inputs = noise(clean, "noise-input")
        if self.supervised:
            return Pair(inputs, clean)
        return Pair(inputs, noise(clean, "noise-target"), mask=noise.kept(clean, "noise-target"), noise=noise)

    def check(self, noise: Noise) -> None:
        """Refuse images that are noisy already; pixels that noise loses are masked."""
        if not noise.adds_noise:
            raise UserError(
                f"noise.name {noise.name}: pairs.name {self.name} puts noise on clean images; choose a noise, or set "
                "pairs.name to captures or neighbours for images that are noisy already"
            )
