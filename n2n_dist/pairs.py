"""Pairs from a batch: two noisy versions of the same scenes, input and target.

They come from clean images and two noise fields, from captures, or from neighbouring pixels of single noisy images
(Neighbor2Neighbor, Huang et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from n2n_dist import rng
from n2n_dist.data.dataset import Batch
from n2n_dist.errors import UserError
from n2n_dist.noise import Noise

FIRST = (0, 0, 1, 1, 2, 2, 3, 3)
SECOND = (1, 2, 0, 3, 0, 3, 1, 2)
"""Places in a cell, counted along rows, of the eight ordered pairs of pixels that touch along a side."""


@dataclass
class PairSettings:
    """Where the two noisy versions of a scene come from."""

    name: str = "synthetic"
    """`synthetic`: clean images, two noise fields; `captures`: of one scene; `neighbours`: pixels of a noisy image."""
    target: str = "one"
    """Of captures, the target is `one` other capture, or the `mean` of all the others."""
    gamma: float = 2.0
    """Weight of the consistency term of `neighbours` at the end of training, to which it grows from 0."""
    supervised: bool = False
    """Train on the clean target instead, for comparison (Noise2Clean)."""

    def __post_init__(self) -> None:
        if self.name not in ("synthetic", "captures", "neighbours"):
            raise UserError(f"pairs.name {self.name!r}: must be synthetic, captures or neighbours")
        if self.target not in ("one", "mean"):
            raise UserError(f"pairs.target {self.target!r}: must be one or mean")
        if not 0 <= self.gamma < float("inf"):
            raise UserError(f"pairs.gamma {self.gamma}: must be 0 or more")
        if self.target == "mean" and self.name != "captures":
            raise UserError(f"pairs.target mean: pairs.name {self.name} has no other captures; set it to one")
        if self.supervised and self.name == "neighbours":
            raise UserError(
                "pairs.supervised true: pairs.name neighbours has no clean image; use synthetic or captures"
            )

    def network_crop(self, crop: int) -> int:
        """Return the height and width of what the network is trained on, for crops of the given size."""
        return crop // 2 if self.name == "neighbours" else crop


@dataclass
class KeyedNoise:
    """A noise model with the seed, positions and levels of a batch's samples."""

    model: Noise
    seed: int
    positions: list[int]
    """Place of each sample in the run."""

    def __post_init__(self) -> None:
        uniforms = [rng.uniform(self.seed, position, "noise-level") for position in self.positions]
        self.levels = [self.model.sample_level(uniform) for uniform in uniforms]

    def __call__(self, images: torch.Tensor, purpose: str) -> torch.Tensor:
        """Return noisy versions of `images`, float32 [B, C, H, W]; every purpose gives other ones."""
        return self._each(self.model, images, purpose)

    def kept(self, images: torch.Tensor, purpose: str) -> torch.Tensor | None:
        """Return which pixels the noise of this purpose has not lost, bool [B, 1, H, W]; None: it never loses any."""
        return self._each(self.model.kept, images, purpose) if self.model.loses_pixels else None

    def _each(self, make: Noise | Callable[..., torch.Tensor], images: torch.Tensor, purpose: str) -> torch.Tensor:
        samples = zip(images, self.levels, self.positions, strict=True)
        return torch.stack(
            [
                make(image, level, rng.generator(self.seed, position, purpose, images.device))
                for image, level, position in samples
            ]
        )


@dataclass
class Neighbours:
    """Single noisy images, and which two pixels of every cell of 2 x 2 became input and target."""

    images: torch.Tensor
    """Float32 [B, C, H, W]."""
    choice: torch.Tensor
    """Int64 [B, H / 2, W / 2], see `neighbour_pair`."""
    gamma: float
    """Weight of the consistency term at the end of training."""


@dataclass
class Pair:
    """Two noisy versions of the same scenes, and what some losses need beside them."""

    inputs: torch.Tensor
    """Float32 [B, C, H, W], as all others here."""
    targets: torch.Tensor
    mask: torch.Tensor | None = None
    """Pixels of the target that count, bool [B, 1, H, W]; None: all."""
    averaged: torch.Tensor | None = None
    """The mean of all captures but the input, for the features; None: the target serves."""
    noise: KeyedNoise | None = None
    """Noise of the target, for the features of the prediction; None: its features are compared without."""
    neighbours: Neighbours | None = None


def noisy_pair(batch: Batch, noise: Noise, pairs: PairSettings, seed: int) -> Pair:
    """Return input and target on the device of the batch's pixels.

    Synthetic pairs carry two independent noise fields of one level, keyed by the sample's position in the run.
    """
    images = batch.normalised()
    keyed = KeyedNoise(noise, seed, batch.positions.tolist())
    if pairs.name == "captures":
        averaged = images[:, 2] if images.shape[1] > 2 else None
        return Pair(images[:, 0], images[:, 1], averaged=averaged, noise=None if pairs.supervised else keyed)
    if pairs.name == "neighbours":
        noisy = keyed(images[:, 0], "noise-input")
        choice = torch.stack([_choose_neighbours(noisy, seed, position) for position in keyed.positions])
        return Pair(*neighbour_pair(noisy, choice), neighbours=Neighbours(noisy, choice, pairs.gamma))
    clean = images[:, 0]
    inputs = keyed(clean, "noise-input")
    if pairs.supervised:
        return Pair(inputs, clean)
    return Pair(inputs, keyed(clean, "noise-target"), mask=keyed.kept(clean, "noise-target"), noise=keyed)


def neighbour_pair(images: torch.Tensor, choice: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Take two neighbouring pixels of every cell of 2 x 2 (Neighbor2Neighbor, Huang et al. 2021).

    Args:
        images: [B, C, H, W]; an odd last row or column is left out.
        choice: which of the eight ordered pairs, int64 [B, H // 2, W // 2] in [0, 8).

    Returns:
        two images [B, C, H // 2, W // 2].

    """
    count, channels, height, width = images.shape
    rows, columns = height // 2, width // 2
    cells = images[..., : 2 * rows, : 2 * columns].reshape(count, channels, rows, 2, columns, 2)
    cells = cells.transpose(3, 4).reshape(count, channels, rows, columns, 4)

    def take(places: Sequence[int]) -> torch.Tensor:
        place = torch.tensor(places, device=images.device)[choice][:, None, ..., None]
        return cells.gather(-1, place.expand(-1, channels, -1, -1, -1))[..., 0]

    return take(FIRST), take(SECOND)


def _choose_neighbours(images: torch.Tensor, seed: int, position: int) -> torch.Tensor:
    size = images.shape[-2] // 2, images.shape[-1] // 2
    generator = rng.generator(seed, position, "neighbours", images.device)
    return torch.randint(len(FIRST), size, generator=generator, device=images.device)
