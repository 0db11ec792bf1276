"""Shards behind a URL train what those of a folder train; a source that goes stops all ranks, soon, with its message."""

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
from support import processes
import pytest
from support.servers import s3, serve, upload

from n2n_dist.data.order import Order
from n2n_dist.shards.index import Index

BATCH = 8
SETTINGS = ("train.steps=6", "checkpoint.every=3", "data.workers=2", "data.streams=2", "validate.images=2")
DEMO = processes.ROOT / "shards/demo"
SHORT = ("data.timeout=0.2", "data.streams=1", "train.log_every=1000", "checkpoint.every=1000")
"""Nothing but a lost source makes the ranks speak to each other early."""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks from the folder."""
    run_dir = tmp_path_factory.mktemp("remote") / "local"
    validation = f"data.validation={DEMO}/validation"
    processes.train(
        f"run.dir={run_dir}", *SETTINGS, validation, world=2, pairs=run_dir.with_name("local-pairs")
    ).checked()
    return run_dir


def test_a_run_from_http_ends_with_the_same_bits_also_from_an_empty_cache(local: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    faults = {1: "500", 2: "cut", 3: "corrupt"}
    # index.json has no digest of its own, so that damage in it cannot be told from another version
    with serve(DEMO, lambda name, count: None if (name, count) == ("index.json", 3) else faults.get(count)) as server:
        urls = (f"data.shards={server.url}/train", f"data.validation={server.url}/validation", "data.timeout=2")
        settings = (f"run.dir={run_dir}", *SETTINGS, *urls)
        died = processes.train(*settings, f"data.cache={tmp_path / 'one'}", world=2, kill_at=4 * BATCH)
        assert died.codes[0] == died.codes[1] == -signal.SIGKILL, died
        pairs = tmp_path / "pairs"
        processes.train(*settings, f"data.cache={tmp_path / 'two'}", world=2, pairs=pairs).checked()
    expected = processes.pairs_by_position(local.with_name("local-pairs"))
    assert processes.pairs_by_position(pairs) == {p: pair for p, pair in expected.items() if p >= 3 * BATCH}
    for name in ("last.safetensors", "best.safetensors"):
        assert (run_dir / name).read_bytes() == (local / name).read_bytes(), name


def test_a_run_from_s3_sees_the_same_pairs(local: Path, tmp_path: Path) -> None:
    with s3() as variables:
        upload(DEMO, "bucket")
        urls = ("data.shards=s3://bucket/train", "data.validation=s3://bucket/validation")
        settings = (f"run.dir={tmp_path / 'run'}", *SETTINGS, *urls, f"data.cache={tmp_path / 'cache'}")
        processes.train(*settings, variables=variables, pairs=tmp_path / "pairs").checked()
    assert processes.pairs_by_position(tmp_path / "pairs") == processes.pairs_by_position(
        local.with_name("local-pairs")
    )


def test_two_machines_fill_caches_of_their_own(local: Path, tmp_path: Path) -> None:
    machines = [{"TMPDIR": str(tmp_path / name)} for name in ("one", "two")]
    for machine in machines:
        Path(machine["TMPDIR"]).mkdir()
    with serve(DEMO, lambda name, count: "cut" if name.endswith(".tar") and count == 1 else None) as server:
        urls = (f"data.shards={server.url}/train", f"data.validation={server.url}/validation", "data.timeout=2")
        settings = (f"run.dir={tmp_path / 'run'}", *SETTINGS, *urls)
        processes.train(*settings, world=2, machines=machines, pairs=tmp_path / "pairs").checked()
    assert processes.pairs_by_position(tmp_path / "pairs") == processes.pairs_by_position(
        local.with_name("local-pairs")
    )
    cached = [{path.name for path in Path(machine["TMPDIR"]).rglob("*.tar")} for machine in machines]
    assert all(cached), "each machine reads from its own disk"
    for name, count in server.asked.items():
        if name.endswith(".tar"):
            copies = sum(tar.endswith(name) for tars in cached for tar in tars)
            assert count <= copies + 1, "once a machine, and again after the cut"


def message_of(finished: processes.Finished, run_dir: Path) -> str:
    """Return the one message of a run that all ranks refused, without anything left of it."""
    assert finished.codes == [2, 2], finished
    messages = [line for err in finished.err for line in err.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, finished.err
    assert "Traceback" not in "".join(finished.err)
    assert not list(run_dir.rglob("*.safetensors"))
    assert not (run_dir / "checkpoints").exists()
    return messages[0].removeprefix("error: ")


def small_shards(make_shards: Callable[..., Path]) -> Path:
    """Four samples in a shard: with one stream, every rank has a shard of its own in every batch."""
    return make_shards(64, shard_samples=4)


@pytest.mark.parametrize(("rank", "workers"), [(0, 0), (1, 2)])
def test_a_shard_that_one_rank_cannot_have(
    make_shards: Callable[..., Path], tmp_path: Path, rank: int, workers: int
) -> None:
    folder, run_dir = small_shards(make_shards), tmp_path / "run"
    index = Index([folder])
    number = Order(index.sizes, 0, BATCH, streams=1).batch(3 * BATCH)[rank * 4]
    shard = index.shards[int(np.searchsorted(np.cumsum(index.sizes), number, "right"))].name
    with serve(folder, lambda name, count: "500" if name == shard else None) as server:
        settings = (f"data.shards={server.url}", f"data.cache={tmp_path / 'cache'}", f"data.workers={workers}")
        finished = processes.train(f"run.dir={run_dir}", *settings, *SHORT, "train.steps=2000", world=2, timeout=60)
    message = message_of(finished, run_dir)
    assert f"{server.url}/{shard}: cannot be fetched (" in message
    assert (run_dir / "error.txt").read_text().strip() == message
    assert "replaced an unreadable sample" not in "".join(finished.out)


@pytest.mark.parametrize("fault", ["500", "silent"])
def test_a_source_that_goes_in_the_middle(make_shards: Callable[..., Path], tmp_path: Path, fault: str) -> None:
    folder, run_dir = small_shards(make_shards), tmp_path / "run"

    def goes(name: str, count: int) -> str | None:
        return fault if sum(server.asked.values()) > 16 else None

    with serve(folder, goes) as server:
        settings = (f"data.shards={server.url}", f"data.cache={tmp_path / 'cache'}", "data.workers=1")
        finished = processes.train(f"run.dir={run_dir}", *settings, *SHORT, "train.steps=2000", world=2, timeout=60)
    message = message_of(finished, run_dir)
    assert f"{server.url}/shard-" in message
    assert (run_dir / "error.txt").read_text().strip() == message


def test_a_source_that_one_rank_does_not_find_at_the_start(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    with serve(small_shards(make_shards), lambda name, count: "500" if count > 1 else None) as server:
        settings = (f"data.shards={server.url}", f"data.cache={tmp_path / 'cache'}", *SHORT)
        finished = processes.train(f"run.dir={tmp_path / 'run'}", *settings, world=2, timeout=60)
    assert f"{server.url}/index.json: cannot be fetched (" in message_of(finished, tmp_path / "run")


def test_a_validation_set_that_goes(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with serve(DEMO / "validation", lambda name, count: "500" if name.endswith(".tar") else None) as server:
        settings = (f"data.validation={server.url}", f"data.cache={tmp_path / 'cache'}", "validate.every=2")
        finished = processes.train(f"run.dir={run_dir}", *settings, *SHORT, "train.steps=8", world=2, timeout=60)
    assert f"{server.url}/shard-000000.tar: cannot be fetched (" in message_of(finished, run_dir)
