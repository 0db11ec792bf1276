"""Noise models: clean image in, noisy image out, float32, never clipped and never rounded.

Clipping at black would shift the mean of dark areas (by +10 levels of 255 at sigma 25), and the network
would learn the shift. The level of a model (sigma, photons, share of replaced pixels, ...) may be a number or a range
[low, high]; a range draws one level for each sample (blind training), and both noisy versions of the sample share it.

Every model is differentiable in the clean image, with the random numbers held fixed: additive and multiplicative
noise and replaced pixels by nature. Photons are counted for the image as it is, and differentiated as if their noise
did not depend on it: the derivative of the mean of a count, and nothing for its spread. Below black there are no
photons, yet the derivative stays 1, so that a prediction can come back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from n2n_dist.errors import UserError
from n2n_dist.noise.text import draw_strings


class Noise:
    """What the objective, validation and evaluation need of a noise model; each model is a dataclass of settings."""

    name: str
    level_name = ""
    """The setting that may be a range."""
    smallest, largest = 0.0, math.inf
    """Ends of what the level may be."""

    def __post_init__(self) -> None:
        self.check_level(f"noise.{self.level_name}", self.ends)

    @property
    def ends(self) -> Any:
        """The level as it was set: a number, or [low, high]."""
        return getattr(self, self.level_name)

    def check_level(self, setting: str, level: Any, ending: str = ", or a range [low, high] of such") -> None:
        """Check a level, a number or a range; `ending` closes the message.

        Raises:
            UserError: names the setting, the value and what is allowed.

        """
        ends = list(level) if isinstance(level, Sequence) and not isinstance(level, str) else [level, level]
        numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
        ordered = len(ends) == 2 and numbers and self.smallest <= ends[0] <= ends[1] <= self.largest
        if not ordered or math.isinf(ends[1]):
            allowed = f">= {self.smallest:g}" + (f" and <= {self.largest:g}" if self.largest < math.inf else "")
            raise UserError(f"{setting} {level!r}: must be a finite number {allowed}{ending}")

    def level(self, uniform: float) -> float:
        """Choose the level of a sample from one uniform random number in [0, 1), evenly from a range."""
        if isinstance(self.ends, Sequence):
            low, high = self.ends
            return low + (high - low) * uniform
        return self.ends

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Return a noisy version of `clean`, float32 [C, H, W], black 0 and white 1."""
        raise NotImplementedError


@dataclass
class NoNoise(Noise):
    """Images that are noisy already: captures, or single images for neighbour sub-sampling."""

    name: str = "none"
    """Chooses this model: nothing is added."""

    def __post_init__(self) -> None:
        pass

    def level(self, uniform: float) -> float:
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

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Add noise of standard deviation `level` / 255."""
        return clean + _normal(clean, generator) * (level / 255)


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


@dataclass
class Poisson(Noise):
    """Shot noise: poisson(lam * x) / lam (Noise2Noise section 3.2)."""

    name: str = "poisson"
    """Chooses this model: mean x, variance x / lam."""
    lam: Any = 30.0
    """Photons at white: a number, or [low, high] for blind training. Fewer photons, more noise."""

    level_name, smallest = "lam", 1e-6

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Count photons; a negative value of the clean image is no light and stays without photons."""
        return _photons(clean, level, generator)


@dataclass
class PoissonGaussian(Noise):
    """Shot and read noise of a sensor in linear light: (poisson(lam * x) + read * n) / lam (Foi et al. 2008)."""

    name: str = "poisson-gaussian"
    """Chooses this model: mean x, variance x / lam + (read / lam)^2."""
    lam: Any = 100.0
    """Photons (electrons) at white: a number, or [low, high] for blind training. Fewer photons, more noise."""
    read: float = 2.0
    """Standard deviation of the read noise in electrons, 0 or more."""

    level_name, smallest = "lam", 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.read < math.inf:
            raise UserError(f"noise.read {self.read}: must be 0 or more electrons")

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Count photons, of which a negative value has none, and read them out with Gaussian noise."""
        return _photons(clean, level, generator) + _normal(clean, generator) * (self.read / level)


@dataclass
class Bernoulli(Noise):
    """Missing pixels: x times a mask that is 1 with probability `keep` (Noise2Noise section 3.2).

    All channels of a pixel are kept or lost together. The loss has to leave out what the target lost: `masked_l2`.
    """

    name: str = "bernoulli"
    """Chooses this model: mean keep * x, variance keep * (1 - keep) * x^2."""
    keep: Any = 0.5
    """Probability that a pixel is kept: a number, or [low, high] for blind training."""

    level_name, smallest, largest = "keep", 0.001, 1.0

    def kept(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Return which pixels are kept, bool [1, H, W]: those of `__call__` with a generator of the same key."""
        return _happens(clean, level, generator)

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

    level_name, largest = "density", 1.0

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Replace pixels, all channels at once."""
        replaced = _happens(clean, level, generator)
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

    level_name, largest = "coverage", 0.9

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Draw strings until they cover the share `level` of the pixels."""
        channels, height, width = clean.shape
        covered, colours = draw_strings(channels, height, width, level, generator.initial_seed())
        strings = torch.from_numpy(colours).to(clean.device)
        return torch.where(torch.from_numpy(covered).to(clean.device), strings, clean)


@dataclass
class Speckle(Noise):
    """Multiplicative speckle of radar, ultrasound and lasers: x times gamma(looks) / looks (Goodman 1976)."""

    name: str = "speckle"
    """Chooses this model: mean x, variance x^2 / looks."""
    looks: Any = 4.0
    """Looks that were averaged, 1 for a single exposure: a number, or [low, high] for blind training."""

    level_name, smallest = "looks", 0.01

    def __call__(self, clean: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
        """Multiply with a gamma variable of mean 1 and variance 1 / `level`."""
        # the sampler of torch.distributions.Gamma, which takes no generator itself
        return clean * (torch._standard_gamma(torch.full_like(clean, level), generator=generator) / level)


MODELS: dict[str, type[Noise]] = {
    "gaussian": Gaussian,
    "correlated": CorrelatedGaussian,
    "poisson": Poisson,
    "poisson-gaussian": PoissonGaussian,
    "bernoulli": Bernoulli,
    "impulse": Impulse,
    "text": Text,
    "speckle": Speckle,
    "none": NoNoise,
}


def fixed(name: str, level: float | None = None) -> Noise:
    """Return the model of a name with one level, by default its own.

    Raises:
        UserError: there is no such noise, or it has no such level.

    """
    known = [other for other in MODELS if other != "none"]
    if name not in known:
        raise UserError(f"noise {name}: must be one of {', '.join(known)}")
    model = MODELS[name]
    return model() if level is None else model(**{model.level_name: level})


def _normal(clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(clean.shape, generator=generator, device=clean.device)


def _happens(clean: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Draw for every pixel of [C, H, W] whether something happens to it, bool [1, H, W]."""
    return torch.rand((1, *clean.shape[-2:]), generator=generator, device=clean.device) < probability


def _photons(clean: torch.Tensor, at_white: float, generator: torch.Generator) -> torch.Tensor:
    light = clean.detach()
    # the sampler ends the run where a prediction is not finite, which is to be told with its step and samples
    rate = (light.clamp(min=0) * at_white).nan_to_num(0.0, 0.0)
    # the last term is 0, with the derivative of the mean; not a number where the image is not finite
    return torch.poisson(rate, generator=generator) / at_white + (clean - light)
