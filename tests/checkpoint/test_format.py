import errno
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from n2n_dist.checkpoint import format as files
from n2n_dist.checkpoint.format import Manifest, TensorFile, TrainState
from n2n_dist.errors import UserError
from n2n_dist.files import sha256
from n2n_dist.models.resunet import ResUNet, ResUNetSettings
from n2n_dist.version import __version__

STATE = TrainState(step=7, samples_seen=56, best=None, steps=100, data="abc", identity={"run.seed": 0})
PART = "rank-0000.safetensors"
NETWORK = ResUNet(ResUNetSettings(width=8, depths=[1])).metadata()


def make(folder: Path, name: str = "step-00000007.tmp", content: str = "content", manifest: bool = False) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / PART).write_text(content)
    if manifest:
        (path / "manifest.json").write_text("{}")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_committed_is_read_back(tmp_path: Path) -> None:
    partial = make(tmp_path)
    part = {PART: TensorFile(sha256(partial / PART), ["model.a", "ema.a"])}
    manifest = Manifest(STATE, 4, "ZeRO-1", NETWORK, part)
    files.commit(partial, manifest)
    path = files.step_folder(tmp_path, 7)
    assert names(tmp_path) == ["step-00000007"]
    assert names(path) == ["manifest.json", PART]
    assert files.list_checkpoints(tmp_path) == [path]
    assert files.read_manifest(path) == manifest
    files.verify(path, part)
    (path / PART).write_text("Content")
    with pytest.raises(ValueError, match=r"^the bytes of rank-0000.safetensors have changed$"):
        files.verify(path, part)
    (path / PART).unlink()
    with pytest.raises(FileNotFoundError):
        files.verify(path, part)


def test_only_whole_checkpoints_count_and_the_newest_comes_first(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        make(tmp_path, f"step-{step:08d}", manifest=True)
    for name in ("step-00000012.tmp", "step-00000013.old", "step-00000014.damaged", "step-last"):
        make(tmp_path, name, manifest=True)
    assert [path.name for path in files.list_checkpoints(tmp_path)] == [
        "step-00000010",
        "step-00000009",
        "step-00000002",
    ]
    assert files.list_checkpoints(tmp_path / "nowhere") == []


def test_what_a_dead_run_left_is_finished_or_removed(tmp_path: Path) -> None:
    make(tmp_path, "step-00000001.tmp")
    make(tmp_path, "step-00000002.tmp", manifest=True)  # it died just before the name
    make(tmp_path, "step-00000003.tmp", "new", manifest=True)  # or between an older one's name and its own
    make(tmp_path, "step-00000003.old", "old", manifest=True)
    make(tmp_path, "step-00000004.tmp", "new", manifest=True)
    make(tmp_path, "step-00000004", "old", manifest=True)
    make(tmp_path, "step-00000005.old", manifest=True)  # or while it removed one
    files.recover(tmp_path)
    assert names(tmp_path) == ["step-00000002", "step-00000003", "step-00000004"]
    assert (tmp_path / "step-00000003" / PART).read_text() == "new"
    assert (tmp_path / "step-00000004" / PART).read_text() == "new"
    files.recover(tmp_path)
    files.recover(tmp_path / "nowhere")
    assert len(names(tmp_path)) == 3


def test_what_goes_away_leaves_room_for_another_of_its_kind(tmp_path: Path) -> None:
    for content in ("first", "second"):
        assert files.quarantine(make(tmp_path, "step-00000007", content)).name == "step-00000007.damaged"
        assert names(tmp_path) == ["step-00000007.damaged"]
    assert (tmp_path / "step-00000007.damaged" / PART).read_text() == "second"
    make(tmp_path, "step-00000008.old")
    files.remove(make(tmp_path, "step-00000008"))
    assert names(tmp_path) == ["step-00000007.damaged"]


def test_what_cannot_be_removed_yet_is_no_checkpoint_any_more_and_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(path: str, **_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", path)

    path = make(tmp_path, "step-00000008", manifest=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", busy)  # as NFS says of a file that another program reads
        files.remove(path)
    assert names(tmp_path) == ["step-00000008.old"]
    files.recover(tmp_path)
    assert not names(tmp_path)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(28, "No space left on device", "/there"), "No space left on device"),
        (RuntimeError("two\n lines"), "two lines"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_reason_is_one_line(error: BaseException, text: str) -> None:
    assert files.reason(error) == text


def write(folder: Path, *parts: dict[str, torch.Tensor]) -> Path:
    """Commit a checkpoint whose tensors come from so many ranks."""
    partial = folder / "step-00000007.tmp"
    files.make_partial(partial)
    written: dict[str, TensorFile] = {}
    for rank, tensors in enumerate(parts):
        written |= files.write_part(partial, rank, tensors)
    files.commit(partial, Manifest(STATE, len(parts), "DDP", NETWORK, written))
    return files.step_folder(folder, 7)


def test_every_rank_writes_one_file_that_any_tool_reads_and_the_manifest_names(tmp_path: Path) -> None:
    first, second = {"model.a": torch.rand(3), "ema.a": torch.rand(2, 2)}, {"model.b": torch.rand(5)}
    path = write(tmp_path, first, second, {})
    assert names(path) == ["manifest.json", *(f"rank-000{rank}.safetensors" for rank in range(3))]
    manifest = json.loads((path / "manifest.json").read_text())
    assert list(manifest)[:2] == ["format", "version"]
    assert manifest["version"] == __version__
    assert manifest["network"] == NETWORK
    for file, tensors in zip(manifest["files"], (first, second, {}), strict=True):
        assert manifest["files"][file] == {"sha256": sha256(path / file), "tensors": list(tensors)}
        stored = safetensors.torch.load_file(path / file)
        assert stored.keys() == tensors.keys()
        assert all(torch.equal(stored[name], tensor) for name, tensor in tensors.items())
    verified = files.read_manifest(path)
    files.verify(path, verified.files)
    assert verified.state == STATE


def test_tensors_are_filled_whichever_rank_wrote_them_and_whatever_their_layout(tmp_path: Path) -> None:
    tensors = {name: torch.randn(*shape) for name, shape in (("a", (3,)), ("b", (8, 4, 3, 3)), ("c", (300, 1000)))}
    path = write(tmp_path, {"a": tensors["a"], "c": tensors["c"]}, {"b": tensors["b"]})
    there = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    there["b"] = there["b"].to(memory_format=torch.channels_last)
    addresses = {name: tensor.data_ptr() for name, tensor in there.items()}
    files.load(path, there)
    for name, tensor in tensors.items():
        assert torch.equal(there[name], tensor), name
        assert there[name].data_ptr() == addresses[name], name
    assert there["b"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (torch.zeros(4), r"ema.a is float32 \[3\] there and float32 \[4\] here"),
        (torch.zeros(3).double(), r"ema.a is float32 \[3\] there and float64 \[3\] here"),
        (None, "ema.b is missing there"),
    ],
)
def test_tensors_that_are_not_there_are_refused(tmp_path: Path, wanted: torch.Tensor | None, why: str) -> None:
    path = write(tmp_path, {"ema.a": torch.ones(3)})
    tensors = {"ema.b": torch.zeros(3)} if wanted is None else {"ema.a": wanted}
    with pytest.raises(
        UserError, match=rf"step-00000007: does not fit this network \({why}\); start in a new run.dir$"
    ):
        files.load(path, tensors)


@pytest.mark.parametrize(
    ("changed", "version"), [({"format": 7, "version": None}, "before 0.2"), ({"format": 99, "version": "7.1"}, "7.1")]
)
def test_another_format_is_refused_by_the_version_that_wrote_it(tmp_path: Path, changed: dict, version: str) -> None:
    path = write(tmp_path, {"ema.a": torch.ones(3)})
    manifest = json.loads((path / "manifest.json").read_text()) | changed
    (path / "manifest.json").write_text(json.dumps({key: value for key, value in manifest.items() if value}))
    with pytest.raises(UserError) as caught:
        files.read_manifest(path)
    assert str(caught.value) == (
        f"{path}: checkpoint format {changed['format']}, written by n2n_dist {version}; n2n_dist {__version__} reads "
        f"{files.FORMAT}: continue with the version that wrote it, or use a new run.dir"
    )


def test_another_version_of_the_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"ema.a": torch.ones(3)})
    monkeypatch.setattr(ResUNet, "version", ResUNet.version + 1)
    with pytest.raises(UserError, match=rf"{path}: network resunet of version {NETWORK['version']}: "):
        files.read_manifest(path)


