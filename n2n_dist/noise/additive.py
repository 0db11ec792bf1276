"""Additive noise, which does not depend on the image, and none at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from n2n_dist.errors import UserError
from n2n_dist.noise.base import Noise, standard_normal


@dataclass
class NoNoise(Noise):
    """Images that are noisy already: captures, or single images for neighbour sub-sampling."""

    name: str = "none"
    """Chooses this model: nothing is added."""

    adds_noise = False

    def __post_init__(self) -> None:
        pass

    @property
    def level(self) -> float:
        """0."""
        return 0.0

    def sample_level(self, uniform: float) -> float:
        """Return 0."""
        return 0.0

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Return the image itself."""
        return clean


@dataclass
class Gaussian(Noise):
    """Additive white Gaussian noise, the model of Noise2Noise section 3.1 (Lehtinen et al. 2018)."""

    name: str = "gaussian"
    """Chooses this model: mean x, variance (sigma / 255)^2."""
    sigma: Any = 25.0
    """Standard deviation in 1/255 of the white level: a number, or [low, high] for blind training."""

    level_name = "sigma"
    clean = ("mean", "median", "mode")

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Add noise of standard deviation `level` / 255."""
        return clean + standard_normal(clean, generator) * (level / 255)


@dataclass
class CorrelatedGaussian(Noise):
    """White Gaussian noise blurred by a Gaussian kernel and brought back to sigma (Noise2Noise section 3.1, brown).

    The correlation at a distance of d pixels is exp(-d^2 / (4 blur^2)) for a blur of a pixel or more, and the same at
    the border of the image as inside.
    """

    name: str = "correlated"
    """Chooses this model: mean x, variance (sigma / 255)^2."""
    sigma: Any = 25.0
    """Standard deviation in 1/255 of the white level: a number, or [low, high] for blind training."""
    blur: float = 1.0
    """Standard deviation of the kernel in pixels, above 0 and up to 32."""

    level_name = "sigma"
    clean = ("mean", "median", "mode")
    shared_by_neighbours = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.blur <= 32:
            raise UserError(f"noise.blur {self.blur}: must be above 0 and at most 32 pixels")

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Add blurred noise of standard deviation `level` / 255."""
        radius = math.ceil(3 * self.blur)
        kernel = [math.exp(-0.5 * (offset / self.blur) ** 2) for offset in range(-radius, radius + 1)]
        norm = math.hypot(*kernel)
        *planes, height, width = clean.shape
        size = (*planes, height + 2 * radius, width + 2 * radius)
        field = torch.randn(size, generator=generator, device=clean.device)
        # a sum of shifted fields: the bits of a convolution depend on the algorithm that cuDNN chooses
        for axis, length in ((-2, height), (-1, width)):
            blurred = torch.zeros_like(field.narrow(axis, 0, length))
            for k, weight in enumerate(kernel):
                blurred.add_(field.narrow(axis, k, length), alpha=weight / norm)
            field = blurred
        return clean + field * (level / 255)
