from pathlib import Path

import pytest
from faults import campaign


@pytest.mark.slow
def test_a_round_of_faults_ends_with_the_bits_of_a_run_that_was_left_alone(tmp_path: Path) -> None:
    (result,) = campaign(tmp_path, rounds=1, seed=0, faults=["kill-in-save"], launcher="fork")
    assert result.outcome == "bit-equal", result.what
