"""Findings of an audit: its numbers judged for training, each with a severity and a remedy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator

from n2n_dist.audit.results import HARMS, NOTE, Audit, Finding
from n2n_dist.commands import command
from n2n_dist.measure.noise_estimation import SURE

CLIPPED = 0.001
"""Share of pixels. Fewer are single dark or hot pixels; clipping of noise soon takes per cents."""
SHIFT = 0.1
"""Pixels. At 0.1 the finest detail differs by 2 sin(0.1 pi / 2) = 31 % between the captures, and is averaged away."""
DIFFERENCE = 1 / 255
"""Brightness, one step of an 8-bit picture. As a constant error it holds the PSNR below 48 dB."""
SHARED = 0.05
"""Share of the noise's variance. The shared part stays: with 5 % the noise falls by 13 dB at most."""
TEXTURE = (2 / 255) ** 2
"""Variance. The smoothest areas of photographs keep about 1/255 of texture, which looks like shared noise."""
NEIGHBOURS = 0.05
"""Correlation of neighbouring pixels. Smaller ones leave neighbour sub-sampling as exact as `SHARED`."""
NO_NOISE = 0.5 / 255
"""Standard deviation. Below the rounding of an 8-bit picture there is nothing to remove."""
RESIDUAL = 2 / 255
"""Standard deviation. More noise than a good photograph halved in size has, about 1/255."""
LINE = 0.2
"""Relative distance of the variances from their line; of unprocessed sensor data it is some per cent."""
PEDESTAL = 0.01
"""Share of the range by which the black level is off; 1 % are two to three steps of an 8-bit picture."""
USED_RANGE = 0.25
"""Share of the range. 12-bit values in 16-bit files without `--white` reach 0.06, 14-bit ones 0.25."""


def find(audit: Audit) -> list[Finding]:
    """Return the findings on a data set, harmful ones first; an empty list if there are none."""
    checks: tuple[Callable[[Audit], Iterator[Finding]], ...] = (
        _tars,
        _pixels,
        _clipping,
        _range,
        _identical,
        _shift,
        _brightness,
        _pattern,
        _neighbours,
        _noise,
    )
    findings = [finding for check in checks for finding in check(audit)]
    return sorted(findings, key=lambda finding: finding.severity != HARMS)


def _tars(audit: Audit) -> Iterator[Finding]:
    if audit.differing:
        yield Finding(
            HARMS,
            "digest",
            f"{_some(audit.differing)}: not the bytes that were indexed; left out of this report",
            f"copy it again; if it was changed on purpose: {command('index', audit.name)}",
        )


def _pixels(audit: Audit) -> Iterator[Finding]:
    if audit.unreadable:
        yield Finding(
            HARMS,
            "unreadable",
            f"samples that are damaged, or hold NaN or infinite pixels, {len(audit.unreadable)}: "
            f"{_some(list(audit.unreadable))}",
            "training replaces them by others; repair or remove their images and build the shards again",
        )
    if not audit.measured:
        yield Finding(NOTE, "no pixels", "no sample could be measured", "audited are tiles of 32 pixels or more")


def _clipping(audit: Audit) -> Iterator[Finding]:
    paired = _paired(audit)
    noise = audit.noise.sigma if audit.noise else 0.0
    if audit.clipped_low >= CLIPPED:
        yield Finding(
            HARMS if paired else NOTE,
            "clipped at black",
            f"{audit.clipped_low:.2%} of the pixels have the lowest value",
            f"clipped noise is too bright on average, in black by 0.4 sigma ({0.4 * noise:.1f}/255), and the network "
            "learns it: capture with a higher black level and do not subtract it (photon counts may be 0: no harm)"
            if paired
            else "harmless in clean images, to which noise is added later and not clipped",
        )
    if audit.clipped_high >= CLIPPED:
        yield Finding(
            NOTE,
            "clipped at white",
            f"{audit.clipped_high:.2%} of the pixels have the highest value",
            "bright areas hold no detail and, just below, too dark a mean: expose less if they matter",
        )


def _range(audit: Audit) -> Iterator[Finding]:
    if audit.measured and 0 < audit.highest < USED_RANGE:
        black, white = audit.ranges[-1]
        highest = black + audit.highest * (white - black)
        yield Finding(
            NOTE,
            "range",
            f"the highest value is {audit.highest:.3f} of the range, {highest:g} in the file",
            f"if the sensor saturates below {white:g}, build again with --white (12 bit: 4095)",
        )


def _identical(audit: Audit) -> Iterator[Finding]:
    if audit.identical:
        yield Finding(
            HARMS,
            "identical captures",
            f"scenes that hold a capture twice, {len(audit.identical)}: {_some(audit.identical)}",
            "from itself the network learns to change nothing; remove the copies and build again",
        )


