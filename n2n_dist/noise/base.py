"""Interface of a noise model: clean image in, noisy image out, float32, never clipped and never rounded.

Clipping at black would shift the mean of dark areas (by +10 levels of 255 at sigma 25), and the network
would learn the shift. The level of a model (sigma, photons, share of replaced pixels, ...) may be a number or a range
[low, high]; a range draws one level for each sample (blind training), and both noisy versions of the sample share it.

Every model is differentiable in the clean image, with the random numbers held fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from n2n_dist.errors import UserError


class Noise:
    """A noise model: a dataclass of its settings, of which `name` and the level are the first.

    Its class attributes say which loss recovers the clean image from its noisy versions (Noise2Noise section 2).
    """

    name: str
    level_name: ClassVar[str] = ""
    """Setting that is the level: a number or a range [low, high]."""
    min_level: ClassVar[float] = 0.0
    max_level: ClassVar[float] = math.inf
    clean: ClassVar[tuple[str, ...]] = ("mean",)
    """Statistics of the noisy versions that are the clean image: `mean`, `median`, `mode`; the preferred one first."""
    remedy: ClassVar[str] = "l2"
    """Pixel loss that estimates the first of them."""
    shared_by_neighbours: ClassVar[bool] = False
    """Whether neighbouring pixels have noise in common."""
    half_replaced_from: ClassVar[float] = math.inf
    """Level from which on half of the pixels may be replaced: their median is then not the clean image."""
    loses_pixels: ClassVar[bool] = False
    """Whether `kept` tells which pixels still hold the image; the loss then has to leave out the others."""
    adds_noise: ClassVar[bool] = True
    """Not for images that are noisy already."""

    def __post_init__(self) -> None:
        self.check_level(f"noise.{self.level_name}", self.level)

    @property
    def level(self) -> Any:
        """The level as it was set: a number, or [low, high]."""
        return getattr(self, self.level_name)

    @property
    def replaces_half(self) -> bool:
        """Whether half of the pixels of an image, or more, may be replaced."""
        return max(self.level if isinstance(self.level, Sequence) else [self.level]) >= self.half_replaced_from

    def check_level(self, setting: str, level: Any, ending: str = ", or a range [low, high] of such") -> None:
        """Check a level, a number or a range; `ending` closes the message.

        Raises:
            UserError: names the setting, the value and what is allowed.

        """
        ends = list(level) if isinstance(level, Sequence) and not isinstance(level, str) else [level, level]
        numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
        ordered = len(ends) == 2 and numbers and self.min_level <= ends[0] <= ends[1] <= self.max_level
        if not ordered or math.isinf(ends[1]):
            allowed = f">= {self.min_level:g}" + (f" and <= {self.max_level:g}" if self.max_level < math.inf else "")
            raise UserError(f"{setting} {level!r}: must be a finite number {allowed}{ending}")

    def sample_level(self, uniform: float) -> float:
        """Return the level of a sample for one uniform random number in [0, 1), spread evenly over a range."""
        if isinstance(self.level, Sequence):
            low, high = self.level
            return low + (high - low) * uniform
        return self.level

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Return a noisy version of `clean`, float32 [C, H, W], black 0 and white 1."""
        raise NotImplementedError

    def kept(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Return which pixels `__call__` keeps, bool [1, H, W], given a generator of the same key."""
        raise NotImplementedError


def standard_normal(clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw white Gaussian noise of variance 1, of the shape of `clean`."""
    return torch.randn(clean.shape, generator=generator, device=clean.device)


def choose_pixels(clean: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Draw for every pixel of [C, H, W] whether it is chosen, bool [1, H, W]."""
    return torch.rand((1, *clean.shape[-2:]), generator=generator, device=clean.device) < probability
