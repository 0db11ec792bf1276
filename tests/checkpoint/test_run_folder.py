"""Runs that meet on one folder in earnest are in tests/dist/test_guards.py and tests/faults.py."""

import json
import multiprocessing
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from n2n_dist.checkpoint import run_folder
from n2n_dist.checkpoint.run_folder import ERROR, MARKER, OWNER, RunLock
from n2n_dist.errors import PeerLostError, UserError


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("HEARTBEAT_SECONDS", 0.05), ("STALE_SECONDS", 0.6), ("POLL_SECONDS", 0.01)):
        monkeypatch.setattr(run_folder, name, seconds)


def written(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / OWNER).read_text())


def left_behind(run_dir: Path, **changes: object) -> None:
    """The file of a run that is gone; `changes` say where it ran."""
    held = RunLock(run_dir)
    held.acquire(print)
    content = json.dumps(written(run_dir) | changes)
    held.release()
    (run_dir / OWNER).write_text(content)


def claim_and_die(run_dir: Path) -> None:
    RunLock(run_dir).acquire(print)
    os._exit(0)


def test_it_names_the_run_and_shows_that_it_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    held = RunLock(tmp_path / "new" / "run")
    start = time.monotonic()
    held.acquire(print)
    assert time.monotonic() - start < 5
    first = written(tmp_path / "new" / "run")
    assert (first["process"], first["slurm_job"]) == (os.getpid(), "77")
    assert first["host"]
    end = time.monotonic() + 5
    while written(tmp_path / "new" / "run")["heartbeat"] == first["heartbeat"]:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert held.lost_error() is None
    held.release()
    assert not list((tmp_path / "new" / "run").iterdir())


def test_a_run_that_is_alive_is_left_alone(tmp_path: Path) -> None:
    held, other = RunLock(tmp_path), RunLock(tmp_path)
    held.acquire(print)
    with pytest.raises(
        UserError, match=rf"^run.dir {tmp_path}: in use by process {os.getpid()} on .*choose another run"
    ):
        other.acquire(print)
    assert not other.held
    other.leave_error(ValueError("of the other"))
    other.release()
    assert held.lost_error() is None
    held.release()
    assert not list(tmp_path.iterdir())


def test_a_process_that_died_here_holds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "STALE_SECONDS", 1000)
    died = multiprocessing.get_context("fork").Process(target=claim_and_die, args=(tmp_path,))
    died.start()
    died.join()
    held = RunLock(tmp_path)
    held.acquire(print)  # at once
    assert f"taken over from process {died.pid} on " in capsys.readouterr().out
    held.release()
    assert not list(tmp_path.iterdir())


def test_another_process_of_the_same_number_is_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "STALE_SECONDS", 1000)
    left_behind(tmp_path, process_start=1)
    held = RunLock(tmp_path)
    held.acquire(print)  # at once
    held.release()


@pytest.mark.parametrize(
    "content",
    [None, b"", b'{"token": "half', b"[1]", b"\xff\0", b'{"machine": null}', b'{"process": "1", "machine": 2}'],
)
def test_what_gives_no_sign_of_life_is_taken_over_after_a_while(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    left_behind(tmp_path, machine="another", host="far")
    if content is not None:
        (tmp_path / OWNER).write_bytes(content)
    start, held = time.monotonic(), RunLock(tmp_path)
    held.acquire(print)
    assert time.monotonic() - start > run_folder.STALE_SECONDS
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2, "before and after the wait"
    assert content is not None or "on far" in said[0]
    assert written(tmp_path)["process"] == os.getpid()
    held.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before", [False, True], ids=["", "after one that died while it took over"])
def test_of_many_that_wait_for_a_dead_run_one_gets_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    monkeypatch.setattr(run_folder, "STALE_SECONDS", 1.5)  # of a busy machine
    for attempt in range(3):
        run_dir = tmp_path / str(attempt)
        left_behind(run_dir, machine="another")
        waiting = [RunLock(run_dir) for _ in range(6)]
        if before:
            waiting[0]._successor((run_dir / OWNER).read_bytes()).write_text("")
        refused = []

        def claim(one: RunLock, refused: list[RunLock] = refused) -> None:
            try:
                one.acquire(lambda line: None)
            except UserError:
                refused.append(one)

        threads = [threading.Thread(target=claim, args=(one,)) for one in waiting]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = set(waiting) - set(refused)
        assert winner.lost_error() is None
        winner.release()
        assert not list(run_dir.iterdir())


def test_a_run_that_stood_still_notices_that_it_lost_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "HEARTBEAT_SECONDS", 60)
    still = RunLock(tmp_path)
    still.acquire(print)
    other = RunLock(tmp_path)
    other.acquire(print)
    assert "took the folder over; this one stops and saves nothing" in str(still.lost_error())
    assert not still.held
    still.leave_error(ValueError("of the other"))
    still._beat()  # as its thread would when it wakes up
    still.release()
    assert other.lost_error() is None
    other.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_folder_that_was_removed_is_noticed(tmp_path: Path, what: str) -> None:
    held = RunLock(tmp_path / "run")
    held.acquire(print)
    if what == "folder":
        shutil.rmtree(tmp_path / "run")
    else:
        (tmp_path / "run" / OWNER).unlink()
    assert "it or its folder was removed during the run" in str(held.lost_error())
    held.release()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run.dir .*/file/run: cannot be written \(.*\); choose another folder"):
        RunLock(tmp_path / "file" / "run").acquire(print)


