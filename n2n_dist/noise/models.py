"""Noise models: clean image in, noisy image out, float32, never clipped and never rounded.

Clipping at black would shift the mean of dark areas (by +10 levels of 255 at sigma 25), and the network
would learn the shift. A level (sigma, photons) may be a number or a range [low, high]; a range draws one
level for each sample (blind training), and both noisy versions of the sample share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from n2n_dist.errors import Refusal


class Noise(Protocol):
    """What the objective and the evaluation need of a noise model."""

    def level(self, uniform: float) -> float:
        """Choose the level of a sample from one uniform random number in [0, 1)."""
        ...

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Return a noisy version of `clean` (any shape, float32, black 0 and white 1)."""
        ...


@dataclass
class Gaussian:
    """Additive white Gaussian noise, the model of Noise2Noise section 3.1 (Lehtinen et al. 2018)."""

    name: str = "gaussian"
    """Noise model: `gaussian` or `poisson`."""
    sigma: Any = 25.0
    """Standard deviation in 1/255 of the white level: a number, or [low, high] for blind training."""

    def __post_init__(self) -> None:
        _check_level("noise.sigma", self.sigma, smallest=0.0)

    def level(self, uniform: float) -> float:
        """Choose sigma in 1/255 of white."""
        return _between(self.sigma, uniform)

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Add noise of standard deviation `level` / 255."""
        field = torch.randn(clean.shape, generator=generator, device=clean.device)
        return clean + field * (level / 255)


@dataclass
class Poisson:
    """Shot noise: poisson(lam * x) / lam, mean x and variance x / lam (Noise2Noise section 3.2)."""

    name: str = "poisson"
    """Noise model: `gaussian` or `poisson`."""
    lam: Any = 30.0
    """Photons at white: a number, or [low, high] for blind training. Fewer photons, more noise."""

    def __post_init__(self) -> None:
        _check_level("noise.lam", self.lam, smallest=1e-6)

    def level(self, uniform: float) -> float:
        """Choose the number of photons at white."""
        return _between(self.lam, uniform)

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Count photons; a negative value of the clean image is no light and stays without photons."""
        return torch.poisson(clean.clamp(min=0) * level, generator=generator) / level


MODELS: dict[str, type[Gaussian] | type[Poisson]] = {"gaussian": Gaussian, "poisson": Poisson}


def _between(level: float | Sequence[float], uniform: float) -> float:
    if isinstance(level, Sequence):
        low, high = level
        return low + (high - low) * uniform
    return level


def _check_level(name: str, level: Any, smallest: float) -> None:
    ends = list(level) if isinstance(level, Sequence) and not isinstance(level, str) else [level, level]
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    if len(ends) != 2 or not numbers or not smallest <= ends[0] <= ends[1] < float("inf"):
        raise Refusal(f"{name}: {level!r} is not a number or a range; give a number >= {smallest:g} or [low, high]")
