"""What a run's loss learns of its noise: a mean, a median or a mode, and whether that is the clean image."""

from __future__ import annotations

from collections.abc import Sequence

from n2n_dist.losses.pixel import LEARNS
from n2n_dist.noise.models import Noise
from n2n_dist.objective import LossSettings
from n2n_dist.pairs import PairSettings

CLEAN = {
    "gaussian": ("mean", "median", "mode"),
    "correlated": ("mean", "median", "mode"),
    "poisson": ("mean",),
    "poisson-gaussian": ("mean",),
    "speckle": ("mean",),
    "bernoulli": ("mean",),
    "impulse": ("mode", "median"),
    "text": ("median", "mode"),
    "none": ("mean",),
}
"""Which statistics of its noisy versions are the clean image; the median of replaced pixels, while they are fewer than
half. Of `bernoulli` only the kept pixels count; `none` are captures or single images, whose noise nobody described."""
REMEDY = {
    "poisson": "l2",
    "poisson-gaussian": "l2",
    "speckle": "l2",
    "bernoulli": "masked_l2",
    "impulse": "l0",
    "text": "l1",
    "none": "l2",
}
"""The loss that learns the first of these; any does for the other models."""
SHARED = ("correlated", "text")
"""Noise that neighbouring pixels have in common."""
HALF = {"impulse": 0.5, "text": 0.4}
"""Shares from which on half of the pixels may be replaced; of text, the last string covers more than is asked for."""


def expectation(noise: Noise, pairs: PairSettings, loss: LossSettings) -> tuple[str, list[str]]:
    """Say what a run learns, in one line, and warn of what is not the clean image, with the remedy.

    The pixel loss learns a statistic of the noisy targets (Noise2Noise section 2), which is the clean image or not.
    Features of a noisy target are not in the mean those of the clean image (Jensen's inequality), whatever the noise.
    """
    if pairs.supervised:
        return f"the {LEARNS[loss.pixel]} of clean images", []
    statistic, known = LEARNS[loss.pixel], CLEAN[noise.name]
    described = f"noise {noise.name}" if noise.name != "none" else "the images' own noise"
    warnings = []
    if statistic not in known or (statistic == "median" and _replaces_half(noise)):
        remedy = "l0" if _replaces_half(noise) else REMEDY[noise.name]
        wrong = (
            "mixed with the colours of the noise" if known[0] != "mean" else "darker, where the noise is that of light"
        )
        warnings.append(
            f"loss.pixel {loss.pixel} learns the {statistic} of {described}, which is not the clean image but {wrong}; "
            f"set loss.pixel={remedy}"
        )
    if loss.perceptual > 0 and loss.form != "matched":
        how = "are biased" if loss.form == "plain" else "are biased, less with more captures"
        remedy = "" if pairs.name == "neighbours" or pairs.target == "mean" else "set loss.form=matched, or "
        warnings.append(
            f"loss.form {loss.form}: features of noisy targets {how}, so some noise is learned as texture; "
            f"{remedy}loss.perceptual=0"
        )
    if pairs.name == "neighbours" and noise.name in SHARED:
        warnings.append(
            f"pairs.name neighbours: neighbouring pixels share noise {noise.name}, which stays in the image; use "
            "captures"
        )
    elif pairs.name == "neighbours" and "mean" not in known:
        warnings.append(
            f"pairs.name neighbours: its consistency term draws towards the mean of {described}, which is not the "
            "clean image; use captures"
        )
    clean = "" if warnings else ": the clean image"
    return f"the {statistic} of noisy targets ({described}){clean}", warnings


def _replaces_half(noise: Noise) -> bool:
    """Whether half of the pixels of an image, or more, may be replaced."""
    if noise.name not in HALF:
        return False
    return max(noise.ends if isinstance(noise.ends, Sequence) else [noise.ends]) >= HALF[noise.name]
