import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

from n2n_dist.measure.clipping import EXTREMES, PILE_UP, Extremes


@hypothesis.given(arrays.arrays(np.float32, (3, 40), elements=strategies.integers(-6, 6)))
def test_extremes_count_as_if_all_values_were_kept(values: np.ndarray) -> None:
    extremes = Extremes()
    for part in values:
        extremes.add(part.reshape(5, 8))
    found, counts = np.unique(values, return_counts=True)
    assert extremes.range == (found[0], found[-1])
    near = EXTREMES
    for fraction, ends in zip(extremes.clipped(), (counts[:near], counts[::-1][:near]), strict=True):
        piled = len(ends) > 1 and ends[0] > PILE_UP * ends[1:].mean()
        assert fraction == (ends[0] / values.size if piled else 0)


@pytest.mark.parametrize("quantised", [True, False])
def test_clipped_ends_are_told_from_thin_tails(quantised: bool) -> None:
    values = np.random.default_rng(0).normal(100, 30, 200_000)
    values = np.rint(values) if quantised else values
    extremes = Extremes()
    extremes.add(values)
    assert extremes.clipped() == (0, 0)
    extremes = Extremes()
    extremes.add(values.clip(40, 190))
    low, high = extremes.clipped()
    assert low == pytest.approx(np.mean(values <= 40))
    assert high == pytest.approx(np.mean(values >= 190))
