"""Noise that replaces pixels, all channels of a pixel at once, and leaves the others as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from n2n_dist.noise.base import Noise, choose_pixels
from n2n_dist.noise.text import draw_strings


@dataclass
class Bernoulli(Noise):
    """Missing pixels: x times a mask that is 1 with probability `keep` (Noise2Noise section 3.2).

    All channels of a pixel are kept or lost together. The loss has to leave out what the target lost: `masked_l2`.
    """

    name: str = "bernoulli"
    """Chooses this model: mean keep * x, variance keep * (1 - keep) * x^2."""
    keep: Any = 0.5
    """Probability that a pixel is kept: a number, or [low, high] for blind training."""

    level_name, min_level, max_level = "keep", 0.001, 1.0
    remedy = "masked_l2"
    loses_pixels = True

    def kept(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Return which pixels `__call__` keeps, bool [1, H, W], given a generator of the same key."""
        return choose_pixels(clean, level, generator)

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Set lost pixels to black."""
        return clean * self.kept(clean, level, generator)


@dataclass
class Impulse(Noise):
    """Random-valued impulses: pixels replaced by colours drawn evenly from [0, 1]^C (Noise2Noise section 3.2)."""

    name: str = "impulse"
    """Chooses this model: mean m = (1 - d) x + d / 2, variance (1 - d) x^2 + d / 3 - m^2, of a density d."""
    density: Any = 0.5
    """Probability that a pixel is replaced: a number, or [low, high] for blind training."""

    level_name, max_level = "density", 1.0
    clean = ("mode", "median")
    remedy = "l0"
    half_replaced_from = 0.5

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Replace pixels, all channels at once."""
        replaced = choose_pixels(clean, level, generator)
        return torch.where(replaced, torch.rand(clean.shape, generator=generator, device=clean.device), clean)


@dataclass
class Text(Noise):
    """Random strings of random size and colour laid over the image (Noise2Noise section 3.2, text removal).

    The last string may cover more than was asked for. They are drawn on the CPU by Pillow's own font, from the
    generator's seed and not from its state.
    """

    name: str = "text"
    """Chooses this model: mean m = (1 - c) x + c / 2, variance (1 - c) x^2 + c / 3 - m^2, of a covered share c."""
    coverage: Any = 0.25
    """Share of the pixels that text covers, at least: a number, or [low, high] for blind training."""

    level_name, max_level = "coverage", 0.9
    clean = ("median", "mode")
    remedy = "l1"
    shared_by_neighbours = True
    half_replaced_from = 0.4  # the last string covers more than is asked for

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Draw strings until they cover the share `level` of the pixels."""
        channels, height, width = clean.shape
        covered, colours = draw_strings(channels, height, width, level, generator.initial_seed())
        strings = torch.from_numpy(colours).to(clean.device)
        return torch.where(torch.from_numpy(covered).to(clean.device), strings, clean)
