import pytest

from n2n_dist.distributed import stragglers
from n2n_dist.distributed.stragglers import Stragglers


def test_a_rank_that_stays_behind_is_named_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(stragglers.time, "monotonic", lambda: now)
    found = Stragglers(["a", "b", "c"])
    said = []
    for _ in range(130):
        now += 6
        said += [(now, text) for text in found.add([1.0, 1.0, 1.6] if now > 6 else [9.0, 1.0, 1.0])]
    assert [at for at, _ in said] == [18, 618]  # what came with the first point, in which networks compile, is left out
    assert all(text.startswith("rank 2 on c is slow, ") and "1.6 times" in text for _, text in said)


def test_single_slow_steps_are_no_reason_for_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(stragglers.time, "monotonic", lambda: now)
    found = Stragglers(["a", "b"])
    for step in range(100):
        now += 1
        assert not found.add([1.0, 4.0] if step % 10 == 0 else [1.0, 1.1])
