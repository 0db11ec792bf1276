"""Registration of two captures of a scene: displacement, gain and offset; numpy only.

Planes are float [P, H, W]: the channels of one image, each on its own.
"""

from __future__ import annotations

import numpy as np

STANDS_OUT = 5.0
"""A frequency counts for the shift if it is so many times as strong as the noise: its phase means something."""
LEAST = 8
"""Frequencies that a shift needs."""


def cross_power(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the cross-power spectrum of two captures, complex [H, W // 2 + 1], summed over planes [P, H, W].

    Their gradients are taken, which flattens the spectrum of a natural scene, and a Hann window, against the edges.
    """
    height, width = first.shape[1:]
    window = np.hanning(height)[:, None] * np.hanning(width)
    total = np.zeros((height, width // 2 + 1), complex)
    for axis in (1, 2):
        one, two = (np.fft.rfft2(np.gradient(planes, axis=axis) * window) for planes in (first, second))
        total += (one.conj() * two).sum(0)
    return total


def find_shift(spectrum: np.ndarray, width: int) -> tuple[np.ndarray, float]:
    """Measure by how many pixels the second capture is displaced from the first.

    The peak of phase correlation (Kuglin and Hines 1975) gives whole pixels; a plane through the phase of the lower
    frequencies gives the rest (Stone et al. 2001). The window stays where it is, and so does a pattern
    that both captures share: both draw the result to zero, by up to a tenth where a scene has no fine detail.

    Args:
        spectrum: sum of `cross_power` over all tiles of the scene, [H, W // 2 + 1].
        width: W.

    Returns:
        Displacement down and right in pixels, [2], and its standard error in pixels, infinite where the scene has too
        little contrast.

    """
    height = spectrum.shape[0]
    down, right = np.meshgrid(np.fft.fftfreq(height), np.fft.rfftfreq(width), indexing="ij")
    radius, response = np.hypot(down, right), np.sin(2 * np.pi * down) ** 2 + np.sin(2 * np.pi * right) ** 2
    power = np.abs(spectrum) / np.maximum(response, 1e-12)  # as if no gradient had been taken: white noise is flat
    ratio = power / np.maximum(np.median(power[(radius > 0.3) & (response > 0.1)]), 1e-12 * power.max() + 1e-300)
    used = (radius > 0) & (radius < 0.25) & (ratio > STANDS_OUT)
    surface = np.fft.irfft2(np.where(used, spectrum / np.maximum(np.abs(spectrum), 1e-300), 0), (height, width))
    peak = np.unravel_index(np.argmax(surface), surface.shape)
    shift = np.array([(p + n // 2) % n - n // 2 for p, n in zip(peak, surface.shape, strict=True)], float)
    used[1:, 0] &= down[1:, 0] > 0  # the other half of the first column mirrors it
    design = -2 * np.pi * np.stack([down[used], right[used]], axis=1)
    weights = np.minimum(ratio[used], 20 * STANDS_OUT)  # or the few lowest frequencies would decide alone
    normal = design.T @ (design * weights[:, None])
    if used.sum() < LEAST or np.linalg.cond(normal) > 1e6:
        return np.zeros(2), np.inf
    inverse = np.linalg.inv(normal)
    for _ in range(5):
        left = np.angle(spectrum[used] * np.exp(-1j * (design @ shift)))
        shift = shift + inverse @ (design.T @ (weights * left))
    spread = inverse @ (design.T @ (design * (weights * left)[:, None] ** 2)) @ inverse
    return shift, float(np.sqrt(2.25 * np.trace(spread) / 2))  # a Hann window makes one of 1.5 x 1.5 frequencies


def fit_gain(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Fit second = gain * first + offset by orthogonal regression (Deming 1943): both captures are noisy.

    Args:
        first: block means of one capture, [N].
        second: of the other, [N].

    Returns:
        Gain and offset; gain 1 where the blocks do not differ in brightness.

    """
    (xx, xy), (_, yy) = np.cov(first, second) if len(first) > 1 else np.zeros((2, 2))
    gain = (yy - xx + np.hypot(yy - xx, 2 * xy)) / (2 * xy) if xy > 0 else 1.0
    return float(gain), float(second.mean() - gain * first.mean())
