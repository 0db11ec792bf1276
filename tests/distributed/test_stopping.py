import pytest

from n2n_dist import signals
from n2n_dist.distributed.backend import Backend
from n2n_dist.distributed.stopping import ASK_EVERY, ASK_SECONDS, StopAgreement
from n2n_dist.errors import UserError


def test_ranks_ask_each_other_after_the_first_step_then_as_often_as_steps_are_slow(backend: Backend) -> None:
    stop = StopAgreement(backend)
    stop.ask(0)
    assert stop.is_due(1)
    stop.ask(1, seconds_per_step=lambda: ASK_SECONDS / 5)  # known to the others with the next question
    assert stop.is_due(2)
    stop.ask(2, seconds_per_step=lambda: 1e-6)
    assert [step for step in range(2, 9) if stop.is_due(step)] == [7, 8]
    stop.ask(7)
    assert not stop.is_due(6 + ASK_EVERY)
    assert stop.is_due(7 + ASK_EVERY)
    assert not stop.requested


def test_a_signal_is_a_request_and_the_first_one_is_named(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopAgreement(backend)
    monkeypatch.setattr(signals, "received", lambda: ("SIGTERM", 1.5))
    stop.ask(3)
    assert stop.requested
    assert stop.first_signal() == ("SIGTERM", 1.5)


def test_an_error_of_a_rank_is_raised(backend: Backend) -> None:
    with pytest.raises(UserError, match="the source is unavailable"):
        StopAgreement(backend).ask(0, error=UserError("the source is unavailable"))
