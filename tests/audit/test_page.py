from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from support.audits import audit

from n2n_dist.audit.page import draw
from n2n_dist.audit.results import Audit, Finding


def drawn(result: Audit, folder: Path) -> np.ndarray:
    draw(result, folder / "page.png")
    assert [path.name for path in folder.iterdir()] == ["page.png"]
    with PIL.Image.open(folder / "page.png") as page:
        return np.asarray(page.convert("L"))


def test_findings_make_the_page_longer(tmp_path: Path) -> None:
    found = [Finding("harms", f"fault {number}", "much " * 40, "repair it") for number in range(8)]
    short, long = drawn(audit(), tmp_path), drawn(audit(findings=found), tmp_path)
    assert min(short.shape) > 900
    assert len(long) > len(short) + 100
    assert len(long[0]) == len(short[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_captures_are_shown(tmp_path: Path, channels: int) -> None:
    stripes = np.tile(np.float32([0.1, 0.9]), (64, 32, channels)).reshape(64, 64, channels)
    plain, striped = (
        drawn(audit(pictures=[picture] * 2, channels=[channels]), tmp_path) for picture in (stripes * 0 + 0.5, stripes)
    )
    changed = np.abs(plain.astype(float) - striped) > 50
    assert changed.mean() > 0.01


def test_what_was_not_measured_is_drawn_empty(tmp_path: Path) -> None:
    nothing = audit(noise=None, pairs=[], gain=None, offset=None, autocorrelation=[], histogram=[], pictures=[])
    assert drawn(nothing, tmp_path).min() == 0
