import contextlib
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import fsspec.implementations.http  # its import would count as silence of the first server
import numpy as np
import pytest
import torch
from support.servers import Fault, s3, serve, upload

from n2n_dist.data.batch import Batch
from n2n_dist.data.dataset import CropDataset, DataSettings, open_data
from n2n_dist.data.loader import make_loader
from n2n_dist.data.order import Order
from n2n_dist.data.prefetch import Prefetcher
from n2n_dist.data.sampler import RankOrder
from n2n_dist.errors import UserError
from n2n_dist.pairs import Synthetic
from n2n_dist.shards.cache import TRIES, Cache, RemoteFile, SourceUnavailableError, location
from n2n_dist.shards.index import Index

SHORT = 1.0
"""Seconds of silence that are enough here; a source that fails at once is given up after about as long."""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Six files of 1000 bytes."""
    (tmp_path / "files").mkdir()
    for number in range(6):
        (tmp_path / "files" / f"{number}.tar").write_bytes(np.random.default_rng(number).bytes(1000))
    return tmp_path / "files"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", timeout=SHORT)


def remote(url: str, path: Path, cache: Cache) -> RemoteFile:
    data = path.read_bytes()
    return RemoteFile(f"{url}/{path.name}", len(data), hashlib.sha256(data).hexdigest(), cache)


def kept(cache: Cache) -> set[str]:
    """Names of the files in a cache, temporary ones too."""
    return {path.name.partition("-")[2] for path in cache.folder.iterdir() if path.is_file()} - {""}


def read(file: RemoteFile) -> bytes:
    with file.open() as opened:
        return opened.read()


def test_a_url_is_told_from_a_folder() -> None:
    assert location("shards/mine/") == Path("shards/mine")
    assert location("s3://bucket/mine/") == "s3://bucket/mine"
    assert location("https://host/mine") == "https://host/mine"


def test_a_file_is_downloaded_once_and_stays(files: Path, cache: Cache) -> None:
    with serve(files) as server:
        file = remote(server.url, files / "0.tar", cache)
        for _ in range(3):
            assert read(file) == (files / "0.tar").read_bytes()
    assert read(file) == (files / "0.tar").read_bytes(), "without the server"
    assert server.asked == {"0.tar": 1}
    assert str(file) == f"{server.url}/0.tar"


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_any_file_system_will_do(files: Path, cache: Cache, scheme: str) -> None:
    url = f"file://{files}"
    if scheme == "memory":
        fsspec.filesystem("memory").pipe_file("/files/0.tar", (files / "0.tar").read_bytes())
        url = "memory://files"
    assert read(remote(url, files / "0.tar", cache)) == (files / "0.tar").read_bytes()
    assert kept(cache) == {"0.tar"}


@pytest.mark.parametrize("fault", ["500", "cut", "corrupt", "short", "long", "late", "silent", "stuck"])
def test_a_fault_that_passes_is_overcome(files: Path, cache: Cache, fault: str) -> None:
    with serve(files, lambda name, count: fault if count <= 2 else None) as server:
        assert read(remote(server.url, files / "0.tar", cache)) == (files / "0.tar").read_bytes()
    assert server.asked["0.tar"] == (1 if fault == "late" else 3)
    assert kept(cache) == {"0.tar"}


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("500", "500"),
        ("cut", "ContentLengthError|ClientPayloadError"),
        ("corrupt", "its sha256 is not that of the index"),
        ("short", "999 bytes instead of 1,000"),
        ("long", "more than 1,000 bytes"),
        ("silent", "silent for 0.1 s|Timeout"),
    ],
)
def test_a_source_that_stays_broken_is_given_up_by_name(files: Path, tmp_path: Path, fault: str, cause: str) -> None:
    cache = Cache(tmp_path / "cache", timeout=0.1)
    with serve(files, lambda name, count: fault) as server:
        file = remote(server.url, files / "0.tar", cache)
        with pytest.raises(
            SourceUnavailableError, match=rf"{file.url}: cannot be fetched \(.*({cause}).*; tries: 6\); look at "
        ):
            cache.fetch(file)
    assert server.asked["0.tar"] == TRIES
    assert kept(cache) == set()


def test_what_is_not_there_is_not_asked_for_again(files: Path, cache: Cache) -> None:
    with serve(files) as server:
        gone = RemoteFile(f"{server.url}/none.tar", 5, "0" * 64, cache)
        with pytest.raises(
            SourceUnavailableError, match=rf"{gone.url}: cannot be fetched \(FileNotFoundError.*tries: 1\)"
        ):
            cache.fetch(gone)
    assert server.asked["none.tar"] == 1
    with pytest.raises(SourceUnavailableError, match=r"cannot be fetched .*ConnectorError"):
        cache.fetch(gone)  # nobody listens there any more


def test_a_protocol_that_is_unknown_or_not_installed_is_refused(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceUnavailableError, match=r"nonsense://a: cannot be fetched \(.*not known: nonsense"):
        cache.read("nonsense://a")
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(SourceUnavailableError, match=r'http://a/b: .*aiohttp.*pip install -e "\.\[remote\]"'):
        cache.read("http://a/b")


def test_a_cache_that_cannot_be_written_is_named(files: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "cache")
    file = remote(f"file://{files}", files / "0.tar", cache)
    for use in (lambda: cache.fetch(file), lambda: cache.read(file.url)):
        with pytest.raises(
            SourceUnavailableError, match=f"data.cache {cache.folder}: cannot be written .*choose another folder"
        ):
            use()


def test_a_full_disk_is_no_fault_of_the_source(files: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(Cache, "_make_room", lambda self, size, part: part.symlink_to("/dev/full"))
    with (
        serve(files) as server,
        pytest.raises(SourceUnavailableError, match=r"data.cache .*No space left.*data.cache_gb"),
    ):
        cache.fetch(remote(server.url, files / "0.tar", cache))
    assert server.asked["0.tar"] == 1


def test_the_default_folder_is_of_this_user_and_follows_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/scratch/job")
    assert DataSettings().open_cache().folder == Path(f"/scratch/job/n2n_dist-{os.getuid()}")
    monkeypatch.delenv("TMPDIR")
    assert DataSettings().open_cache().folder == Path(f"/var/tmp/n2n_dist-{os.getuid()}")
    cache = Cache()
    monkeypatch.setattr(os, "getuid", lambda: -1)
    cache.folder = tmp_path
    with pytest.raises(
        SourceUnavailableError, match=rf"data.cache {tmp_path}: cannot be written \(it belongs to somebody else\)"
    ):
        cache.read("memory://a")
    chosen = DataSettings(cache="here", cache_gb=0.5, timeout=3).open_cache()
    assert (chosen.folder, chosen.limit, chosen.timeout) == (Path("here"), 1 << 29, 3)


def test_past_the_limit_what_was_used_longest_ago_goes(files: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit=3500)
    file = {n: remote(f"file://{files}", files / f"{n}.tar", cache) for n in range(6)}
    for number, left in ((0, "0"), (1, "01"), (2, "012"), (0, "012"), (3, "023"), (2, "023"), (4, "234"), (0, "024")):
        read(file[number])
        assert kept(cache) == {f"{n}.tar" for n in left}, number
        time.sleep(0.002)
    big = RemoteFile("file:///big.tar", 3501, "0" * 64, cache)
    with pytest.raises(
        SourceUnavailableError, match=r"data.cache_gb .*file:///big.tar alone takes 3,501 bytes; give more"
    ):
        cache.fetch(big)
    assert len(kept(cache)) == 3


def test_downloads_under_way_count_for_the_limit(files: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit=2500)
    with serve(files, lambda name, count: "slow" if name == "1.tar" else None) as server:
        file = [remote(server.url, files / f"{n}.tar", cache) for n in range(3)]
        cache.fetch(file[0])
        slow = threading.Thread(target=cache.fetch, args=(file[1],))
        slow.start()
        while server.asked["1.tar"] == 0:
            time.sleep(0.01)
        cache.fetch(file[2])  # 0 has to go, although only half of 1 is there yet
        assert "0.tar" not in kept(cache)
        slow.join()
    assert kept(cache) == {"1.tar", "2.tar"}


def test_a_copy_that_another_process_removes_is_fetched_again(files: Path, cache: Cache) -> None:
    file = remote(f"file://{files}", files / "0.tar", cache)
    stop = threading.Event()

    def remove() -> None:
        while not stop.is_set():
            for path in cache.folder.glob("*.tar"):
                path.unlink(missing_ok=True)

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        assert all(read(file) == (files / "0.tar").read_bytes() for _ in range(200))
    finally:
        stop.set()
        remover.join()


def test_a_copy_of_another_size_is_fetched_again(files: Path, cache: Cache) -> None:
    file = remote(f"file://{files}", files / "0.tar", cache)
    cache.fetch(file).write_bytes(b"half")
    assert read(file) == (files / "0.tar").read_bytes()


def started(file: RemoteFile) -> subprocess.Popen:
    """Fetch a file in a process of its own."""
    program = (
        "import sys; from pathlib import Path; from n2n_dist.shards.cache import Cache, RemoteFile; "
        f"cache = Cache(Path({str(file.cache.folder)!r}), timeout={file.cache.timeout}); "
        f"cache.fetch(RemoteFile({file.url!r}, {file.bytes}, {file.sha256!r}, cache))"
    )
    return subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)


def test_two_processes_download_a_file_once(files: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", timeout=10)
    with serve(files, lambda name, count: "slow") as server:
        file = remote(server.url, files / "0.tar", cache)
        both = [started(file), started(file)]
        assert [process.wait() for process in both] == [0, 0], [process.communicate()[1] for process in both]
    assert server.asked == {"0.tar": 1}


def test_who_has_waited_for_a_failed_download_does_not_try_it_again(files: Path, cache: Cache) -> None:
    refusals = []
    with serve(files, lambda name, count: "500") as server:
        file = remote(server.url, files / "0.tar", cache)

        def fetch() -> None:
            try:
                cache.fetch(file)
            except SourceUnavailableError as refusal:
                refusals.append(str(refusal))

        threads = [threading.Thread(target=fetch) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refusals) == 4
        assert len(set(refusals)) == 1
        assert server.asked["0.tar"] == TRIES
        server.fault = lambda name, count: None
        assert read(file) == (files / "0.tar").read_bytes(), "asked later, it is tried anew"


def test_a_process_killed_in_a_download_leaves_nothing_that_is_used(files: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit=1500, timeout=10)
    with serve(files, lambda name, count: "stuck" if count == 1 else None) as server:
        file, other = (remote(server.url, files / f"{n}.tar", cache) for n in range(2))
        with started(file) as process:
            while not any(path.suffix == ".part" for path in cache.folder.glob("*")):
                time.sleep(0.02)
            while server.asked["0.tar"] == 0:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        assert kept(cache) - {"0.tar"}, "the half file is still there"
        server.fault = lambda name, count: None
        assert read(other) == (files / "1.tar").read_bytes()
        assert kept(cache) == {"1.tar"}, "and takes no room"
        assert read(file) == (files / "0.tar").read_bytes()


def test_what_others_keep_in_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    for name in ("my-thesis.tex", "movie.mkv.1.2.part", "down.part"):
        (tmp_path / "cache" / name).write_bytes(bytes(1000))
    (tmp_path / "a").write_bytes(bytes(900))
    cache = Cache(tmp_path / "cache", limit=1000)
    file = RemoteFile(f"file://{tmp_path}/a", 900, hashlib.sha256(bytes(900)).hexdigest(), cache)
    assert cache.fetch(file).read_bytes() == bytes(900)
    assert {"my-thesis.tex", "movie.mkv.1.2.part", "down.part"} <= {path.name for path in cache.folder.iterdir()}


# shards


def batches(index: Index, count: int, workers: int = 0, ahead: bool = False, seen: int = 0) -> list[Batch]:
    """Load from the order on, as a run of one rank would."""
    order = Order(index.sizes, 0, 8, streams=2)
    dataset = CropDataset(index, 0, 16, Synthetic())
    loader = make_loader(dataset, RankOrder(order, seen, 0, 1, 8), workers, torch.device("cpu"))
    prefetcher = Prefetcher(index, order, seen, range(8))
    if ahead:
        prefetcher.start()
    found = []
    for batch in itertools.islice(loader, count):
        found.append(batch)
        prefetcher.reached += 8
        time.sleep(0.02 if ahead else 0)
    prefetcher.stopped.set()
    return found


def assert_equal(one: list[Batch], other: list[Batch]) -> None:
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.positions, b.positions)
        assert np.array_equal(a.samples, b.samples)
        assert torch.equal(a.pixels, b.pixels)
        assert a.bad == b.bad == []


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_from_a_url_are_those_of_the_folder_within_the_limit(
    make_shards: Callable[..., Path], tmp_path: Path, workers: int
) -> None:
    folder = make_shards(40, shard_samples=4)
    local = batches(Index([folder]), 15)
    shard = sum(path.stat().st_size for path in folder.glob("shard-000000.*"))
    cache = Cache(tmp_path / "cache", limit=5 * shard)
    largest, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            size = 0
            for path in cache.folder.glob("*-*"):
                with contextlib.suppress(FileNotFoundError):
                    size += path.stat().st_size
            largest[0] = max(largest[0], size)

    with serve(folder, lambda name, count: "late" if name == "shard-000003.tar" else None) as server:
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            assert_equal(batches(Index([server.url], cache), 15, workers, ahead=True), local)
        finally:
            stop.set()
            watcher.join()
    assert 3 * shard < largest[0] <= cache.limit
    tars = {name: count for name, count in server.asked.items() if name.endswith(".tar")}
    assert len(tars) == 10
    assert sum(tars.values()) < 60, "fifteen batches walk through three epochs of ten shards"


@pytest.fixture(scope="module")
def bucket_server() -> Iterator[None]:
    with s3():
        yield


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("bucket_server")
def test_crops_from_s3_are_those_of_the_folder(make_shards: Callable[..., Path], tmp_path: Path, workers: int) -> None:
    folder, bucket = make_shards(12, shard_samples=4), f"bucket{workers}"
    upload(folder, bucket)
    index = Index([f"s3://{bucket}"], Cache(tmp_path / "cache", timeout=10))
    assert index.fingerprint == Index([folder]).fingerprint
    assert_equal(batches(index, 3, workers, ahead=True), batches(Index([folder]), 3))
    with pytest.raises(
        SourceUnavailableError, match=rf"s3://{bucket}/none/index.json: cannot be fetched \(FileNotFoundError"
    ):
        Index([f"s3://{bucket}/none"], index.cache)


def test_folders_and_urls_are_one_set(make_shards: Callable[..., Path], cache: Cache) -> None:
    one, two = make_shards(8, "one", shard_samples=4), make_shards(8, "two", shard_samples=4)
    mixed = Index([one, f"file://{two}"], cache)
    assert_equal(batches(mixed, 4, ahead=True), batches(Index([one, two]), 4))
    assert len([name for name in kept(cache) if name.endswith(".tar")]) == 2, "what lies on this machine is not copied"
    assert (Index([one]).remote, mixed.remote) == (False, True)


def test_a_cache_too_small_for_what_is_in_use_at_once_is_refused(
    make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_shards(16, shard_samples=2)
    settings = DataSettings(f"file://{folder}", cache=str(tmp_path / "cache"), batch=4, crop=16, cache_gb=2e-5)
    with pytest.raises(
        UserError, match=r"data.cache_gb 2e-05: 4 shards are in use at once .* takes 9\.7\d?e-05; give more"
    ):
        open_data(settings, 0, 3, Synthetic(), False, range(4))
    settings.cache_gb = 5e-5
    open_data(settings, 0, 3, Synthetic(), False, range(1))  # a machine of several reads less
    settings.shards = str(folder)
    open_data(settings, 0, 3, Synthetic(), False, range(4))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", "../outside.tar"),
        ("name", "/outside.tar"),
        ("name", "a/b.tar"),
        ("sha256", "../../outside"),
        ("index_sha256", "0" * 63),
        ("bytes", -1),
        ("samples", 0),
        ("samples", "many"),
        ("smallest", [0, 5]),
    ],
)
def test_an_index_from_elsewhere_names_no_file_outside(
    make_shards: Callable[..., Path], cache: Cache, name: str, value: object
) -> None:
    folder = make_shards(2)
    content = json.loads((folder / "index.json").read_text())
    content["shards"][0][name] = value
    (folder / "index.json").write_text(json.dumps(content))
    for place in (folder, f"file://{folder}"):
        with pytest.raises(UserError, match=r"index\.json: not an index of this version"):
            Index([place], cache)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_that_goes_gives_zeros_and_its_message_without_waiting_for_each_sample(
    make_shards: Callable[..., Path], tmp_path: Path, workers: int
) -> None:
    folder = make_shards(40, shard_samples=4)
    cache = Cache(tmp_path / "cache", timeout=SHORT)
    gone: Fault = lambda name, count: "500" if name == "shard-000005.tar" else None  # noqa: E731
    with serve(folder, gone) as server:
        begin = time.monotonic()
        found = batches(Index([server.url], cache), 12, workers)
        seconds = time.monotonic() - begin
    bad = [message for batch in found for message in batch.bad]
    assert bad
    for message in bad:
        assert isinstance(message, SourceUnavailableError)
        assert f"{server.url}/shard-000005.tar: cannot be fetched" in str(message)
    first = next(number for number, batch in enumerate(found) if batch.bad)
    assert_equal(found[:first], batches(Index([folder]), first))
    assert torch.count_nonzero(found[-2].pixels) == 0 or torch.count_nonzero(found[-1].pixels) == 0
    assert seconds < 30 * SHORT, "60 crops or more, each of which would wait as long as the first"
