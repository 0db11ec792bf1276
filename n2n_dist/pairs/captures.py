"""Pairs of noisy captures of one scene."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from n2n_dist.errors import UserError
from n2n_dist.noise.keyed import KeyedNoise
from n2n_dist.pairs.base import Pair, Pairs
from n2n_dist.shards.records import Member, Sample


@dataclass
class Captures(Pairs):
    """Two or more noisy captures of a scene: one is the input, others are the target."""

    name: str = "captures"
    """Source of the pairs: captures of one scene, taken as they are."""
    target: str = "one"
    """The target is `one` other capture, or the `mean` of all the others."""
    supervised: bool = False
    """Train on the clean reference as the target, for comparison (Noise2Clean)."""

    adds_noise = False
    averages = True

    def __post_init__(self) -> None:
        if self.target not in ("one", "mean"):
            raise UserError(f"pairs.target {self.target!r}: must be one or mean")
        self.min_captures = 1 if self.supervised else 2
        self.needs_reference = self.supervised

    @property
    def unmatched(self) -> str | None:
        """The target, where it is a mean of captures and has less noise than one."""
        return "pairs.target mean" if self.target == "mean" else None

    def image_count(self, averaged: bool) -> int:
        """Return 2, or 3 with the mean beside one capture."""
        return 3 if averaged and self.target == "one" and not self.supervised else 2

    def images(self, sample: Sample, turn: int, averaged: bool) -> list[list[Member]]:
        """Choose input and target; captures take turns.

        In K (K - 1) turns each of the K captures is the input with every other one as the target once.
        """
        first, *others = [sample.captures[k] for k in capture_order(len(sample.captures), turn)]
        if self.supervised:
            assert sample.clean  # checked for the whole shard
            return [[first], [sample.clean]]
        if self.target == "mean":
            return [[first], others]
        return [[first], others[:1], others] if averaged else [[first], others[:1]]

    def pair(self, images: torch.Tensor, noise: KeyedNoise) -> Pair:
        """Take the captures as they are; `noise` describes that of the target."""
        averaged = images[:, 2] if images.shape[1] > 2 else None
        return Pair(images[:, 0], images[:, 1], averaged=averaged, noise=None if self.supervised else noise)


def capture_order(captures: int, turn: int) -> list[int]:
    """Order the captures of a scene: input, target, all others.

    In K (K - 1) consecutive turns every ordered pair of the K captures comes first once.
    """
    first, step = turn % captures, turn // captures
    others = captures - 1
    return [first, *((first + 1 + (step + k) % others) % captures for k in range(others))]
