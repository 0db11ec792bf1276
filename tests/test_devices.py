import time
from collections.abc import Iterator

import pytest
import torch

from n2n_dist.devices import DeviceTimer, autocast, peak_memory_bytes, set_threads, use_gpu


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_ranks_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(12)), raising=False)
    for ranks, threads in ((None, 12), ("1", 12), ("4", 3), ("5", 2), ("100", 1)):
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        monkeypatch.setenv("WORLD_SIZE", "200" if ranks else "")
        if ranks:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        set_threads()
        assert torch.get_num_threads() == threads


def test_a_variable_left_over_in_a_single_process_takes_no_cores_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(12)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    set_threads()
    assert torch.get_num_threads() == 12


def test_a_number_is_obeyed() -> None:
    set_threads(3)
    assert torch.get_num_threads() == 3


def test_gpu_is_used_where_there_is_one_and_the_launch_file_does_not_forbid_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, forbidden, used in (
        (True, None, True),
        (True, "false", True),
        (True, "true", False),
        (True, "1", False),
        (False, None, False),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
        if forbidden:
            monkeypatch.setenv("ACCELERATE_USE_CPU", forbidden)
        assert use_gpu() == used


def test_products_are_computed_in_the_named_format() -> None:
    square = torch.ones(2, 2)
    for dtype, found in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        with autocast(torch.device("cpu"), dtype):
            assert (square @ square).dtype == found


def test_a_timer_adds_up_what_is_inside() -> None:
    timer = DeviceTimer(torch.device("cpu"))
    for _ in range(2):
        with timer:
            time.sleep(0.05)
        time.sleep(0.2)
    assert 0.1 <= timer.seconds() < 0.2
    assert timer.seconds() == 0


def test_peak_memory_grows_with_what_is_allocated() -> None:
    before = peak_memory_bytes(torch.device("cpu"))
    torch.ones(before // 4 + (1 << 26))  # float32: as much again, and 256 MiB
    assert peak_memory_bytes(torch.device("cpu")) > before + (1 << 27)
