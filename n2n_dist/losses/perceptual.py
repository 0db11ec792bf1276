"""Perceptual loss: distance between features of a frozen VGG-16 (Johnson et al. 2016, Simonyan & Zisserman 2015)."""

from __future__ import annotations

import urllib.error
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from n2n_dist.errors import UserError
from n2n_dist.vision import import_torchvision

LAYERS = {
    f"relu{block}_{conv}": index
    for block, indices in enumerate(((1, 3), (6, 8), (11, 13, 15), (18, 20, 22), (25, 27, 29)), start=1)
    for conv, index in enumerate(indices, start=1)
}
"""Position of each named layer in torchvision's `vgg16().features`."""
BUNDLED = Path(__file__).parent.parent / "weights" / "vgg16_relu3_3_fp16.safetensors"
"""ImageNet weights up to relu3_3, part of the package."""


class VGGFeatures(nn.Module):
    """Frozen ImageNet features at the named layers: [N, 1 or 3, H, W] in [0, 1] -> a list of [N, C, H', W']."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, layers: Sequence[str], weights: Path | None = None) -> None:
        """Load the weights.

        Args:
            layers: names such as `relu3_3`.
            weights: a safetensors file with torchvision's keys (`features.0.weight`, ...); default: the bundled
                one up to relu3_3, torchvision's own download for deeper layers.

        Raises:
            UserError: an unknown layer, weights that are missing, of another network or do not reach the deepest layer,
                or a torchvision that does not fit torch.

        """
        super().__init__()
        unknown = [layer for layer in layers if layer not in LAYERS]
        if unknown or not layers:
            raise UserError(f"loss.layers {list(layers)}: unknown or empty; choose from {', '.join(LAYERS)}")
        self.taps = sorted(LAYERS[layer] for layer in layers)
        models = import_torchvision("torchvision.models")
        with torch.device("meta"):  # without memory for the classifier, which is 500 MB
            self.features = models.vgg16(weights=None, init_weights=False).features[: self.taps[-1] + 1]
        found = _read_weights(self.taps[-1], weights, self.features.state_dict().keys())
        try:
            self.features.load_state_dict(found, assign=True)
        except RuntimeError:
            raise UserError(f"loss.weights {weights}: has the shapes of another network than VGG-16") from None
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the features, shallowest layer first; a grey image is repeated to three channels."""
        x = (image.expand(-1, 3, -1, -1) - self.mean) / self.std
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                found.append(x)
        return found


def perceptual(features: nn.Module, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of features, averaged over the layers; no gradient flows to the target."""
    return _mean_distance(features(prediction), _without_gradient(features, target))


def matched_perceptual(
    features: nn.Module, first: torch.Tensor, second: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """Energy distance between the features of the prediction under noise and those of the noisy target.

    With X and X' the features of two noisy versions of the prediction and Y those of the target, it is

        (|X - Y| + |X' - Y| - |X - X'|) / 2,    whose expectation is    E|X - Y| - E|X - X'| / 2,

    the energy score (Szekely and Rizzo 2013; Gneiting and Raftery 2007, section 4.3), which is least where X and Y
    have the same distribution: noise in the target cannot be gained by putting it into the prediction, as it can in
    `perceptual`. That needs a distance of negative type, which the absolute difference summed over features is, for
    each feature on its own. At a prediction that is the clean image, X, X' and Y are drawn alike, the first two terms
    and the last cancel in the mean whatever dX / d(prediction) is, and so the gradient has mean zero there even where
    the noise depends on the signal and is differentiated approximately; both draws need one. The value is never
    negative.

    Args:
        features: the extractor.
        first: the prediction with fresh noise of the target's model and level, [B, C, H, W].
        second: the same with other noise.
        target: noisy, of the same shape; no gradient flows to it.

    """
    one, other, wanted = features(first), features(second), _without_gradient(features, target)
    return (_mean_distance(one, wanted) + _mean_distance(other, wanted) - _mean_distance(one, other)) / 2


@torch.no_grad()
def _without_gradient(features: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    return features(image)


def _mean_distance(these: list[torch.Tensor], those: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([(a.float() - b.float()).abs().mean() for a, b in zip(these, those, strict=True)]).mean()


def _read_weights(last: int, path: Path | None, wanted: Sequence[str]) -> dict[str, torch.Tensor]:
    if path is None and last > LAYERS["relu3_3"]:
        models = import_torchvision("torchvision.models")
        try:
            weights = models.VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"loss.layers: layers deeper than relu3_3 need torchvision's VGG-16 weights, and their download "
                f"failed ({error}); set loss.weights to a safetensors file of them, or use layers up to relu3_3"
            ) from None
    else:
        path = path or BUNDLED
        try:
            weights = safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(
                f"{path}: the weights of VGG-16 cannot be read ({error}); install the package again, or set "
                "loss.weights to a safetensors file with the keys of torchvision's vgg16"
            ) from None
    missing = [name for name in wanted if f"features.{name}" not in weights]
    if missing:
        raise UserError(f"{path}: has no features.{missing[0]}; loss.layers needs deeper weights than this file holds")
    return {name: weights[f"features.{name}"].float() for name in wanted}
