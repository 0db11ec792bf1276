"""Noise on the samples of a batch, keyed by their positions in the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from n2n_dist import rng
from n2n_dist.noise.base import Noise


@dataclass
class KeyedNoise:
    """A noise model with the seed, positions and levels of a batch's samples."""

    model: Noise
    seed: int
    positions: list[int]
    """Position of each sample in the run."""

    def __post_init__(self) -> None:
        uniforms = [rng.uniform(self.seed, position, "noise-level") for position in self.positions]
        self.levels = [self.model.sample_level(uniform) for uniform in uniforms]

    def __call__(self, images: torch.Tensor, purpose: str) -> torch.Tensor:
        """Return noisy versions of `images`, float32 [B, C, H, W]; each purpose gives independent ones."""
        return self._per_sample(self.model, images, purpose)

    def kept(self, images: torch.Tensor, purpose: str) -> torch.Tensor | None:
        """Return which pixels the noise of this purpose has not lost, bool [B, 1, H, W]; None: it never loses any."""
        return self._per_sample(self.model.kept, images, purpose) if self.model.loses_pixels else None

    def generator(self, sample: int, purpose: str, device: torch.device) -> torch.Generator:
        """Return the random generator of one sample of the batch and a purpose."""
        return rng.generator(self.seed, self.positions[sample], purpose, device)

    def _per_sample(self, make: Callable[..., torch.Tensor], images: torch.Tensor, purpose: str) -> torch.Tensor:
        return torch.stack(
            [
                make(image, level, self.generator(sample, purpose, images.device))
                for sample, (image, level) in enumerate(zip(images, self.levels, strict=True))
            ]
        )
