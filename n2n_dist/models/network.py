"""Interface of a network to training, checkpoints and inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import nn


class NetworkSettings(Protocol):
    """Settings of a network: a dataclass, the section `model` of the configuration."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: str
    """Key of the network in `MODELS`."""
    channels: int
    """Channels of the image, 1 to 4."""

    @property
    def divisor(self) -> int:
        """Number of pixels of which height and width of a training crop must be a multiple."""


class Network(nn.Module):
    """A denoiser: noisy float32 [N, C, H, W], not clipped -> denoised float32 [N, C, H, W], any height and width.

    It is built from its settings and the size of the training crops alone, so that a weights file can name it. All that
    training changes is in parameters and persistent buffers; a network may be built without drawing their values.
    """

    version: ClassVar[int] = 1
    """Counted up when earlier weights no longer fit, or would denoise differently."""
    settings_class: ClassVar[type]
    """Dataclass of its settings, see `NetworkSettings`."""

    def __init__(self, settings: Any, crop: int = 0) -> None:
        """Keep what the network is built from.

        Args:
            settings: an instance of `settings_class`.
            crop: height and width of the training crops in pixels; 0: not known.

        Raises:
            UserError: the crop does not fit the settings.

        """
        super().__init__()
        self.settings: Any = settings
        self.crop = crop
        self.divisor: int = settings.divisor

    @classmethod
    def empty(cls, settings: Any, crop: int, device: torch.device) -> Self:
        """Build a network whose weights are loaded next: drawing those of a large one takes seconds."""
        with torch.device("meta"):
            network = cls(settings, crop)
        return network.to_empty(device=device)

    def compile_regions(self) -> Iterable[nn.Module]:
        """Yield the modules that are compiled, each on its own; the whole network in one piece.

        A network compiled as a whole hands over all gradients at once, and none is reduced during the backward pass.
        """
        return [self]

    def metadata(self) -> dict[str, Any]:
        """Return what `n2n_dist.models.build` needs, as JSON types: network, version, settings, crop."""
        return {
            "network": self.settings.name,
            "version": self.version,
            "settings": dataclasses.asdict(self.settings),
            "crop": self.crop,
        }
