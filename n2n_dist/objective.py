"""What is learned: pairs from a batch, and the loss of the model on them.

    L = pixel(f(x + n1), x + n2) + lambda * perceptual(f(x + n1), x + n2)

(Noise2Noise, Lehtinen et al. 2018; the perceptual term as in Johnson et al. 2016.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from n2n_dist.data.dataset import Batch
from n2n_dist.errors import Refusal
from n2n_dist.loss.perceptual import LAYERS, VGGFeatures, perceptual
from n2n_dist.loss.pixel import LOSSES
from n2n_dist.noise import keys
from n2n_dist.noise.models import Noise


@dataclass
class PairSettings:
    """Where the two noisy versions of a scene come from."""

    source: str = "synthetic"
    """`synthetic`: clean images and two noise fields; `captures`: two real captures of the same scene."""
    supervised: bool = False
    """Train on the clean target instead, for comparison (Noise2Clean)."""

    def __post_init__(self) -> None:
        if self.source not in ("synthetic", "captures"):
            raise Refusal(f"pairs.source {self.source!r}: must be synthetic or captures")

    @property
    def crops(self) -> str:
        """What the data set has to read for such pairs."""
        if self.source == "synthetic":
            return "image"
        return "supervised" if self.supervised else "captures"


@dataclass
class LossSettings:
    """The loss of a prediction against its noisy target."""

    pixel: str = "l1"
    """`l1`, `l2` or `charbonnier`."""
    perceptual: float = 0.01
    """lambda, the weight of the VGG-16 feature distance; 0 leaves it out."""
    layers: list[str] = field(default_factory=lambda: ["relu1_2", "relu2_2", "relu3_3"])
    """VGG-16 layers whose features are compared."""
    weights: str | None = None
    """Safetensors file of VGG-16; default: the bundled weights (to relu3_3), torchvision's for deeper layers."""

    def __post_init__(self) -> None:
        if self.pixel not in LOSSES:
            raise Refusal(f"loss.pixel {self.pixel!r}: must be one of {', '.join(LOSSES)}")
        if not self.layers or not LAYERS.keys() >= set(self.layers):
            raise Refusal(f"loss.layers {self.layers}: unknown or empty; choose from {', '.join(LAYERS)}")
        if not 0 <= self.perceptual < float("inf"):
            raise Refusal(f"loss.perceptual {self.perceptual}: must be 0 or more")

    def extractor(self, channels: int) -> VGGFeatures | None:
        """Load the feature extractor, if the loss needs one."""
        if self.perceptual == 0:
            return None
        if channels not in (1, 3):
            raise Refusal(
                f"loss.perceptual {self.perceptual}: VGG-16 sees 1 or 3 channels, not {channels}; set it to 0"
            )
        return VGGFeatures(self.layers, Path(self.weights) if self.weights else None)


def noisy_pair(batch: Batch, noise: Noise, pairs: PairSettings, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return input and target, float32 [B, C, H, W] each, on the device of the batch's pixels.

    Synthetic pairs carry two independent noise fields of one level, keyed by the sample's position in the run.
    """
    images = batch.normalised()
    if pairs.source == "captures":
        return images[:, 0], images[:, 1]
    clean = images[:, 0]
    inputs, targets = torch.empty_like(clean), torch.empty_like(clean)
    for i, position in enumerate(batch.positions.tolist()):
        level = noise.level(keys.uniform(seed, position, "noise-level"))
        for field_, purpose in ((inputs, "noise-input"), (targets, "noise-target")):
            field_[i] = noise(clean[i], level, keys.generator(seed, position, purpose, clean.device))
    return inputs, clean if pairs.supervised else targets


def losses(
    model: nn.Module,
    features: nn.Module | None,
    settings: LossSettings,
    inputs: torch.Tensor,
    targets: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Return every part of the loss, and their weighted sum under `total`."""
    prediction = model(inputs)
    parts = {"pixel": LOSSES[settings.pixel](prediction, targets)}
    parts["total"] = parts["pixel"]
    if features is not None:
        parts["perceptual"] = perceptual(features, prediction, targets)
        parts["total"] = parts["pixel"] + settings.perceptual * parts["perceptual"]
    return parts
