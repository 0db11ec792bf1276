from pathlib import Path

import pytest
import torch

from n2n_dist.distributed.backend import Backend
from n2n_dist.distributed.batch import BatchPlan, plan_batch
from n2n_dist.errors import StorageError, UserError


def test_one_process_needs_no_world(backend: Backend) -> None:
    assert (backend.name, backend.rank, backend.world_size) == ("single process", 0, 1)
    assert backend.is_main
    assert not backend.zero
    assert backend.run_on_rank0(lambda: 7) == 7
    values = torch.tensor([1.0, 2.0])
    total = backend.sum(values)
    assert torch.equal(total, values)
    total += 1
    assert torch.equal(values, torch.tensor([1.0, 2.0])), "the sum is a copy"


def test_a_refusal_on_rank_0_keeps_its_message(backend: Backend) -> None:
    def refuse() -> None:
        raise UserError("this and that")

    with pytest.raises(UserError, match=r"^this and that$"):
        backend.run_on_rank0(refuse)
    with pytest.raises(UserError, match=r"^this and that$"):
        backend.all_gather_or_raise(UserError("this and that"))
    assert backend.all_gather_or_raise(None, "word") == ["word"]


def test_what_cannot_be_written_is_a_refusal(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"/nowhere/file: cannot be written \(No such file or directory\)"):
        backend.run_on_rank0(lambda: (tmp_path / "nowhere" / "file").write_text(""))


@pytest.mark.parametrize(("clip", "moved"), [(1e-3, 1e-3), (0.0, 6.0), (100.0, 6.0)])
def test_the_norm_is_that_before_clipping(backend: Backend, clip: float, moved: float) -> None:
    model = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    model, optimizer = backend.wrap(model, torch.optim.SGD(model.parameters(), lr=1.0), torch.zeros(1, 4))
    with pytest.MonkeyPatch.context() as patch, backend.accumulate(model):
        patch.setattr(backend, "clip", clip)
        backend.backward((model(torch.full((1, 4), 3.0))).sum())
        norm = backend.step(model, optimizer)
    assert norm.item() == pytest.approx(6.0)
    assert model.weight.norm().item() == pytest.approx(moved, rel=1e-3)
    assert model.weight.grad is None


@pytest.mark.parametrize("rank", ["0", "1"])
def test_processes_that_found_no_common_world_are_refused(
    backend: Backend, rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Accelerate has already started without a world
    launched = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"this process is rank 0 of 1, but the launcher .* use one of launch/backends"):
        Backend(plan_batch(8, None), clip=1.0, dtype=None, threads=2)


def test_zero_3_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(UserError, match=r"ACCELERATE_USE_DEEPSPEED=true: set without a launcher"):
        Backend(plan_batch(8, None), clip=1.0, dtype=None, threads=2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(UserError, match=r"zero_stage 3: only 1 and 2, because .*; use launch/backends/zero2.yaml"):
        Backend(plan_batch(8, None), clip=1.0, dtype=None, threads=2)


def test_the_machine_of_a_rank_takes_the_slots_of_all_of_its_ranks(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.machine_slots == range(8)
    for name, value in (("plan", BatchPlan(6, 24, 4, 1)), ("world_size", 6), ("rank", 3)):
        monkeypatch.setattr(backend, name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert backend.local_rank == 1
    assert backend.machine_slots == range(8, 16)


def test_what_every_rank_does_gives_each_its_own_result_or_refuses(backend: Backend) -> None:
    assert backend.run_on_all_ranks(lambda: 7) == 7

    def refuse() -> None:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        backend.run_on_all_ranks(refuse)


def test_moments_are_adamws_own(backend: Backend) -> None:
    model = torch.nn.Linear(4, 1, bias=False)
    model, optimizer = backend.wrap(model, torch.optim.AdamW(model.parameters()), torch.zeros(1, 4))
    with backend.accumulate(model):
        backend.backward(model(torch.full((1, 4), 3.0)).sum())
    backend.step(model, optimizer)
    moments = backend.moments(optimizer, model.weight)
    assert moments.keys() == {"exp_avg", "exp_avg_sq"}
    assert moments["exp_avg"].shape == model.weight.shape
    assert moments["exp_avg"].any()


def test_what_another_thread_agrees_on_may_be_any_error(backend: Backend) -> None:
    assert backend.all_gather_or_raise(None, 7, group=None) == [7]
    with pytest.raises(OSError, match="full"):
        backend.all_gather_or_raise(OSError("full"), group=None)
