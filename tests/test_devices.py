from collections.abc import Iterator

import pytest
import torch
from n2n_dist.devices import set_threads


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_ranks_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(12)), raising=False)
    for ranks, threads in ((None, 12), ("1", 12), ("4", 3), ("5", 2), ("100", 1)):
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        if ranks:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        set_threads()
        assert torch.get_num_threads() == threads


def test_a_number_is_obeyed() -> None:
    set_threads(3)
    assert torch.get_num_threads() == 3
