"""Estimators of the noise of captures and of the part that they share; numpy only.

Values are in units of the range: black 0, white 1. Planes are float [P, H, W]: the channels of one image, each on its
own. A block is a square of `BLOCK` pixels; statistics of blocks are flat arrays [N]. Noise is measured where the scene
is smooth, and smoothness is judged on a coarser scale than the noise, so that the choice does not select the noise.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

BLOCK = 16
"""Height and width of a block in pixels: small against the scene, 256 pixels against the spread of a variance."""
COARSE = 4
"""Width in pixels of the squares whose means are compared: a block is smooth if they are alike."""
LAGS = 2
"""Largest distance in pixels at which the noise is correlated with itself."""
WINDOW = 5
"""Width of the local mean that a high-pass subtracts, in pixels."""
WHITE_SHARE = 1 - 1 / WINDOW**2
"""Fraction of the variance of white noise that passes the high-pass."""
BINS = 20
"""Bins of brightness, each of as many blocks."""
LEAST = 8
"""Smooth blocks that a bin needs."""
SMOOTH_SHARE = 0.25
"""The smoothest share of the blocks of a bin of brightness is measured."""
SMOOTHEST_SHARE = 0.05
"""The same where texture looks like noise."""
SURE = 5.0
"""Standard errors by which a measurement must be above 0 to be believed."""


@dataclass
class NoiseLine:
    """Variance of the noise = a * brightness + b: shot noise and read noise (Foi et al. 2008, equation 3)."""

    a: float
    """Variance gained from black to white; 1 / a is the number of photons at white."""
    b: float
    """Variance at black."""
    deviation: float
    """Root mean square distance of the measured variances from the line, relative to it."""

    def sigma(self, brightness: np.ndarray | float) -> np.ndarray:
        """Return the standard deviation of the noise at a brightness, 0 where the line is negative."""
        return np.sqrt(np.maximum(self.a * np.asarray(brightness) + self.b, 0))


@dataclass
class Blocks:
    """Statistics of N blocks; of single images, `means[:, 1]`, `shared` and `autocovariance` are NaN."""

    means: np.ndarray
    """Mean of the block in either capture, [N, 2]."""
    roughness: np.ndarray
    """Variance of the block's coarse means: the scene's contrast, [N]."""
    clipped: np.ndarray
    """Share of the block's pixels that are clipped, [N]."""
    variance: np.ndarray
    """Variance of the noise of one capture, without the part that captures share, [N]."""
    shared: np.ndarray
    """Covariance of the two high-passed captures: noise that they share, and texture, [N]."""
    autocovariance: np.ndarray
    """Of the noise at lags 0..LAGS down and -LAGS..LAGS right, [N, LAGS + 1, 2 * LAGS + 1]."""

    @property
    def brightness(self) -> np.ndarray:
        """Mean of the captures, [N]."""
        return np.nanmean(self.means, axis=1)

    def __getitem__(self, chosen: np.ndarray) -> Blocks:
        """Return some of the blocks."""
        return Blocks(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def __len__(self) -> int:
        """Return N."""
        return len(self.means)

    @classmethod
    def join(cls, parts: list[Blocks]) -> Blocks:
        """Return the blocks of all parts."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def pair_blocks(first: np.ndarray, second: np.ndarray, clipped: np.ndarray) -> Blocks:
    """Measure the blocks of two captures: in their difference the scene cancels.

    Args:
        first: planes [P, H, W].
        second: the other capture, of the same shape.
        clipped: which pixels are clipped in either, bool [P, H, W].

    """
    difference = split(first - second) / np.sqrt(2)  # half the variance of the difference is that of one capture
    noise = difference - difference.mean((1, 2), keepdims=True)
    covariances = np.empty((len(noise), LAGS + 1, 2 * LAGS + 1))
    for down in range(LAGS + 1):
        for right in range(-LAGS, LAGS + 1):
            here = noise[:, : BLOCK - down, max(0, -right) : BLOCK - max(0, right)]
            there = noise[:, down:, max(0, right) : BLOCK + min(0, right)]
            covariances[:, down, right + LAGS] = (here * there).mean((1, 2))
    # the subtracted mean takes the variance of a mean from every product
    covariances += covariances[:, :1, LAGS : LAGS + 1] / (BLOCK**2 - 1)
    return Blocks(
        means=np.stack([split(first).mean((1, 2)), split(second).mean((1, 2))], axis=1),
        roughness=_roughness((first + second) / 2),
        clipped=split(clipped).mean((1, 2)),
        variance=covariances[:, 0, LAGS],
        shared=split(high_pass(first) * high_pass(second)).mean((1, 2)) / WHITE_SHARE,
        autocovariance=covariances,
    )


def single_blocks(image: np.ndarray, clipped: np.ndarray) -> Blocks:
    """Measure the blocks of one image: the variance of its diagonal Haar band (Donoho and Johnstone 1994).

    In that band a smooth scene vanishes and white noise keeps its variance; noise that is correlated from pixel to
    pixel (demosaiced, compressed) is underestimated. The median over blocks that `noise_curve` takes is robust against
    texture, as theirs over coefficients is, and is not bound to the steps of 8-bit values.

    Args:
        image: planes [P, H, W].
        clipped: which pixels are clipped, bool [P, H, W].

    """
    pixels = split(image)
    diagonal = (pixels[:, ::2, ::2] - pixels[:, ::2, 1::2] - pixels[:, 1::2, ::2] + pixels[:, 1::2, 1::2]) / 2
    none = np.full(len(pixels), np.nan)
    return Blocks(
        means=np.stack([pixels.mean((1, 2)), none], axis=1),
        roughness=_roughness(image),
        clipped=split(clipped).mean((1, 2)),
        variance=(diagonal**2).mean((1, 2)),
        shared=none,
        autocovariance=np.full((len(pixels), LAGS + 1, 2 * LAGS + 1), np.nan),
    )


def smooth(blocks: Blocks, share: float = SMOOTH_SHARE) -> list[Blocks]:
    """Return bins of rising brightness, each the smoothest `share` of a twentieth of the blocks; none is too small."""
    order = np.argsort(blocks.brightness, kind="stable")
    bins = min(BINS, int(len(blocks) * share) // LEAST)
    chosen = []
    for members in np.array_split(order, bins) if bins else []:
        count = max(LEAST, int(len(members) * share))
        chosen.append(blocks[members[np.argsort(blocks.roughness[members], kind="stable")[:count]]])
    return chosen


def noise_curve(blocks: Blocks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return brightness, variance of the noise and number of blocks, each [bins], as `fit_noise_line` takes them.

    Both are medians over the smooth blocks of a bin: a moving object or an edge is outvoted. The median of a variance
    from n values is below its mean by 2 / (3 n), which is less than one per cent here.
    """
    bins = smooth(blocks)
    brightness = np.array([np.median(part.brightness) for part in bins])
    variance = np.array([np.median(part.variance) for part in bins])
    return brightness, variance, np.array([len(part) for part in bins])


def shared_variance(blocks: Blocks) -> float:
    """Return the variance of the part that both captures share where the scene is smoothest: pattern noise and texture.

    NaN with too few blocks.
    """
    return float(np.mean([np.median(part.shared) for part in smooth(blocks, SMOOTHEST_SHARE)] or [np.nan]))


def autocorrelation(blocks: Blocks) -> np.ndarray:
    """Return the correlation of the noise with itself at lags 0..LAGS down and -LAGS..LAGS right; 0 if there is none.

    Shape [LAGS + 1, 2 * LAGS + 1]; the value at lag (0, 0), in the middle of the first row, is 1.
    """
    covariance = np.mean([part.autocovariance.mean(0) for part in smooth(blocks)], axis=0)
    variance = covariance[0, LAGS]
    return covariance / variance if variance > 0 else np.zeros_like(covariance)


def fit_noise_line(brightness: np.ndarray, variance: np.ndarray, count: np.ndarray) -> NoiseLine:
    """Fit variance = a * brightness + b, the Poisson-Gaussian model of a sensor (Foi et al. 2008).

    The spread of a measured variance is proportional to the variance, so each is weighted by count / variance^2, with
    the variance of the line, not the measured one: that would favour those that came out low.

    Args:
        brightness: mean of each bin [N], black 0 and white 1.
        variance: of the noise in each bin [N], in the same units squared.
        count: blocks that were averaged in each bin [N].

    Returns:
        The line; with fewer than two different brightnesses its slope is 0.

    """
    level = np.average(variance, weights=count)
    line = np.array([0.0, level])
    if np.ptp(brightness) > 0 and level > 0:
        design = np.stack([brightness, np.ones_like(brightness)], axis=1)
        for _ in range(5):
            predicted = np.maximum(design @ line, 0.05 * level)
            weights = np.sqrt(count) / predicted
            line = np.linalg.lstsq(design * weights[:, None], variance * weights, rcond=None)[0]
    predicted = line[0] * brightness + line[1]
    relative = (variance - predicted) / np.maximum(predicted, max(0.05 * level, 1e-300))
    deviation = np.sqrt(np.average(relative**2, weights=count))
    return NoiseLine(float(line[0]), float(line[1]), float(deviation))


class FixedPattern:
    """Covariance of the noise of different scenes at the same pixel of the sensor.

    A pattern of the sensor is in all of them, while their content is independent: texture adds spread, no bias.
    """

    def __init__(self) -> None:
        """Start without a scene."""
        self._sums: dict[tuple[object, ...], tuple[np.ndarray, np.ndarray]] = {}
        self._own, self._blocks = 0.0, 0

    def add(self, origin: tuple[int, int], image: np.ndarray) -> None:
        """Add a tile of a scene, planes [P, H, W], whose first pixel is at `origin` (top, left)."""
        roughness = _roughness(image)
        chosen = roughness <= np.median(roughness)
        residual = split(high_pass(image)) * chosen[:, None, None]
        total, count = self._sums.get((*origin, *image.shape), (np.zeros_like(residual), np.zeros(len(chosen), int)))
        self._sums[(*origin, *image.shape)] = total + residual, count + chosen
        self._own += float((residual**2).sum())
        self._blocks += int(chosen.sum())

    def variance(self) -> tuple[float, float]:
        """Return the variance of the pattern and its standard error; NaN and infinite without two scenes alike."""
        totals = list(self._sums.values())
        products = sum(int((count**2).sum()) for _, count in totals) - self._blocks
        if not products:
            return np.nan, np.inf
        covariance = (sum(float((total**2).sum()) for total, _ in totals) - self._own) / (products * BLOCK**2)
        spread = self._own / (self._blocks * BLOCK**2) / np.sqrt(products / 2 * BLOCK**2)
        return covariance / WHITE_SHARE, spread / WHITE_SHARE


def high_pass(planes: np.ndarray) -> np.ndarray:
    """Subtract the mean of 5 x 5 pixels from planes [P, H, W]; edges are mirrored."""
    local = planes
    for axis in (1, 2):
        margin = [(0, 0), (0, 0), (0, 0)]
        margin[axis] = (WINDOW // 2, WINDOW // 2)
        padded, size = np.pad(local, margin, mode="reflect"), planes.shape[axis]
        local = np.add.reduce([padded.take(range(k, k + size), axis) for k in range(WINDOW)]) / WINDOW
    return planes - local


def split(planes: np.ndarray) -> np.ndarray:
    """Cut planes [P, H, W] into blocks [N, BLOCK, BLOCK]; rows and columns that do not fill a block are left out."""
    count, height, width = planes.shape
    rows, columns = height // BLOCK, width // BLOCK
    cut = planes[:, : rows * BLOCK, : columns * BLOCK].reshape(count, rows, BLOCK, columns, BLOCK)
    return cut.swapaxes(2, 3).reshape(-1, BLOCK, BLOCK)


def _roughness(planes: np.ndarray) -> np.ndarray:
    parts = BLOCK // COARSE
    return split(planes).reshape(-1, parts, COARSE, parts, COARSE).mean((2, 4)).var((1, 2))
