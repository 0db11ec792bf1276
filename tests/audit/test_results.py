import pytest
from support.audits import pair


@pytest.mark.parametrize(
    ("shift", "error", "beyond", "displaced"),
    [
        ([0.3, 0.4], 0.01, True, False),
        ([0.3, 0.4], 0.4, False, False),  # as large as its error
        ([0.3, 0.4], None, False, False),  # too little contrast to tell
        ([0.0, -2.0], 0.01, True, True),
        ([0.05, 0.0], 0.001, False, False),
    ],
)
def test_a_shift_counts_if_it_is_large_and_certain(
    shift: list[float], error: float | None, beyond: bool, displaced: bool
) -> None:
    found = pair(shift=shift, shift_error=error)
    assert (found.is_beyond(0.1), found.displaced) == (beyond, displaced)