@pytest.mark.parametrize(
    "content", ["", "[]", '"text"', "{}", f'{{"format": {files.FORMAT}}}', '{"format": []}', b"\xff\xfe"]
)
def test_what_is_no_manifest_is_damage(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(files.DAMAGE):
        files.read_manifest(tmp_path)


def test_a_manifest_whose_content_has_changed_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path, {"ema.a": torch.ones(3)})
    manifest = json.loads((path / "manifest.json").read_text())
    for changed in ({"state": manifest["state"] | {"step": 8}}, {"version": "7.1"}):
        (path / "manifest.json").write_text(json.dumps(manifest | changed))
        with pytest.raises(ValueError, match=r"the content of manifest.json has changed"):
            files.read_manifest(path)


def test_a_manifest_leads_to_no_file_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("content")
    for name in ("../secret", str(tmp_path / "secret")):
        files.make_partial(tmp_path / "step-00000007.tmp")
        part = {name: TensorFile(sha256(tmp_path / "secret"), [])}
        files.commit(tmp_path / "step-00000007.tmp", Manifest(STATE, 1, "DDP", NETWORK, part))
        with pytest.raises(ValueError, match="is not in its folder"):
            files.read_manifest(tmp_path / "step-00000007")


def test_no_file_is_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"ema.a": torch.ones(3)})

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    tensor = torch.zeros(3)
    files.load(path, {"ema.a": tensor})
    assert tensor.all()
    for file in path.iterdir():
        assert not zipfile.is_zipfile(file)
        assert file.read_bytes()[:1] != b"\x80"  # a pickle's first byte


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        make(tmp_path, f"step-{step:08d}", manifest=True)
    files.prune(tmp_path, keep=2, best_step=2)
    assert names(tmp_path) == [f"step-{step:08d}" for step in (2, 4, 5)]


def test_differences_name_the_keys_and_both_values() -> None:
    assert files.describe_differences({"a": 1, "b": 2}, {"a": 1, "b": 2}) == ""
    text = files.describe_differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4})
    assert text == "b is 2 there and 3 here; c is None there and 4 here"
