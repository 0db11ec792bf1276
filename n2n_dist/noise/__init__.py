"""Noise models by name, one class each."""

from __future__ import annotations

from n2n_dist.errors import UserError
from n2n_dist.noise.additive import CorrelatedGaussian, Gaussian, NoNoise
from n2n_dist.noise.base import Noise
from n2n_dist.noise.light import Poisson, PoissonGaussian, Speckle
from n2n_dist.noise.replaced import Bernoulli, Impulse, Text

MODELS: dict[str, type[Noise]] = {
    cls.name: cls
    for cls in (
        Gaussian,
        CorrelatedGaussian,
        Poisson,
        PoissonGaussian,
        Bernoulli,
        Impulse,
        Text,
        Speckle,
        NoNoise,
    )
}
"""Every noise by its `noise.name`."""


def noise_of_level(name: str, level: float | None = None) -> Noise:
    """Return the noise of a name with one level, by default its own.

    Raises:
        UserError: there is no such noise, or it has no such level.

    """
    known = [other for other, cls in MODELS.items() if cls.adds_noise]
    if name not in known:
        raise UserError(f"noise {name}: must be one of {', '.join(known)}")
    cls = MODELS[name]
    return cls() if level is None else cls(**{cls.level_name: level})
