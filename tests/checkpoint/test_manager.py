import contextlib
import itertools
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import processes

from n2n_dist.checkpoint import format
from n2n_dist.checkpoint.format import TrainState
from n2n_dist.checkpoint.manager import Checkpoints, CheckpointSettings
from n2n_dist.distributed.backend import Backend
from n2n_dist.errors import StorageError, UserError
from n2n_dist.models.resunet import ResUNet, ResUNetSettings
from n2n_dist.models.weights import load_model, trained_steps
from n2n_dist.training.optim import OptimSettings, make_optimizer


def network(seed: int, width: int = 8) -> ResUNet:
    torch.manual_seed(seed)
    model = ResUNet(ResUNetSettings(width=width, depths=[1]))
    for layer in (model.head, model.local_filter):
        torch.nn.init.normal_(layer.weight)
    return model


def trained(seed: int) -> tuple[ResUNet, ResUNet, torch.optim.AdamW]:
    model, ema = network(seed), network(seed + 1)
    optimizer = make_optimizer(model, OptimSettings())
    for _ in range(3):
        model(torch.rand(1, 3, 16, 16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, ema, optimizer


def progress(step: int, best: float | None = None, best_step: int = 0) -> TrainState:
    identity = {"run.seed": 0, "data.crop": 16, "pairs.name": "synthetic", "model.width": 8, "model.depths": [1]}
    return TrainState(step, 8 * step, best, steps=100, data="abc", identity=identity, best_step=best_step)


@pytest.fixture(scope="module")
def parts() -> tuple[ResUNet, ResUNet, torch.optim.AdamW]:
    return trained(0)


@pytest.fixture
def checkpoints(tmp_path: Path, backend: Backend) -> Checkpoints:
    return Checkpoints(tmp_path, CheckpointSettings(keep=3), backend)


def write(checkpoints: Checkpoints, *what: object) -> None:
    checkpoints.save(*what)
    checkpoints.finish()


def one(checkpoints: Checkpoints) -> tuple[Path]:
    return (checkpoints.newest(warn=pytest.fail)[0],)


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def largest_file(folder: Path) -> Path:
    return max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_is_saved_comes_back_bit_by_bit(checkpoints: Checkpoints, parts: tuple) -> None:
    model, ema, optimizer = parts
    write(checkpoints, model, ema, optimizer, progress(7))
    path, found = checkpoints.newest(warn=pytest.fail)
    assert found == progress(7)
    assert path.name == "step-00000007"

    other, other_ema = network(10), network(11)
    other_optimizer = make_optimizer(other, OptimSettings())
    checkpoints.load(path, other, other_ema, other_optimizer, found)
    for saved, loaded in ((model, other), (ema, other_ema)):
        for name, tensor in saved.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        optimizer.state[p]["step"].fill_(7)  # that of the checkpoint
        assert optimizer.state[p].keys() == other_optimizer.state[q].keys()
        for key, value in optimizer.state[p].items():
            assert torch.equal(other_optimizer.state[q][key], value), (name, key)


def test_no_checkpoint_is_no_error(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest(warn=pytest.fail) is None


def test_the_newest_are_kept(checkpoints: Checkpoints, parts: tuple) -> None:
    for step in (1, 2, 9, 10, 100):
        write(checkpoints, *parts, progress(step))
    assert names(checkpoints) == ["step-00000009", "step-00000010", "step-00000100"]
    assert checkpoints.newest(warn=pytest.fail)[1].step == 100


def test_a_step_that_is_saved_again_replaces_the_old_one(checkpoints: Checkpoints, parts: tuple) -> None:
    write(checkpoints, *parts, progress(5))
    write(checkpoints, *trained(20), progress(5))
    path, found = checkpoints.newest(warn=pytest.fail)
    assert names(checkpoints) == ["step-00000005"]
    other = trained(30)
    checkpoints.load(path, *other, found)
    assert torch.equal(other[0].head.weight, trained(20)[0].head.weight)


def test_an_unfinished_one_is_ignored_and_written_over(checkpoints: Checkpoints, parts: tuple) -> None:
    write(checkpoints, *parts, progress(4))
    leftover = checkpoints.folder / "step-00000008.tmp"
    leftover.mkdir()
    (leftover / "rank-0000.safetensors").write_bytes(b"half")
    (leftover / "rank-0007.safetensors").write_bytes(b"of a larger world")
    assert checkpoints.newest(warn=pytest.fail)[1].step == 4
    write(checkpoints, *parts, progress(8))
    path, found = checkpoints.newest(warn=pytest.fail)
    assert found.step == 8
    assert not (path / "rank-0007.safetensors").exists()
    assert not leftover.exists()


@pytest.mark.parametrize(
    "damage",
    [
        "a flipped byte",
        "a missing file",
        "no manifest",
        "half a manifest",
        "another step in the manifest",
        "a manifest of another kind",
    ],
)
def test_a_damaged_one_is_set_aside_loudly_and_the_one_before_used(
    checkpoints: Checkpoints, parts: tuple, damage: str
) -> None:
    write(checkpoints, *parts, progress(4))
    write(checkpoints, *parts, progress(6))
    newest = checkpoints.folder / "step-00000006"
    manifest = newest / "manifest.json"
    match damage:
        case "a flipped byte":
            flip_a_byte(largest_file(newest))
        case "a missing file":
            largest_file(newest).unlink()
        case "no manifest":
            manifest.unlink()
        case "half a manifest":
            manifest.write_text(manifest.read_text()[:100])
        case "another step in the manifest":
            manifest.write_text(manifest.read_text().replace('"samples_seen": 48', '"samples_seen": 56'))
        case "a manifest of another kind":
            manifest.write_text("[]")
    said: list[str] = []
    path, found = checkpoints.newest(warn=said.append)
    assert (path.name, found.step) == ("step-00000004", 4)
    assert len(said) == 1
    assert said[0].startswith("checkpoint step-00000006 is damaged (")
    assert "set aside as step-00000006.damaged" in said[0]
    assert names(checkpoints) == ["step-00000004", "step-00000006.damaged"]
    assert checkpoints.newest(warn=pytest.fail)[1].step == 4, "said once"


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_until_someone_looks(
    checkpoints: Checkpoints, parts: tuple
) -> None:
    for step in (4, 6):
        write(checkpoints, *parts, progress(step))
        flip_a_byte(largest_file(checkpoints.folder / f"step-{step:08d}"))
    said: list[str] = []
    for _ in range(2):  # a job that is requeued must not begin anew over the weights that are there
        with pytest.raises(UserError, match=r"all checkpoints are damaged; start in a new run.dir"):
            checkpoints.newest(warn=said.append)
    assert len(said) == 2


def test_one_of_another_version_is_refused_and_left_alone(checkpoints: Checkpoints, parts: tuple) -> None:
    write(checkpoints, *parts, progress(4))
    manifest = checkpoints.folder / "step-00000004" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format": {format.FORMAT}', '"format": 99'))
    with pytest.raises(
        UserError, match=r"checkpoint format 99, written by n2n_dist .*: continue with the version that"
    ):
        checkpoints.newest(warn=pytest.fail)
    assert names(checkpoints) == ["step-00000004"]


def test_one_of_another_network_is_refused(checkpoints: Checkpoints, parts: tuple) -> None:
    write(checkpoints, *parts, progress(4))
    wide = network(0, width=16)
    path, found = checkpoints.newest(warn=pytest.fail)
    with pytest.raises(UserError, match="does not fit this network"):
        checkpoints.load(path, wide, network(1, width=16), make_optimizer(wide, OptimSettings()), found)


def test_training_goes_on_while_a_thread_writes_what_was_there_at_the_save(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = trained(0)
    before = {name: tensor.clone() for name, tensor in parts[0].state_dict().items()}
    moment = parts[2].state[parts[0].head.weight]["exp_avg"].clone()
    go, commit = threading.Event(), format.commit
    monkeypatch.setattr(format, "commit", lambda *a: go.wait(20) and commit(*a))
    checkpoints.save(*parts, progress(1))
    with torch.no_grad():
        for tensor in (*parts[0].parameters(), parts[2].state[parts[0].head.weight]["exp_avg"]):
            tensor.zero_()
    assert not format.list_checkpoints(checkpoints.folder)
    assert checkpoints.busy
    go.set()
    checkpoints.finish()
    assert not checkpoints.busy
    other = trained(30)
    checkpoints.load(*one(checkpoints), *other, progress(1))
    for name, tensor in other[0].state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(other[2].state[other[0].head.weight]["exp_avg"], moment)


def test_the_next_save_waits_and_uses_the_same_memory(
    checkpoints: Checkpoints, parts: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    commit = format.commit
    monkeypatch.setattr(format, "commit", lambda path, what: (commit(path, what), order.append(path.name)))
    checkpoints.save(*parts, progress(1))
    staged = checkpoints.staged_bytes
    checkpoints.save(*parts, progress(2))
    assert order[:1] == ["step-00000001.tmp"]
    checkpoints.wait()
    checkpoints.wait()
    assert order == ["step-00000001.tmp", "step-00000002.tmp"]
    assert checkpoints.staged_bytes == staged
    assert checkpoints.staged_bytes == 16 * sum(parameter.numel() for parameter in parts[0].parameters())


def test_what_stops_the_thread_other_than_its_files_is_raised(
    checkpoints: Checkpoints, parts: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: object) -> None:
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(format, "commit", lose)
    checkpoints.save(*parts, progress(1))
    with pytest.raises(RuntimeError, match="connection closed by peer"):
        checkpoints.wait()


def test_the_best_is_kept_and_its_weights_are_those_of_its_checkpoint(checkpoints: Checkpoints, tmp_path: Path) -> None:
    best = tmp_path / "best.safetensors"
    write(checkpoints, *trained(1), progress(1))
    assert not best.exists(), "no validation yet"
    for step, best_step in ((2, 2), (3, 2), (4, 2), (5, 2), (6, 2)):
        write(checkpoints, *trained(step), progress(step, 30.0, best_step))
        assert trained_steps(best) == 2
    assert names(checkpoints) == [f"step-0000000{step}" for step in (2, 4, 5, 6)]
    _, ema, _ = trained(2)
    for name, tensor in load_model(best, torch.device("cpu")).state_dict().items():
        assert torch.equal(tensor, ema.state_dict()[name]), name
    write(checkpoints, *trained(7), progress(7, 31.0, 7))
    assert trained_steps(best) == 7
    assert names(checkpoints) == [f"step-0000000{step}" for step in (5, 6, 7)]


def test_best_weights_that_are_missing_are_written_again_but_not_from_a_damaged_checkpoint(
    checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, parts = tmp_path / "best.safetensors", trained(2)
    write(checkpoints, *parts, progress(1, 30.0, 1))
    write(checkpoints, *parts, progress(2, 30.0, 1))
    weights = best.read_bytes()
    best.unlink()
    path, found = checkpoints.newest(warn=pytest.fail)
    checkpoints.load(path, *parts, found)
    assert best.read_bytes() == weights
    best.unlink()
    flip_a_byte(largest_file(checkpoints.folder / "step-00000001"))
    checkpoints.load(path, *parts, found)
    assert not best.exists()
    assert "checkpoint step-00000001 is damaged (the bytes of " in capsys.readouterr().out


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Take all the room that a small file system has left."""
    with (folder / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        (folder / "ballast").unlink()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)


@contextlib.contextmanager
def limited(folder: Path) -> Iterator[None]:
    """No file of this process may grow above 10 kB, as with a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def without_permission(folder: Path) -> Iterator[None]:
    (folder / "run" / "checkpoints").chmod(0o555)
    try:
        yield
    finally:
        (folder / "run" / "checkpoints").chmod(0o755)


@contextlib.contextmanager
def vanished(folder: Path) -> Iterator[None]:
    (folder / "run").rename(folder / "elsewhere")
    try:
        yield
    finally:
        assert not (folder / "run").exists(), "a disk that is not mounted is not written to"
        (folder / "elsewhere").rename(folder / "run")


@contextlib.contextmanager
def in_the_way(folder: Path) -> Iterator[None]:
    """A file stands where the folder of the checkpoints was."""
    checkpoints = folder / "run" / "checkpoints"
    checkpoints.rename(folder / "aside")
    checkpoints.write_text("")
    try:
        yield
    finally:
        checkpoints.unlink()
        (folder / "aside").rename(checkpoints)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        (full, "No space left on device"),
        (read_only, "Read-only file system"),
        (limited, "File too large"),
        (without_permission, "Permission denied"),
        (vanished, "No such file or directory"),
        (in_the_way, "File exists"),
    ],
)
def test_a_save_that_fails_is_told_and_the_next_one_tries_again(
    request: pytest.FixtureRequest,
    backend: Backend,
    parts: tuple,
    capsys: pytest.CaptureFixture[str],
    obstacle: Callable[[Path], contextlib.AbstractContextManager[None]],
    reason: str,
) -> None:
    if obstacle is without_permission and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    folder = request.getfixturevalue("small" if obstacle in (full, read_only) else "tmp_path")
    (folder / "run").mkdir()
    checkpoints = Checkpoints(folder / "run", CheckpointSettings(), backend)
    here = progress(1, 30.0, 1)
    write(checkpoints, *parts, here)
    before = (folder / "run" / "best.safetensors").read_bytes()
    here.step, here.best, here.best_step = 2, 31.0, 2
    with obstacle(folder):
        checkpoints.save(*parts, here)
        checkpoints.wait()
        assert reason in str(checkpoints.failure)
        assert (here.best, here.best_step) == (30.0, 1), "what was not saved is not the best"
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"error: {folder}/run/checkpoints")
        for part in ("step 2 could not be saved", "make room or make the folder writable", "the next save tries again"):
            assert part in said
        missing = obstacle in (vanished, in_the_way)
        assert f"The last good checkpoint is {'none' if missing else 'step-00000001'}" in said
        here.step = 3
        checkpoints.save(*parts, here)
        with pytest.raises(StorageError, match=rf"step 3 could not be saved \({reason}"):
            checkpoints.finish()
    assert names(checkpoints) == ["step-00000001"], "nothing is left of it"
    here.step, here.best, here.best_step = 4, 30.5, 4
    checkpoints.save(*parts, here)
    checkpoints.finish()
    assert checkpoints.failure is None
    assert names(checkpoints) == ["step-00000001", "step-00000004"]
    assert (folder / "run" / "best.safetensors").read_bytes() != before


class Killed(BaseException):
    """The end of the process: nothing catches it."""


class Disk:
    """Everything that changes the disk, as what lets the program die at one of these moments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mortal = False
        """Whether the program dies after `left` changes."""
        self.left = 0
        for owner, name in (
            (Path, "mkdir"),
            (Path, "rename"),
            (Path, "replace"),
            (Path, "unlink"),
            (os, "fsync"),
            (shutil, "rmtree"),
        ):
            monkeypatch.setattr(owner, name, self._dying(getattr(owner, name), halfway=name == "rmtree"))

    def _dying(self, change: Callable[..., Any], halfway: bool) -> Callable[..., Any]:
        def changed(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0 and halfway and arguments[0].is_dir():  # one file is removed
                os.remove(max(arguments[0].iterdir()))
            if self.mortal and self.left <= 0:
                raise Killed  # and so do all changes after it
            return change(*arguments, **options)

        return changed


def test_a_run_may_be_killed_at_any_moment_of_a_save(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_step = {step: trained(step) for step in range(1, 6)}
    settings = CheckpointSettings(keep=2)
    (tmp_path / "0").mkdir()
    for step, best_step in ((1, 1), (2, 1), (3, 1)):
        write(Checkpoints(tmp_path / "0", settings, backend), *by_step[step], progress(step, 30.0, best_step))
    disk = Disk(monkeypatch)
    newest = set()
    for moment in itertools.count(1):
        run_dir = Path(shutil.copytree(tmp_path / "0", tmp_path / str(moment)))
        first = Checkpoints(run_dir, settings, backend)
        # step 3 once more, as after a validation that was made up for, then a new best, which step 1 gives way to
        disk.mortal, disk.left = True, moment
        try:
            write(first, *by_step[3], progress(3, 30.0, 1))
            write(first, *by_step[4], progress(4, 31.0, 4))
            killed = False
        except Killed:
            killed = True
        disk.mortal = False

        again = Checkpoints(run_dir, settings, backend)
        path, found = again.newest(warn=pytest.fail)
        newest.add(found.step)
        loaded = trained(9)
        again.load(path, *loaded, found)
        assert torch.equal(loaded[0].head.weight, by_step[found.step][0].head.weight), moment
        assert {path.suffix for path in again.folder.iterdir()} == {""}, moment
        for path in format.list_checkpoints(again.folder):
            format.verify(path, format.read_manifest(path).files)
        best = run_dir / "best.safetensors"
        assert trained_steps(best) == found.best_step, moment
        there, here = by_step[found.best_step][1], load_model(best, torch.device("cpu"))
        assert torch.equal(here.head.weight, there.head.weight), moment
        write(again, *by_step[5], progress(5, found.best, found.best_step))
        kept = {found.best_step, max(set(range(1, 5)) & {found.step}), 5}
        assert names(again) == [f"step-0000000{step}" for step in sorted(kept)], moment
        if not killed:
            break
    assert moment > 25
    assert newest == {3, 4}


@pytest.mark.parametrize("wrong", [{"every": 0}, {"minutes": 0.0}, {"minutes": float("nan")}, {"keep": 1}])
def test_values_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match=rf"checkpoint\.{next(iter(wrong))} .*: must be"):
        CheckpointSettings(**wrong)


def test_a_run_falls_back_to_the_checkpoint_before(tmp_path: Path) -> None:
    settings = (f"run.dir={tmp_path}", "train.steps=4", "checkpoint.every=2")
    processes.train(*settings).checked()
    weights = (tmp_path / "last.safetensors").read_bytes()
    (tmp_path / "last.safetensors").unlink()
    flip_a_byte(largest_file(tmp_path / "checkpoints" / "step-00000004"))
    again = processes.train(*settings).checked()
    assert "checkpoint step-00000004 is damaged (the bytes of " in again.out[0]
    assert "continuing after step 2 of 4" in again.out[0]
    assert (tmp_path / "last.safetensors").read_bytes() == weights
