import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from support.images import shifted, smooth_scene

from n2n_dist.measure.registration import cross_power, find_shift, fit_gain

SIZE = 160
MARGIN = 16
SCENE = smooth_scene((SIZE + 2 * MARGIN, SIZE + 2 * MARGIN))


def captures(down: float, right: float, sigma: float, pattern: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two captures [1, SIZE, SIZE], the second displaced; noise and a pattern that both share in 1/255."""
    rng = np.random.default_rng(3)
    fixed = rng.normal(0, pattern / 255, (SIZE, SIZE))
    pair = [shifted(SCENE, *by)[MARGIN:-MARGIN, MARGIN:-MARGIN] + fixed for by in ((0, 0), (down, right))]
    first, second = (plane + rng.normal(0, sigma / 255, plane.shape) for plane in pair)
    return first[None], second[None]


@hypothesis.given(strategies.floats(-6, 6), strategies.floats(-6, 6))
@hypothesis.settings(max_examples=20)
def test_shift_is_found_to_a_part_of_a_pixel(down: float, right: float) -> None:
    shift, error = find_shift(cross_power(*captures(down, right, sigma=5)), SIZE)
    assert error < 0.4
    assert np.hypot(*(shift - (down, right))) < 0.1 + 0.12 * np.hypot(down, right)


@pytest.mark.parametrize(("sigma", "tolerance"), [(0, 0.02), (2, 0.03), (25, 0.3)])
def test_small_shift_in_more_and_more_noise(sigma: float, tolerance: float) -> None:
    shift, error = find_shift(cross_power(*captures(0.4, -0.3, sigma)), SIZE)
    np.testing.assert_allclose(shift, (0.4, -0.3), atol=tolerance)
    assert np.abs(shift - (0.4, -0.3)).max() < max(5 * error, 0.02)


def test_tiles_of_a_scene_add_up() -> None:
    planes = captures(0.4, -0.3, 40)
    half = SIZE // 2
    parts = [np.s_[:, a : a + half, b : b + half] for a in (0, half) for b in (0, half)]
    spectra = [cross_power(planes[0][part], planes[1][part]) for part in parts]
    shift, error = find_shift(np.sum(spectra, axis=0), half)
    assert error < 0.4
    np.testing.assert_allclose(shift, (0.4, -0.3), atol=4 * error)


def test_weak_shared_pattern_does_not_hide_a_shift() -> None:
    shift, _ = find_shift(cross_power(*captures(2.3, -1.4, sigma=5, pattern=3)), SIZE)
    np.testing.assert_allclose(shift, (2.3, -1.4), atol=0.2)


def test_scenes_that_cannot_tell_are_said_to_be_so() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 1, 64, 64))
    for first, second in (noise, np.zeros((2, 1, 64, 64))):
        _, error = find_shift(cross_power(first, second), 64)
        assert error > 0.5


@hypothesis.given(strategies.floats(0.5, 2), strategies.floats(-0.2, 0.2))
def test_gain_and_offset_without_noise_are_exact(gain: float, offset: float) -> None:
    first = np.linspace(0, 1, 50)
    np.testing.assert_allclose(fit_gain(first, gain * first + offset), (gain, offset), atol=1e-9)


def test_noise_in_the_first_capture_does_not_lower_the_gain() -> None:
    rng = np.random.default_rng(0)
    scene, noise = rng.uniform(0.3, 0.7, 20000), rng.normal(0, 0.05, (2, 20000))
    first, second = scene + noise[0], 1.03 * scene + 0.01 + noise[1]
    gain, offset = fit_gain(first, second)
    assert gain == pytest.approx(1.03, abs=0.012)
    assert offset == pytest.approx(0.01, abs=0.006)
    assert np.polyfit(first, second, 1)[0] < 0.9  # ordinary regression does


def test_blocks_of_one_brightness_have_gain_one() -> None:
    assert fit_gain(np.full(9, 0.5), np.full(9, 0.52)) == pytest.approx((1, 0.02))