def test_other_ranks_notice_nothing_and_release_nothing(tmp_path: Path) -> None:
    first, other = RunLock(tmp_path), RunLock(tmp_path)
    assert other.lost_error() is None
    other.join(first.acquire(print))
    assert other.held
    other.release()
    assert first.held
    first.release()
    assert other.lost_error() is None
    assert not list(tmp_path.iterdir())


def fail() -> None:
    raise ZeroDivisionError("by nought")


def ended_run(folder: Path) -> Path:
    """The folder of a run that has ended, with files that a next start may write or remove."""
    folder.mkdir()
    (folder / "config.yaml").write_text("run: {}")
    (folder / MARKER).write_text("stopped")
    (folder / ERROR).write_text("old")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != OWNER}


def test_a_start_removes_marker_and_error_of_the_one_before_when_it_holds_the_folder(tmp_path: Path) -> None:
    run_dir = ended_run(tmp_path / "run")
    before = contents(run_dir)
    lock = RunLock(run_dir)
    assert contents(run_dir) == before
    lock.acquire(print)
    assert contents(run_dir).keys() == {"config.yaml"}
    lock.leave_marker("stopped by SIGTERM")
    assert (run_dir / MARKER).read_text() == "stopped by SIGTERM\n"
    lock.release()
    assert contents(run_dir).keys() == {"config.yaml", MARKER}


def test_an_error_of_a_run_replaces_its_marker(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire(print)
    lock.leave_marker("stopped")
    lock.leave_error(UserError("data.batch 10: use a multiple of 4"))
    assert contents(tmp_path) == {ERROR: "data.batch 10: use a multiple of 4\n"}
    try:
        fail()
    except ZeroDivisionError as error:
        lock.leave_error(error)
    text = (tmp_path / ERROR).read_text()
    assert text.startswith("Traceback")
    assert "in fail" in text
    assert text.endswith("ZeroDivisionError: by nought\n")
    lock.release()


def test_the_loss_of_a_process_does_not_hide_what_that_one_left(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire(print)
    lock.leave_error(PeerLostError("rank 0 is lost"))
    assert (tmp_path / ERROR).read_text() == "rank 0 is lost\n"
    lock.leave_error(ValueError("a bug"))
    lock.leave_error(PeerLostError("rank 1 is lost"))
    assert (tmp_path / ERROR).read_text().endswith("ValueError: a bug\n")
    lock.release()


def test_other_ranks_write_while_the_run_holds_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = RunLock(tmp_path), RunLock(tmp_path)
    other.join(first.acquire(print))
    monkeypatch.setenv("RANK", "1")
    other.leave_error(UserError("which all ranks raise"))
    assert not contents(tmp_path)
    other.leave_error(ValueError("of this rank"))
    assert "of this rank" in (tmp_path / ERROR).read_text()
    (tmp_path / ERROR).unlink()
    first.release()
    other.leave_error(ValueError("too late"))
    assert not list(tmp_path.iterdir())


def test_an_error_before_the_lock_is_written_if_the_folder_is_free_and_not_if_a_run_holds_it(tmp_path: Path) -> None:
    run_dir = ended_run(tmp_path / "run")
    RunLock(run_dir).leave_error(UserError("a key is unknown"))
    assert {path.name for path in run_dir.iterdir()} == {"config.yaml", ERROR}
    assert (run_dir / ERROR).read_text() == "a key is unknown\n"
    held = RunLock(run_dir)
    held.acquire(print)
    held.leave_marker("stopped")
    before = contents(run_dir)
    RunLock(run_dir).leave_error(UserError("a key is unknown"))
    assert contents(run_dir) == before
    held.release()


def test_an_error_makes_no_folder_and_is_not_hidden_by_one_that_cannot_be_written(tmp_path: Path) -> None:
    RunLock(tmp_path / "none").leave_error(UserError("x"))
    assert not list(tmp_path.iterdir())
    (tmp_path / ERROR).mkdir()
    RunLock(tmp_path).leave_error(UserError("x"))
    assert [path.name for path in tmp_path.iterdir()] == [ERROR]


def test_a_run_that_lost_its_folder_leaves_no_marker(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "run")
    lock.acquire(print)
    (tmp_path / "run" / OWNER).unlink()
    with pytest.raises(UserError, match="was removed during the run"):
        lock.leave_marker("stopped")
    lock.leave_error(ValueError("a bug"))
    assert not list((tmp_path / "run").iterdir())
    lock.release()
