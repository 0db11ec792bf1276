from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.building import building, write_photographs
from n2n_dist.errors import UserError


def test_ratios_of_building(write_images: Callable[..., Path]) -> None:
    figures = list(building(write_images("a.png", "b.png", size=(300, 280, 3)), rounds=1))
    names = ("decode + encode / building", "decode + encode + sha256 + write / building", "building, speed of 2 jobs")
    assert all(figure.name.startswith(name) for figure, name in zip(figures, names, strict=True))
    ratios = [figure.median for figure in figures]
    assert 0 < ratios[0] < ratios[1], "what is needed takes longer than decoding and encoding alone"
    assert ratios[2] > 0


def test_a_folder_without_large_photographs_is_refused(write_images: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no 8-bit RGB image of 256x256"):
        write_photographs(write_images("a.png", size=(100, 300, 3)), tmp_path / "photographs")
