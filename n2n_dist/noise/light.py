"""Noise of light, whose variance grows with the image: photons that are counted, and speckle.

Photons are counted for the image as it is, and differentiated as if their noise did not depend on it: the derivative of
the mean of a count, and nothing for its spread. Below black there are no photons, yet the derivative stays 1, so that a
prediction can come back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from n2n_dist.errors import UserError
from n2n_dist.noise.base import Noise, standard_normal


@dataclass
class Poisson(Noise):
    """Shot noise: poisson(lam * x) / lam (Noise2Noise section 3.2)."""

    name: str = "poisson"
    """Chooses this model: mean x, variance x / lam."""
    lam: Any = 30.0
    """Photons at white: a number, or [low, high] for blind training. Fewer photons, more noise."""

    level_name, min_level = "lam", 1e-6

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Count photons; a negative value of the clean image is no light and stays without photons."""
        return _count_photons(clean, level, generator)


@dataclass
class PoissonGaussian(Noise):
    """Shot and read noise of a sensor in linear light: (poisson(lam * x) + read * n) / lam (Foi et al. 2008)."""

    name: str = "poisson-gaussian"
    """Chooses this model: mean x, variance x / lam + (read / lam)^2."""
    lam: Any = 100.0
    """Photons (electrons) at white: a number, or [low, high] for blind training. Fewer photons, more noise."""
    read: float = 2.0
    """Standard deviation of the read noise in electrons, 0 or more."""

    level_name, min_level = "lam", 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.read < math.inf:
            raise UserError(f"noise.read {self.read}: must be 0 or more electrons")

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Count photons, of which a negative value has none, and read them out with Gaussian noise."""
        return _count_photons(clean, level, generator) + standard_normal(clean, generator) * (self.read / level)


@dataclass
class Speckle(Noise):
    """Multiplicative speckle of radar, ultrasound and lasers: x times gamma(looks) / looks (Goodman 1976)."""

    name: str = "speckle"
    """Chooses this model: mean x, variance x^2 / looks."""
    looks: Any = 4.0
    """Looks that were averaged, 1 for a single exposure: a number, or [low, high] for blind training."""

    level_name, min_level = "looks", 0.01

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Multiply with a gamma variable of mean 1 and variance 1 / `level`."""
        # the sampler of torch.distributions.Gamma, which takes no generator itself
        return clean * (torch._standard_gamma(torch.full_like(clean, level), generator=generator) / level)


def _count_photons(clean: torch.Tensor, at_white: float, generator: torch.Generator) -> torch.Tensor:
    light = clean.detach()
    # the sampler ends the run where a prediction is not finite, before its step and samples could be reported
    rate = (light.clamp(min=0) * at_white).nan_to_num(0.0, 0.0)
    # the last term is 0, with the derivative of the mean; not a number where the image is not finite
    return torch.poisson(rate, generator=generator) / at_white + (clean - light)
