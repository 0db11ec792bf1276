"""Orders of samples for property tests."""

import numpy as np
from hypothesis import strategies as st

from n2n_dist.data.order import Order


def divisors(number: int) -> list[int]:
    return [c for c in range(1, number + 1) if number % c == 0]


@st.composite
def orders(draw: st.DrawFn) -> Order:
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    batch = draw(st.integers(1, min(sum(sizes), 48)))
    streams = draw(st.sampled_from([None, *divisors(batch)]))
    return Order(np.array(sizes), draw(st.integers(0, 2**32)), batch, streams)
