"""The loss of the model on pairs of noisy images.

    L = pixel(f(x + n1), x + n2) + lambda * perceptual(f(x + n1), x + n2)

(Noise2Noise, Lehtinen et al. 2018; the perceptual term as in Johnson et al. 2016.) Single noisy images give
the two sides by neighbour sub-sampling, with a further term (Neighbor2Neighbor, Huang et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from n2n_dist.errors import UserError
from n2n_dist.losses.perceptual import LAYERS, VGGFeatures, matched_perceptual, perceptual
from n2n_dist.losses.pixel import PIXEL_LOSSES
from n2n_dist.noise import Noise
from n2n_dist.pairs.base import Pair, Pairs


@dataclass
class LossSettings:
    """The loss of a prediction against its noisy target."""

    pixel: str = "l1"
    """`l1`, `l2`, `charbonnier`, `l0` (annealed, for impulses), `masked_l2` (for bernoulli) or `relative_l2` (HDR)."""
    perceptual: float = 0.01
    """lambda, the weight of the VGG-16 feature distance; 0 leaves it out."""
    form: str = "plain"
    """Features are compared with the target's (`plain`), the mean capture's (`averaged`), or both noisy (`matched`)."""
    layers: list[str] = field(default_factory=lambda: ["relu1_2", "relu2_2", "relu3_3"])
    """VGG-16 layers whose features are compared."""
    weights: str | None = None
    """Safetensors file of VGG-16; default: the bundled weights (to relu3_3), torchvision's for deeper layers."""

    def __post_init__(self) -> None:
        if self.pixel not in PIXEL_LOSSES:
            raise UserError(f"loss.pixel {self.pixel!r}: must be one of {', '.join(PIXEL_LOSSES)}")
        if self.form not in ("plain", "averaged", "matched"):
            raise UserError(f"loss.form {self.form!r}: must be plain, averaged or matched")
        if not self.layers or not LAYERS.keys() >= set(self.layers):
            raise UserError(f"loss.layers {self.layers}: unknown or empty; choose from {', '.join(LAYERS)}")
        if not 0 <= self.perceptual < float("inf"):
            raise UserError(f"loss.perceptual {self.perceptual}: must be 0 or more")

    @property
    def needs_average(self) -> bool:
        """Whether features are compared with those of the mean of all captures but the input."""
        return self.form == "averaged" and self.perceptual > 0

    def extractor(self, channels: int) -> VGGFeatures | None:
        """Load the feature extractor, if the loss needs one."""
        if self.perceptual == 0:
            return None
        if channels not in (1, 3):
            raise UserError(
                f"loss.perceptual {self.perceptual}: VGG-16 sees 1 or 3 channels, not {channels}; set it to 0"
            )
        return VGGFeatures(self.layers, Path(self.weights) if self.weights else None)


def check_objective(noise: Noise, pairs: Pairs, loss: LossSettings) -> None:
    """Check that noise, pairs and loss can work together.

    Raises:
        UserError: names the setting that does not fit, and the remedy.

    """
    pairs.check(noise)
    masked = PIXEL_LOSSES[loss.pixel].masked
    if noise.loses_pixels and not masked and not pairs.supervised:
        raise UserError(
            f"loss.pixel {loss.pixel}: counts the pixels that noise.name {noise.name} has lost; use {noise.remedy}"
        )
    if masked and not noise.loses_pixels:
        raise UserError(
            f"loss.pixel {loss.pixel}: noise.name {noise.name} loses no pixels, only bernoulli does; use l2"
        )
    if loss.perceptual == 0 or pairs.supervised:
        return
    if loss.form == "averaged" and not pairs.averages:
        raise UserError(f"loss.form averaged: needs pairs.name captures, not {pairs.name}; use matched or plain")
    if loss.form == "matched":
        if pairs.unmatched:
            raise UserError(f"loss.form matched: the noise of {pairs.unmatched} is not that of noise.name; use plain")
        if not noise.adds_noise:
            raise UserError(
                "loss.form matched: needs the noise of the captures: noise.name=poisson-gaussian noise.lam=1/a "
                "noise.read=sqrt(b)/a (0 for b below 0), of the noise variance a x + b that the audit prints; "
                "where a is not above 0, noise.name=gaussian noise.sigma=255*sqrt(b)"
            )
        if not pairs.adds_noise and isinstance(noise.level, Sequence):
            raise UserError(f"noise.{noise.level_name} {noise.level}: describes the captures; give one number")


def loss_terms(
    model: nn.Module, features: nn.Module | None, settings: LossSettings, pair: Pair, fraction: float = 0.0
) -> dict[str, torch.Tensor]:
    """Return every part of the loss, and their weighted sum under `total`.

    Args:
        model: the denoiser.
        features: the extractor of the perceptual term, None for no such term.
        settings: of the loss.
        pair: of this batch.
        fraction: fraction of the training that is done, in [0, 1).

    """
    prediction = model(pair.inputs)
    parts = {"pixel": PIXEL_LOSSES[settings.pixel](prediction, pair.targets, pair.mask, fraction)}
    parts["total"] = parts["pixel"]
    if pair.consistency is not None:
        parts["consistency"] = pair.consistency(model, prediction)
        parts["total"] = parts["total"] + pair.gamma * fraction * parts["consistency"]
    if features is not None:
        if settings.form == "matched" and pair.noise is not None:
            first, second = (pair.noise(prediction, f"noise-prediction-{draw}") for draw in (1, 2))
            parts["perceptual"] = matched_perceptual(features, first, second, pair.targets)
        else:
            target = pair.targets if pair.averaged is None else pair.averaged
            parts["perceptual"] = perceptual(features, prediction, target)
        parts["total"] = parts["total"] + settings.perceptual * parts["perceptual"]
    return parts
