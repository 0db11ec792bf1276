import math

import pytest
import torch

from n2n_dist.devices import DeviceTimer
from n2n_dist.distributed.backend import Backend
from n2n_dist.errors import UserError
from n2n_dist.training.batches import Reading
from n2n_dist.training.step_log import StepLog


def reading(backend: Backend, waited: float = 0.0, replaced: int = 0) -> Reading:
    return Reading(DeviceTimer(backend.device), waited, [UserError("damaged")] * replaced)


def test_a_point_holds_means_the_largest_norm_and_counts(backend: Backend) -> None:
    log = StepLog(backend, batches_per_epoch=30)
    for loss, norm, waited, replaced in ((1.0, 5.0, 0.5, 0), (2.0, 7.0, 0.25, 3), (6.0, 6.0, 0.0, 0)):
        losses = {"pixel": torch.tensor(loss), "total": torch.tensor(10 * loss)}
        log.add(losses, torch.tensor(norm), reading(backend, waited, replaced))
    point = log.reduce(learning_rate=0.1, minutes_since_save=4.0)
    assert (point.curves["train/pixel"], point.curves["train/total"]) == (3.0, 30.0)
    assert (point.curves["train/gradient_norm"], point.curves["train/learning_rate"]) == (7.0, 0.1)
    assert (point.bad_samples, point.minutes_since_save, point.own_seconds) == (3, 4.0, [0.0])
    seconds = 3 * backend.plan.batch / point.curves["speed/images_per_second"]
    assert point.curves["speed/waiting_for_data"] == pytest.approx(0.75 / seconds)
    assert point.curves["speed/minutes_per_epoch"] == pytest.approx(seconds / 3 * 30 / 60)
    assert log.first_nonfinite() == (3, 3)
    assert log.seconds_per_step() >= seconds / 3
    log.restart()
    log.add({"total": torch.tensor(4.0)}, torch.tensor(1.0), reading(backend))
    again = log.reduce(learning_rate=0.1, minutes_since_save=0.0)
    assert (again.curves["train/total"], again.bad_samples) == (4.0, 0)


def test_one_step_that_is_not_finite_is_seen(backend: Backend) -> None:
    log = StepLog(backend, batches_per_epoch=1)
    for loss, norm in ((1.0, 1.0), (1.0, math.nan), (math.inf, 2.0), (math.nan, math.nan)):
        log.add({"total": torch.tensor(loss)}, torch.tensor(norm), reading(backend))
    assert log.first_nonfinite() == (2, 1)
    curves = log.reduce(learning_rate=0.1, minutes_since_save=0.0).curves
    assert math.isnan(curves["train/gradient_norm"])
    assert math.isnan(curves["train/total"])
