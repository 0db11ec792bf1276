"""What needs a run folder is tested with runs, in test_loop.py and tests/dist/test_stops.py."""

import math

import pytest

from n2n_dist.errors import Refusal
from n2n_dist.training.checkpoint_files import Progress
from n2n_dist.training.checks import check_damage, check_finite


def progress(bad_samples: int = 0) -> Progress:
    return Progress(7, 1000, None, 100, data="abc", identity={}, bad_samples=bad_samples)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(value: float) -> None:
    check_finite({"train/total": 1e30, "train/pixel": 0.0}, progress())
    with pytest.raises(Refusal, match=r"^step 7: train/pixel is not finite; the last checkpoint is good"):
        check_finite({"train/total": 1.0, "train/pixel": value}, progress())


def test_damage_past_the_tolerated_share_is_refused() -> None:
    check_damage(progress(bad_samples=0), 0.0)
    check_damage(progress(bad_samples=100), 0.1)
    with pytest.raises(Refusal, match=r"^data.max_bad 0.1: 101 of 1000 samples cannot be read"):
        check_damage(progress(bad_samples=101), 0.1)
