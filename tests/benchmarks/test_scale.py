from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import scale


def test_memory_of_the_loader(
    write_images: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_images("a.png", size=(160, 160, 3), folder="photographs")
    monkeypatch.setattr(scale, "READ", scale.READ.replace("range(500)", "range(2)"))
    monkeypatch.setattr(scale, "SHARDS", (70,))  # a start of Python each
    figures = list(scale.memory(tmp_path))
    assert [figure.name for figure in figures] == [
        f"memory with 70 shards, {p}" for p in ("training process", "worker")
    ]
    assert all(20 < figure.median < 3000 for figure in figures)


def test_order_and_index_of_a_large_data_set_are_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scale, "RANKS", ((16, 1, 2),))
    monkeypatch.setattr(scale, "LISTED", 20)
    figures = {figure.name: figure for figure in scale.scale()}
    order, index = "order of 10^8 samples, batch 16, rank 1 of 2", "index of 20 shards, 20000 samples"
    assert list(figures) == [
        *(f"{order}, {quantity}" for quantity in ("first batch", "next batches", "memory")),
        *(f"{index}, {quantity}" for quantity in ("opened in", "memory")),
    ]
    assert all(figure.median > 0 for figure in figures.values())
