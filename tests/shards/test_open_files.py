import os
import time
from pathlib import Path

import pytest

from n2n_dist.shards import open_files
from n2n_dist.shards.open_files import OpenFile, read_at


def test_bytes_are_read_at_any_offset(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    assert [read_at(tmp_path / "a", size, offset) for size, offset in ((3, 4), (1, 0), (9, 8))] == [b"456", b"0", b"89"]


def test_another_file_of_the_name_is_read_after_the_time_of_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    file = OpenFile(tmp_path / "a")
    before = file.identity
    (tmp_path / "b").write_bytes(b"new")
    (tmp_path / "b").replace(tmp_path / "a")
    assert (file.identity, file.read(3, 0)) == (before, b"old")
    late = time.monotonic() + 2 * open_files.TRUSTED
    monkeypatch.setattr(open_files.time, "monotonic", lambda: late)
    assert file.identity != before
    assert file.read(3, 0) == b"new"


def test_a_file_is_closed_with_its_last_use(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0")
    before = len(os.listdir("/proc/self/fd"))
    files = [OpenFile(tmp_path / "a") for _ in range(3)]
    assert len(os.listdir("/proc/self/fd")) == before + 3
    del files
    assert len(os.listdir("/proc/self/fd")) == before
