"""Networks by name, and how weights files and checkpoints name their parts.

**Metadata.** A weights file holds one JSON object under the key `n2n_dist` of its safetensors metadata; the manifest of
a checkpoint holds the same under `network`:

    network     key of the network in `MODELS` (`model.name` of the configuration)
    version     `Network.version`: weights of another one are refused
    settings    section `model` of the configuration
    crop        height and width of the training crops in pixels (half of `data.crop` for neighbours)
    step        optimiser steps done (weights file only)

**Tensors** are named by the path of modules that owns them, and the parameter: `decoder.0.1.conv2.weight`. The ResUNet:

    stem_conv           3x3 convolution of the unshuffled pixels, less their local mean
    mean_branch         1x1 convolution of the local mean, added to the stem's features
    encoder.L.B         block B of level L, 0 the finest: conv1, conv2, gate.squeeze, gate.excite
    down.L              2x2 convolution of stride 2, from level L to L + 1
    up.L                conv before the PixelShuffle, from level L + 1 to L
    attention.L         skip, signal, weight: gate on the skip connection of level L
    merge.L             1x1 convolution of the upsampled features and the gated skip
    decoder.L.B         as the encoder; the coarsest level has none
    head                3x3 convolution from features to noise
    local_filter        3x3 convolution from pixels to noise, without a bias

Before these a checkpoint puts the part of the run: `model.` the weights, `ema.` their moving average, `optimizer.` the
optimiser's moments, `optimizer.stem_conv.weight.exp_avg`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from n2n_dist.errors import UserError
from n2n_dist.models.network import Network
from n2n_dist.models.resunet import ResUNet

MODELS: dict[str, type[Network]] = {"resunet": ResUNet}
"""Every network by its `model.name`."""


def build(metadata: Mapping[str, Any], device: torch.device | None = None) -> Network:
    """Build the network that its `metadata` describes; its weights have no values until they are loaded.

    Args:
        metadata: of a weights file or checkpoint, see `Network.metadata`.
        device: where the network is put; default the CPU.

    Raises:
        UserError: no such network here, or another version of it.
        KeyError, TypeError, AttributeError: not the metadata of a network.

    """
    check_version(metadata)
    network = MODELS[metadata["network"]]
    settings = network.settings_class(**metadata["settings"])
    return network.empty(settings, metadata["crop"], device or torch.device("cpu"))


def check_version(metadata: Mapping[str, Any]) -> None:
    """Check that the network of a weights file or checkpoint is known here, in the same version.

    Raises:
        UserError: it is not; says what to do.
        KeyError, TypeError, AttributeError: not the metadata of a network.

    """
    name, version = metadata["network"], metadata.get("version")
    if name not in MODELS:
        raise UserError(
            f"network {name!r}: unknown, known are {', '.join(MODELS)}; use the version of n2n_dist that wrote this"
        )
    if version != MODELS[name].version:
        raise UserError(
            f"network {name} of version {version}: this version of n2n_dist has {MODELS[name].version}; use the one "
            "that wrote this, or train again"
        )
