import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from n2n_dist.noise.text import draw_strings


@settings(max_examples=30)
@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    coverage=st.floats(0, 0.9),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_size_is_covered(channels: int, height: int, width: int, coverage: float, seed: int) -> None:
    covered, colours = draw_strings(channels, height, width, coverage, seed)
    assert covered.shape == (1, height, width)
    assert colours.shape == (channels, height, width)
    assert (covered.dtype, colours.dtype) == (bool, np.float32)
    assert covered.mean() >= coverage
    assert colours.min() >= 0
    assert colours.max() < 1
    assert not colours[:, ~covered[0]].any()


def test_strings_are_those_of_the_seed() -> None:
    first, again, other = (draw_strings(3, 64, 96, 0.3, seed) for seed in (5, 5, 6))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other[0])


def test_strings_lie_over_each_other_everywhere_in_sizes_and_colours_of_their_own() -> None:
    covered = np.mean([draw_strings(1, 64, 96, 0.3, seed)[0][0] for seed in range(200)], axis=0)
    assert covered.min() > 0.1
    assert covered.max() < 0.6
    _, colours = draw_strings(3, 64, 96, 0.5, 0)
    strings, sizes = np.unique(colours.reshape(3, -1), axis=1, return_counts=True)
    assert strings.shape[1] > 5
    assert sizes.max() > 4 * sizes.min()


@pytest.mark.parametrize("coverage", [0.0, 0.9])
def test_the_ends_of_the_coverage(coverage: float) -> None:
    covered, _ = draw_strings(1, 128, 128, coverage, 1)
    assert coverage <= covered.mean() < coverage + 0.1
