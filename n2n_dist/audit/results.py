"""Measurements of an audit of shards: the content of `audit.json`.

Values are in units of the range, black 0 and white 1, unless a field names another unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from n2n_dist.measure import noise_estimation

HARMS = "harms"
NOTE = "note"


@dataclass
class Noise:
    """Noise of one capture, or of one image."""

    sigma: float
    """Standard deviation averaged over the data set, in 1/255 of the range (the unit of `noise.sigma`)."""
    a: float
    """Slope of variance = a * brightness + b."""
    b: float
    """Variance at black."""
    deviation: float
    """Relative distance of the measured variances from that line."""
    brightness: list[float]
    """Of the bins that were measured, from dark to bright."""
    variance: list[float]
    """In these bins."""


@dataclass
class Pair:
    """Differences between two captures of a scene; gain and offset map the first to the second."""

    scene: str
    first: int
    """Number of the capture."""
    second: int
    """Number of the other capture."""
    shift: list[float]
    """By how many pixels the second is displaced down and right."""
    shift_error: float | None
    """Standard error in pixels; None: the scene has too little contrast."""
    gain: float
    offset: float
    difference: float
    """Root mean square difference of brightness between the two that gain and offset explain."""
    difference_error: float
    """Its standard error."""

    def is_beyond(self, pixels: float) -> bool:
        """Tell whether the shift is above so many pixels, and surely above 0."""
        size = math.hypot(*self.shift)
        return self.shift_error is not None and size > max(pixels, noise_estimation.SURE * self.shift_error)

    @property
    def displaced(self) -> bool:
        """Whether blocks of the two captures hold different parts of the scene, so that noise cannot be measured."""
        return self.is_beyond(1)


@dataclass
class Finding:
    """One thing that a user should know about a data set."""

    severity: str
    """`harms`: training on it gives a worse network; `note`: good to know."""
    subject: str
    what: str
    """Measured value, in words."""
    remedy: str


@dataclass
class Audit:
    """The report on one data set; only `tars`, `differing` and the counts are of all of it."""

    name: str
    tars: int
    differing: list[str]
    """Tars whose bytes are not those that were indexed; their samples are not counted or measured."""
    samples: int = 0
    scenes: int = 0
    captures: list[int] = field(default_factory=list)
    """Smallest and largest number of captures of a sample."""
    channels: list[int] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    ranges: list[list[float]] = field(default_factory=list)
    """Black and white level of the samples in the file's values; all that occur."""
    measured: int = 0
    """Samples whose pixels were measured."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Keys of samples that are damaged or hold NaN or infinite pixels, which were not measured, and why."""
    lowest: float = 0.0
    highest: float = 0.0
    clipped_low: float = 0.0
    """Share of all pixels that pile up at their channel's lowest value."""
    clipped_high: float = 0.0
    noise: Noise | None = None
    """None: there were too few blocks."""
    identical: list[str] = field(default_factory=list)
    """Scenes with two captures that are the same in every pixel."""
    pairs: list[Pair] = field(default_factory=list)
    gain: float | None = None
    """Of the second captures over the first, like `offset` the median over all pairs."""
    offset: float | None = None
    fixed: float | None = None
    """Fraction of the noise's variance that is the same, pixel by pixel, in other scenes."""
    fixed_error: float | None = None
    """Its standard error."""
    shared: float | None = None
    """Share of the noise's variance that two captures of a scene have in common, fine texture included."""
    autocorrelation: list[list[float]] = field(default_factory=list)
    """Of the noise with itself, at 0..2 pixels down and -2..2 right."""
    histogram: list[int] = field(default_factory=list)
    """Pixels in equal bins from `lowest` to `highest`."""
    findings: list[Finding] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list, repr=False)
    """The captures of one tile, float32 [H, W, C]; not part of `audit.json`."""
