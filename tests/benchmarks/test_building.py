import re
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.building import building, write_photographs
from n2n_dist.errors import UserError


def test_ratios_of_building_are_printed(write_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    building(write_images("a.png", "b.png", size=(300, 280, 3)), rounds=1)
    lines = capsys.readouterr().out.splitlines()
    names = ("decode + encode / building", "decode + encode + sha256 + write / building", "building, speed of 2 jobs")
    assert len(lines) == len(names)
    ratios = []
    for line, name in zip(lines, names, strict=True):
        found = re.search(r": ([0-9.]+) \(", line)
        assert line.strip().startswith(name)
        assert found is not None
        ratios.append(float(found[1]))
    assert 0 < ratios[0] < ratios[1], "what is needed takes longer than decoding and encoding alone"
    assert ratios[2] > 0


def test_a_folder_without_large_photographs_is_refused(write_images: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no 8-bit RGB image of 256x256"):
        write_photographs(write_images("a.png", size=(100, 300, 3)), tmp_path / "photographs")
