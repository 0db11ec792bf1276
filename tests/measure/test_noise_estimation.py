import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from support.images import smooth_scene

from n2n_dist.measure.noise_estimation import (
    BLOCK,
    Blocks,
    FixedPattern,
    autocorrelation,
    fit_noise_line,
    noise_curve,
    pair_blocks,
    shared_variance,
    single_blocks,
    smooth,
    split,
)

SCENE = smooth_scene((512, 512))
UNCLIPPED = np.zeros((1, 512, 512), bool)


def capture(seed: int, a: float, b: float, scene: np.ndarray = SCENE) -> np.ndarray:
    """A scene with noise of variance a * x + b, planes [1, H, W]."""
    return (scene + np.sqrt(a * scene + b) * np.random.default_rng(seed).normal(size=scene.shape))[None]


LEVELS = [(0, (2 / 255) ** 2), (0, (25 / 255) ** 2), (0, (75 / 255) ** 2), (0.01, 1e-4), (0.03, 0)]


@pytest.mark.parametrize(("a", "b"), LEVELS)
@pytest.mark.parametrize("paired", [True, False])
def test_noise_line_is_recovered(a: float, b: float, paired: bool) -> None:
    first = capture(1, a, b)
    blocks = pair_blocks(first, capture(2, a, b), UNCLIPPED) if paired else single_blocks(first, UNCLIPPED)
    line = fit_noise_line(*noise_curve(blocks))
    tolerance = 0.04 if paired else 0.08  # of a quarter of a megapixel; the diagonal band has a quarter of the values
    for brightness in (0.2, 0.5, 0.8):
        assert line.sigma(brightness) == pytest.approx(np.sqrt(a * brightness + b), rel=tolerance)
    assert line.deviation < 0.1


def test_noise_of_a_photograph_is_recovered_from_one_image() -> None:
    data = pytest.importorskip("skimage.data")
    clean = data.astronaut()[..., 1].reshape(256, 2, 256, 2).mean((1, 3)) / 255  # halved: its own noise averages out
    clipped = ((clean < 0.01) | (clean > 0.99))[None]
    for sigma in (10, 25, 50):
        noisy = capture(0, 0, (sigma / 255) ** 2, clean)
        blocks = single_blocks(noisy, clipped)
        _, variance, _ = noise_curve(blocks[blocks.clipped == 0])
        assert 255 * np.sqrt(variance.mean()) == pytest.approx(sigma, rel=0.1)


def test_what_differs_between_scenes_but_not_captures_is_no_noise() -> None:
    texture = np.random.default_rng(0).normal(0, 0.1, SCENE.shape)
    pair = (capture(seed, 0, 1e-4, SCENE + texture) for seed in (1, 2))
    _, variance, _ = noise_curve(pair_blocks(*pair, UNCLIPPED))
    assert np.sqrt(variance.mean()) == pytest.approx(0.01, rel=0.02)


@hypothesis.given(strategies.floats(1e-4, 0.1), strategies.floats(1e-6, 0.1))
def test_line_through_exact_variances_is_that_line(a: float, b: float) -> None:
    brightness = np.linspace(0, 1, 20)
    line = fit_noise_line(brightness, a * brightness + b, np.full(20, 9))
    np.testing.assert_allclose((line.a, line.b), (a, b), rtol=1e-6)
    assert line.deviation < 1e-6
    np.testing.assert_allclose(line.sigma(brightness), np.sqrt(a * brightness + b))


def test_one_brightness_has_no_slope_and_a_negative_variance_no_sigma() -> None:
    line = fit_noise_line(np.array([0.5]), np.array([0.01]), np.array([8]))
    assert (line.a, line.b) == pytest.approx((0, 0.01))
    assert fit_noise_line(np.array([0.2, 0.4]), np.array([0.001, 0.003]), np.array([8, 8])).sigma(0.0) == 0


def test_line_weighs_bins_by_their_blocks_and_variances() -> None:
    brightness = np.array([0.0, 0.5, 1.0])
    variance = np.array([0.1, 0.6, 5.0])  # the last lies off the line 1 x + 0.1
    line = fit_noise_line(brightness, variance, np.array([1000, 1000, 1]))
    assert (line.a, line.b) == pytest.approx((1, 0.1), abs=0.02)


def test_smooth_blocks_are_chosen_without_choosing_the_noise() -> None:
    pair = capture(1, 0, 0.01), capture(2, 0, 0.01)
    blocks = pair_blocks(*pair, UNCLIPPED)
    chosen = Blocks.join(smooth(blocks))
    assert len(chosen) == pytest.approx(len(blocks) / 4, rel=0.1)
    assert chosen.roughness.mean() < blocks.roughness.mean() / 3
    assert chosen.variance.mean() == pytest.approx(blocks.variance.mean(), rel=0.02)
    assert smooth(blocks[:30]) == []


@pytest.mark.parametrize("share", [0, 0.1, 0.5])
def test_noise_that_captures_share_is_found_in_a_scene_and_between_scenes(share: float) -> None:
    total, rng = (10 / 255) ** 2, np.random.default_rng(0)
    fixed = rng.normal(0, np.sqrt(share * total), SCENE.shape)
    pattern, parts = FixedPattern(), []
    for seed in range(4):
        scene = smooth_scene(SCENE.shape, seed) + fixed
        first, second = (capture(10 * seed + n, 0, (1 - share) * total, scene) for n in (1, 2))
        parts.append(pair_blocks(first, second, UNCLIPPED))
        pattern.add((0, 0), (first + second) / 2)
    assert shared_variance(Blocks.join(parts)) / total == pytest.approx(share, abs=0.03)
    variance, error = pattern.variance()
    assert variance / total == pytest.approx(share, abs=0.02)
    assert error / total < 0.01


def test_pattern_needs_two_scenes_at_the_same_place() -> None:
    pattern = FixedPattern()
    for origin, shape in (((0, 0), (1, 64, 64)), ((0, 64), (1, 64, 64)), ((0, 0), (3, 64, 64))):
        pattern.add(origin, np.random.default_rng(0).normal(size=shape))
    variance, error = pattern.variance()
    assert np.isnan(variance)
    assert np.isinf(error)


def test_correlation_with_neighbours_is_that_of_the_filter() -> None:
    rng = np.random.default_rng(0)

    def noise() -> np.ndarray:  # each pixel is the sum of its own value and half of that to its left
        values = rng.normal(size=(1, 512, 513))
        return 0.02 * (values[..., 1:] + 0.5 * values[..., :-1])

    correlation = autocorrelation(pair_blocks(SCENE + noise(), SCENE + noise(), UNCLIPPED))
    expected = np.zeros((3, 5))
    expected[0] = 0, 0.4, 1, 0.4, 0
    np.testing.assert_allclose(correlation, expected, atol=0.02)


def test_equal_captures_have_no_correlation() -> None:
    assert not autocorrelation(pair_blocks(SCENE[None], SCENE[None], UNCLIPPED)).any()


@hypothesis.given(strategies.integers(16, 70), strategies.integers(16, 70))
def test_blocks_are_squares_of_the_planes(height: int, width: int) -> None:
    planes = np.arange(2 * height * width).reshape(2, height, width)
    blocks = split(planes)
    assert blocks.shape == (2 * (height // BLOCK) * (width // BLOCK), BLOCK, BLOCK)
    np.testing.assert_array_equal(blocks[0], planes[0, :BLOCK, :BLOCK])
    right, bottom = width // BLOCK * BLOCK, height // BLOCK * BLOCK
    np.testing.assert_array_equal(blocks[-1], planes[1, bottom - BLOCK : bottom, right - BLOCK : right])
