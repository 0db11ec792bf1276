"""Statistic of the noise that a run's loss estimates: mean, median or mode, and whether that is the clean image."""

from __future__ import annotations

from n2n_dist.losses.pixel import PIXEL_LOSSES
from n2n_dist.noise import Noise
from n2n_dist.objective import LossSettings
from n2n_dist.pairs.base import Pairs


def expectation(noise: Noise, pairs: Pairs, loss: LossSettings) -> tuple[str, list[str]]:
    """Say what a run learns, in one line, and warn of what is not the clean image, with the remedy.

    The pixel loss learns a statistic of the noisy targets (Noise2Noise section 2), which is the clean image or not.
    Features of a noisy target are not in the mean those of the clean image (Jensen's inequality), whatever the noise.
    """
    if pairs.supervised:
        return f"the {PIXEL_LOSSES[loss.pixel].estimates} of clean images", []
    statistic, known = PIXEL_LOSSES[loss.pixel].estimates, noise.clean
    described = f"noise {noise.name}" if noise.adds_noise else "the images' own noise"
    warnings = []
    if statistic not in known or (statistic == "median" and noise.replaces_half):
        remedy = "l0" if noise.replaces_half else noise.remedy
        wrong = (
            "mixed with the colours of the noise" if known[0] != "mean" else "darker, where the noise is that of light"
        )
        warnings.append(
            f"loss.pixel {loss.pixel} learns the {statistic} of {described}, which is not the clean image but {wrong}; "
            f"set loss.pixel={remedy}"
        )
    if loss.perceptual > 0 and loss.form != "matched":
        how = "are biased" if loss.form == "plain" else "are biased, less with more captures"
        remedy = "" if pairs.unmatched else "set loss.form=matched, or "
        warnings.append(
            f"loss.form {loss.form}: features of noisy targets {how}, so some noise is learned as texture; "
            f"{remedy}loss.perceptual=0"
        )
    if pairs.uses_neighbours and noise.shared_by_neighbours:
        warnings.append(
            f"pairs.name {pairs.name}: neighbouring pixels share noise {noise.name}, which stays in the image; use "
            "captures"
        )
    elif pairs.uses_neighbours and "mean" not in known:
        warnings.append(
            f"pairs.name {pairs.name}: its consistency term draws towards the mean of {described}, which is not the "
            "clean image; use captures"
        )
    clean = "" if warnings else ": the clean image"
    return f"the {statistic} of noisy targets ({described}){clean}", warnings
