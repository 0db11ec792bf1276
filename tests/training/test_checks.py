"""What needs a run folder is tested with runs, in test_loop.py and tests/dist/test_stops.py."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from n2n_dist.checkpoint.format import TrainState
from n2n_dist.checkpoint.run_folder import OWNER
from n2n_dist.data.dataset import CropDataset
from n2n_dist.data.order import Order
from n2n_dist.data.sampler import RankOrder
from n2n_dist.devices import DeviceTimer
from n2n_dist.distributed.backend import Backend
from n2n_dist.errors import UserError
from n2n_dist.pairs import Synthetic
from n2n_dist.shards.index import Index
from n2n_dist.training import checks
from n2n_dist.training.batches import Reading
from n2n_dist.training.checks import check_damage, check_finite, check_machines, other_software
from n2n_dist.training.step_log import StepLog


def state(bad_samples: int = 0) -> TrainState:
    return TrainState(7, 1000, None, 100, data="abc", identity={}, bad_samples=bad_samples)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_step_that_is_not_finite_is_named_with_its_samples(
    backend: Backend, make_shards: Callable[..., Path], value: float
) -> None:
    index = Index([make_shards(8)])
    data, order = CropDataset(index, 0, 32, Synthetic()), RankOrder(Order(index.sizes, 0, 8), 0, 0, 1, 8)
    log = StepLog(backend, batches_per_epoch=1)
    for loss in (1.0, value, math.nan):
        log.add({"total": torch.tensor(loss)}, torch.tensor(1.0), Reading(DeviceTimer(backend.device)))
    where = state(), log, backend, data, order
    check_finite({"train/total": 1e30, "train/pixel": 0.0}, *where)
    with pytest.raises(
        UserError, match=r"^step 6: train/pixel is not finite, with the samples at positions 984 to 991 \("
    ) as e:
        check_finite({"train/total": 1.0, "train/pixel": value}, *where)
    assert re.search(r"the largest value there is (1|0\.9\d*) times white, in .*\.tar: sample 0000", str(e.value))


def test_damage_past_the_tolerated_share_is_refused() -> None:
    check_damage(state(bad_samples=0), 0.0)
    check_damage(state(bad_samples=100), 0.1)
    with pytest.raises(UserError, match=r"^data.max_bad 0.1: 101 of 1000 samples cannot be read"):
        check_damage(state(bad_samples=101), 0.1)


def test_one_machine_needs_no_check(backend: Backend, tmp_path: Path) -> None:
    check_machines(tmp_path / "nowhere", backend)


def test_other_software_names_the_machine() -> None:
    assert other_software(["a", "a", "b"], ["n2n_dist 1"] * 3) is None
    message = other_software(["a", "a", "b"], ["n2n_dist 1", "n2n_dist 1", "n2n_dist 2"])
    assert message == "b: has n2n_dist 2, but a has n2n_dist 1; install the same on all machines"


def test_machines_share_a_folder_that_they_can_write(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "SHARED_SECONDS", 0.3)
    monkeypatch.setattr(backend, "hosts", ["here", "there"])
    monkeypatch.setattr(backend, "all_gather_or_raise", one_rank)
    with pytest.raises(
        UserError, match=rf"on here: run.dir {tmp_path}: not the folder that rank 0 has; use one that all"
    ):
        check_machines(tmp_path, backend)
    (tmp_path / OWNER).touch()
    check_machines(tmp_path, backend)
    assert [path.name for path in tmp_path.iterdir()] == [OWNER]


def one_rank(refusal: Exception | None, word: object = None) -> list[object]:
    if refusal:
        raise refusal
    return [word, word]
