import hashlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from n2n_dist import files


@dataclass
class Point:
    x: int
    y: float


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "a").write_bytes(content)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_the_file_appears_whole_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files.write_atomically(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "half"
    assert names(tmp_path) == ["a.txt"]


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        calls.append("folder" if os.path.samestat(os.fstat(descriptor), tmp_path.stat()) else "file")
        fsync(descriptor)

    def note_replace(path: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    files.write_text(tmp_path / "a", "content")
    assert calls == ["file", "rename", "folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with files.write_atomically(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_what_cannot_be_written_is_named_without_its_temporary_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path, kind in ((tmp_path / "nowhere" / "a", FileNotFoundError), (tmp_path / "folder", IsADirectoryError)):
        with pytest.raises(kind) as caught:
            files.write_text(path, "content")
        assert caught.value.filename == str(path)
        assert ".tmp" not in str(caught.value)
    assert names(tmp_path) == ["folder"]


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    def copy() -> None:
        with files.write_atomically(tmp_path / "a") as temporary:
            temporary.write_bytes((tmp_path / "source").read_bytes())

    with pytest.raises(FileNotFoundError) as caught:
        copy()
    assert Path(caught.value.filename).name == "source"


def test_several_may_write_the_same_file(tmp_path: Path) -> None:
    contents = [str(number) * 50_000 for number in range(8)]
    threads = [threading.Thread(target=files.write_text, args=(tmp_path / "a", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_text() in contents
    assert names(tmp_path) == ["a"]


def test_what_a_killed_process_leaves_can_be_removed(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with files.write_atomically(tmp_path / "a.json") as temporary:
            temporary.write_text("half")
            os._exit(1)
    os.waitpid(child, 0)
    assert len(names(tmp_path)) == 1
    for name in ("a.json", "step-00000001.tmp", "mine.tmp"):
        (tmp_path / name).write_text("")
    files.remove_temporaries(tmp_path)
    assert names(tmp_path) == ["a.json", "mine.tmp", "step-00000001.tmp"]


def test_json_holds_dataclasses_as_mappings(tmp_path: Path) -> None:
    content = {"a": [1, 2], "p": Point(1, 0.5)}
    files.write_json(tmp_path / "a.json", content)
    assert (tmp_path / "a.json").read_text() == '{"a":[1,2],"p":{"x":1,"y":0.5}}\n'
    files.write_json(tmp_path / "a.json", content, indent=1)
    written = (tmp_path / "a.json").read_text()
    assert written.startswith('{\n "a": [\n  1,')
    assert json.loads(written) == {"a": [1, 2], "p": {"x": 1, "y": 0.5}}
