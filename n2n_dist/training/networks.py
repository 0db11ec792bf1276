"""The networks of a run: the denoiser, its moving average, and the extractor of the perceptual term."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn

from n2n_dist.checkpoint.format import describe_differences
from n2n_dist.distributed.backend import Backend
from n2n_dist.errors import UserError
from n2n_dist.models import MODELS
from n2n_dist.models.network import Network, NetworkSettings
from n2n_dist.models.weights import load_model
from n2n_dist.objective import LossSettings
from n2n_dist.training.precision import TrainSettings, memory_format, prepare_models


@dataclass
class Networks:
    """The networks of a run, on this rank's device."""

    network: Network
    """The denoiser that is trained."""
    model: nn.Module
    """The same as the backend wraps it, which reduces gradients over the ranks."""
    ema: Network
    """The moving average of its weights, which is validated and ships."""
    features: nn.Module | None
    """The extractor of the perceptual term, if there is one."""
    layout: torch.memory_format
    """Of input images."""

    def example(self, crops: int) -> torch.Tensor:
        """Return a micro-batch of black crops, [crops, C, H, W]."""
        size = self.network.crop
        example = torch.zeros(crops, self.network.settings.channels, size, size)
        return example.to(next(self.network.parameters()).device, memory_format=self.layout)


def build_networks(
    model: NetworkSettings, crop: int, loss: LossSettings, train: TrainSettings, backend: Backend
) -> Networks:
    """Build the networks, laid out and compiled as set; their weights are loaded next.

    Args:
        model: shape of the denoiser.
        crop: height and width of what it is trained on, in pixels.
        loss: says which features are compared.
        train: layout and compilation.
        backend: of the run.

    """
    network, ema = (MODELS[model.name].empty(model, crop, backend.device) for _ in range(2))
    layout = memory_format(train)
    ema.to(memory_format=layout).eval().requires_grad_(False)
    features = loss.extractor(model.channels)
    features = features.to(backend.device) if features is not None else None
    prepare_models(network, features, train, backend)
    return Networks(network, network, ema, features, layout)


def initialise(nets: Networks, seed: int, weights: str | None) -> None:
    """Fill network and average with trained weights, or with those that the seed draws.

    Args:
        nets: built, and not wrapped yet.
        seed: of the run.
        weights: `run.init`, a .safetensors file or another run's folder.

    Raises:
        UserError: they are the weights of another network.

    """
    torch.manual_seed(seed)
    network = nets.network
    start = load_model(weights) if weights else type(network)(network.settings, network.crop)
    if start.settings != network.settings:
        differences = describe_differences(asdict(start.settings), asdict(network.settings))
        raise UserError(
            f"run.init {weights}: weights of another network ({differences}); give the model.* settings it was "
            "trained with"
        )
    network.load_state_dict(start.state_dict())
    nets.ema.load_state_dict(network.state_dict())