def _shift(audit: Audit) -> Iterator[Finding]:
    sizes = {pair.scene: math.hypot(*pair.shift) for pair in audit.pairs if pair.is_beyond(SHIFT)}
    if sizes:
        worst = max(sizes, key=sizes.__getitem__)
        yield Finding(
            HARMS,
            "shift",
            f"{len(sizes)} of {_scenes(audit)} scenes are displaced between captures, by "
            f"{statistics.median(sizes.values()):.2f} pixels (median), the worst, {worst}, by {sizes[worst]:.2f}",
            "align the captures by whole pixels or leave these scenes out: the network learns to blur or to displace"
            + ("; the fixed pattern below may draw this number to zero" if _has_pattern(audit) else ""),
        )


def _brightness(audit: Audit) -> Iterator[Finding]:
    found = {
        pair.scene: pair
        for pair in audit.pairs
        if pair.difference > max(DIFFERENCE, SURE * pair.difference_error) and not pair.displaced
    }
    if found:
        worst = max(found.values(), key=lambda pair: pair.difference)
        yield Finding(
            HARMS,
            "gain, offset",
            f"{len(found)} of {_scenes(audit)} scenes differ in brightness between captures, the worst, {worst.scene}, "
            f"by {255 * worst.difference:.1f}/255 (gain {worst.gain:.3f}, offset {255 * worst.offset:+.1f}/255)",
            "the network learns the difference; capture with fixed exposure and light, or scale the captures alike",
        )


def _pattern(audit: Audit) -> Iterator[Finding]:
    if not audit.noise:
        return
    remedy = (
        "the network keeps what the captures share: subtract a dark frame or divide by a flat field, move the scene by "
        "some pixels between captures and align, or use other exposures"
    )
    if _has_pattern(audit):
        assert audit.fixed is not None
        yield Finding(
            HARMS if _paired(audit) else NOTE,
            "fixed pattern",
            f"{audit.fixed:.1%} of the variance of the noise is the same in different scenes, pixel by pixel",
            remedy if _paired(audit) else "the sensor's pattern, or a border or mark in all images; training keeps it",
        )
    elif audit.shared is not None and audit.shared > SHARED:
        variance = audit.shared / (1 - audit.shared) * (audit.noise.sigma / 255) ** 2
        unsettled = audit.fixed is None
        if variance > TEXTURE:
            yield Finding(
                HARMS if unsettled else NOTE,
                "shared noise",
                f"{audit.shared:.1%} of the variance of the noise is common to the captures of a scene",
                f"fine texture, or noise that repeats: {remedy}"
                if unsettled
                else "different in other scenes: most likely fine texture; if not, captures that depend on "
                "each other (averages of the same frames)",
            )


def _neighbours(audit: Audit) -> Iterator[Finding]:
    if not audit.autocorrelation:
        return
    middle = len(audit.autocorrelation[0]) // 2
    lags = {
        (down, right - middle): value
        for down, row in enumerate(audit.autocorrelation)
        for right, value in enumerate(row)
        if (down, right) > (0, middle)  # a correlation at a lag is that at the opposite one
    }
    (down, right), value = max(lags.items(), key=lambda lag: abs(lag[1]))
    if abs(value) > NEIGHBOURS:
        yield Finding(
            NOTE,
            "correlated noise",
            f"noise is correlated by {value:+.2f} at a distance of {down} down, {right} right (pixels)",
            "harmless for pairs of captures; adding white noise instead (pairs.name=synthetic) or sub-sampling "
            "neighbours does not fit: files that were demosaiced, resized or compressed, or that have stripes",
        )


def _noise(audit: Audit) -> Iterator[Finding]:
    noise = audit.noise
    if noise is None:
        return
    paired = _paired(audit)
    if paired and noise.sigma < 255 * NO_NOISE:
        yield Finding(
            HARMS, "no noise", f"captures differ by {noise.sigma:.2f}/255 only", "there is little to learn from them"
        )
    if not paired and noise.sigma > 255 * RESIDUAL:
        yield Finding(
            NOTE,
            "noisy images",
            f"single images with noise of {noise.sigma:.1f}/255 (fine texture included)",
            "the network learns to keep their noise; halve them in size, or give two captures a scene",
        )
    if paired and noise.deviation > LINE:
        yield Finding(
            NOTE,
            "noise model",
            f"the variance is off its line a * brightness + b by {noise.deviation:.0%}",
            "harmless for pairs of captures; gamma-encoded or processed files, for which a and b mean little",
        )
    elif paired and noise.a > 0 and -noise.b / noise.a > PEDESTAL and audit.clipped_low < CLIPPED:
        black, white = audit.ranges[-1]
        level = black - noise.b / noise.a * (white - black)
        yield Finding(
            NOTE,
            "black level",
            f"the noise would vanish at {-noise.b / noise.a:.3f} of the range, not below 0",
            f"the black level is likely {level:.4g} or more in the file's values: build again with --black",
        )


def _paired(audit: Audit) -> bool:
    return bool(audit.captures) and audit.captures[1] > 1


def _scenes(audit: Audit) -> int:
    return len({pair.scene for pair in audit.pairs})


def _has_pattern(audit: Audit) -> bool:
    return audit.fixed is not None and audit.fixed > max(SHARED, SURE * (audit.fixed_error or 0))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
