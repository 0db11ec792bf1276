"""Interface of a source of pairs: it chooses images of a sample and makes an input and a target of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from n2n_dist.errors import UserError
from n2n_dist.noise.base import Noise
from n2n_dist.noise.keyed import KeyedNoise
from n2n_dist.shards.records import Member, Sample


@dataclass
class Pair:
    """Two noisy versions of the same scenes, and what some losses need beside them."""

    inputs: torch.Tensor
    """Float32 [B, C, H, W], as all others here."""
    targets: torch.Tensor
    mask: torch.Tensor | None = None
    """Pixels of the target that count, bool [B, 1, H, W]; None: all."""
    averaged: torch.Tensor | None = None
    """Mean of all captures but the input, for the features; None: the target serves."""
    noise: KeyedNoise | None = None
    """Noise of the target, for the features of the prediction; None: its features are compared without."""
    consistency: Callable[[nn.Module, torch.Tensor], torch.Tensor] | None = None
    """Further term of the loss, of the model and its prediction for `inputs`; None: no such term."""
    gamma: float = 0.0
    """Weight of that term at the end of training, to which it grows from 0."""


class Pairs:
    """A source of pairs: a dataclass of its settings, of which `name` is the first."""

    name: str
    supervised: bool = False
    """Whether the target is clean, for comparison (Noise2Clean)."""
    adds_noise: ClassVar[bool] = True
    """Whether `pair` puts noise on what was read; else noise.name at most describes the noise of the images."""
    default_noise: ClassVar[str] = "none"
    """noise.name where nothing is said of the noise."""
    min_captures: int = 1
    """Captures that every sample must have."""
    needs_reference: bool = False
    """Whether every sample must have a clean reference."""
    averages: ClassVar[bool] = False
    """Whether `images` can add the mean of all captures but the input, for loss.form=averaged."""
    uses_neighbours: ClassVar[bool] = False
    """Whether input and target are different pixels of one noisy image: these must not share their noise."""

    @property
    def unmatched(self) -> str | None:
        """The setting because of which the target's noise is not that of noise.name; None: it is."""
        return f"pairs.name {self.name}"

    def image_count(self, averaged: bool) -> int:
        """Return the number of images that `images` asks for."""
        return 2

    def images(self, sample: Sample, turn: int, averaged: bool) -> list[list[Member]]:
        """Choose what is read of a sample, all from one window; the members of an inner list are averaged.

        Args:
            sample: of the shards.
            turn: counts how often the sample came before, from a random start on: what takes turns depends on it.
            averaged: whether the last image is to be the mean of all captures but the input.

        """
        raise NotImplementedError

    def pair(self, images: torch.Tensor, noise: KeyedNoise) -> Pair:
        """Make input and target.

        Args:
            images: what `images` chose, float32 [B, K, C, H, W], black 0 and white 1.
            noise: that of noise.name, with a key for every sample.

        """
        raise NotImplementedError

    def network_crop(self, crop: int) -> int:
        """Return height and width of `Pair.inputs` for crops of the given size."""
        return crop

    def check(self, noise: Noise) -> None:
        """Check that the noise can be used with these pairs.

        Raises:
            UserError: names the setting and the remedy.

        """
        if noise.loses_pixels:
            raise UserError(
                f"noise.name {noise.name}: pairs.name {self.name} has no mask of lost pixels; use synthetic"
            )
