import re
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import scale


def test_memory_of_the_loader_is_printed(
    write_images: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_images("a.png", size=(160, 160, 3), folder="photographs")
    monkeypatch.setattr(scale, "READ", scale.READ.replace("range(500)", "range(2)"))
    monkeypatch.setattr(scale, "SHARDS", (70,))  # a start of Python each
    scale.memory(tmp_path)
    found = re.findall(r"memory, (\d+) shards: training process (\d+) MiB, worker (\d+) MiB", capsys.readouterr().out)
    assert [int(count) for count, _, _ in found] == [70]
    assert all(20 < int(peak) < 3000 for _, *peaks in found for peak in peaks)


def test_order_and_index_of_a_large_data_set_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scale, "RANKS", ((16, 1, 2),))
    monkeypatch.setattr(scale, "LISTED", 20)
    scale.scale()
    order, index = capsys.readouterr().out.splitlines()
    assert re.search(r"order, .*batch 16, rank 1 of 2: first batch [0-9.]+ s .*, the next ones [0-9.]+ ms", order)
    assert re.search(r"index of 20 shards, 20000 samples: opened in [0-9.]+ s, \d+ MiB", index)
