import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from n2n_dist.shards import tar as module
from n2n_dist.shards.tar import TarWriter

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/.\0"), min_size=1, max_size=120)
SAMPLES = st.dictionaries(NAMES, st.lists(st.binary(max_size=1500), min_size=1, max_size=3), max_size=12)


def write(path: Path, samples: list[dict[str, bytes]]) -> str:
    with ThreadPoolExecutor(1) as disk:
        writer = TarWriter(path, disk)
        offsets = [writer.add(members) for members in samples]
        digest = disk.submit(writer.finish).result()
    content = path.read_bytes()
    for members, found in zip(samples, offsets, strict=True):
        assert {name: content[found[name] : found[name] + len(members[name])] for name in members} == members
    return digest


@given(samples=SAMPLES)
def test_bytes_are_those_of_the_writer_of_webdataset(
    tmp_path_factory: pytest.TempPathFactory, samples: dict[str, list[bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("tars")
    fixed = {"user": "n2n", "group": "n2n", "mode": 0o644, "mtime": 0, "encoder": False}
    with (folder / "theirs.tar").open("wb") as file, webdataset.TarWriter(file, **fixed) as theirs:
        for key, contents in samples.items():
            theirs.write({"__key__": key, **{f"{n}.npy": content for n, content in enumerate(contents)}})
    ours = [{f"{key}.{n}.npy": content for n, content in enumerate(contents)} for key, contents in samples.items()]
    digest = write(folder / "ours.tar", ours)
    assert (folder / "ours.tar").read_bytes() == (folder / "theirs.tar").read_bytes()
    assert digest == hashlib.sha256((folder / "ours.tar").read_bytes()).hexdigest()


def test_bytes_are_synced_while_others_are_written_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk: list[int] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        on_disk.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(module, "UNSYNCED", 1 << 20)
    write(tmp_path / "a.tar", [{f"{number}.npy": bytes(1 << 19)} for number in range(8)])
    assert len(on_disk) > 2
    assert on_disk[-1] == (tmp_path / "a.tar").stat().st_size


def test_an_error_of_the_disk_while_writing_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:  # the system reports an error once
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    monkeypatch.setattr(module, "UNSYNCED", 1000)
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path / "a.tar", [{"0.npy": bytes(2000)}] * 3)


def test_building_does_not_import_torch(write_images: Callable[..., Path], tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from n2n_dist.building.build import build; "
        "from n2n_dist.building.plan import Options; build(Path(sys.argv[1]), Path(sys.argv[2]), Options()); "
        "print([name for name in ('torch', 'scipy', 'webdataset', 'matplotlib') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(write_images("a.png")), str(tmp_path / "out")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "[]"
