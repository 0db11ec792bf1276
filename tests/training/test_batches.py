import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from n2n_dist.data.batch import Batch
from n2n_dist.errors import UserError
from n2n_dist.shards.cache import SourceUnavailableError
from n2n_dist.training.batches import Batches


def loaded(*bad: list[UserError]) -> Iterator[Batch]:
    for messages in bad:
        time.sleep(0.02)
        yield Batch(np.arange(1), np.arange(1), torch.zeros(1, 1, 1, 4, 4), np.zeros(1), np.ones(1), messages)


def test_what_a_step_read_is_counted_once(capsys: pytest.CaptureFixture[str]) -> None:
    batches = Batches(loaded([], [UserError("a.tar: damaged")], []), torch.device("cpu"))
    next(batches), next(batches)
    reading = batches.since_last_step()
    assert 0.04 <= reading.waited < 1
    assert [str(message) for message in reading.replaced] == ["a.tar: damaged"]
    assert capsys.readouterr().out == "replaced an unreadable sample: a.tar: damaged\n"
    next(batches)
    assert batches.since_last_step().replaced == []
    assert batches.source_error is None


def test_a_lost_source_is_kept_and_samples_after_it_are_not_named(capsys: pytest.CaptureFixture[str]) -> None:
    lost = SourceUnavailableError("http://nowhere: cannot be fetched")
    batches = Batches(loaded([lost], [SourceUnavailableError("later")]), torch.device("cpu"))
    next(batches), next(batches)
    assert batches.source_error is lost
    assert capsys.readouterr().out == ""


def test_the_timer_of_a_step_is_its_own() -> None:
    batches = Batches(loaded([]), torch.device("cpu"))
    with batches.timer:
        time.sleep(0.02)
    assert batches.since_last_step().own_seconds() >= 0.02
    assert batches.since_last_step().own_seconds() == 0
