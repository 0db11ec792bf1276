"""Sources of pairs by name, one class each: two noisy versions of the same scenes, input and target."""

from __future__ import annotations

from n2n_dist.data.batch import Batch
from n2n_dist.noise.base import Noise
from n2n_dist.noise.keyed import KeyedNoise
from n2n_dist.pairs.base import Pair, Pairs
from n2n_dist.pairs.captures import Captures
from n2n_dist.pairs.neighbours import Neighbours
from n2n_dist.pairs.synthetic import Synthetic

PAIRS: dict[str, type[Pairs]] = {cls.name: cls for cls in (Synthetic, Captures, Neighbours)}
"""Every source by its `pairs.name`."""


def noisy_pair(batch: Batch, noise: Noise, pairs: Pairs, seed: int) -> Pair:
    """Return input and target on the device of the batch's pixels; noise is keyed by the samples' positions."""
    return pairs.pair(batch.normalised(), KeyedNoise(noise, seed, batch.positions.tolist()))
