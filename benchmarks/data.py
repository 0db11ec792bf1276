"""Speed and memory of the loader, against what else could feed the training, on the same images in one run.

Speed is that of one core, worker and training process together: time is what the processor spent on the two, so
that others on the machine do not enter. On a quiet core it is the time of the clock. Linux only.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import webdataset

from benchmarks.building import building, write_photographs
from benchmarks.encodings import encodings
from benchmarks.figures import Figure
from benchmarks.scale import memory, scale
from n2n_dist.building.build import build
from n2n_dist.building.plan import Options
from n2n_dist.config import load
from n2n_dist.data.dataset import CropDataset
from n2n_dist.data.loader import make_loader
from n2n_dist.data.order import Order
from n2n_dist.data.sampler import RankOrder
from n2n_dist.images.codecs import decode
from n2n_dist.pairs import Synthetic
from n2n_dist.shards.index import Index
from n2n_dist.shards.reading import read_window

ENCODINGS = ("npy", "png", "webp")
SECONDS = 1.0
"""Time of one measurement."""
CPU = torch.device("cpu")
Way = Callable[[], int]
"""Does some work and returns how many crops it gave."""


def data(source: str, settings: Sequence[str], images: Path | None, rounds: int) -> Iterator[Figure]:
    """Run all comparisons, but for building on one core, with one worker; default images are mosaics of demo tiles."""
    config = load(source, settings)
    crop, batch = config.data.crop, config.data.batch
    with tempfile.TemporaryDirectory() as name, _one_core():
        folder = Path(name)
        write_photographs(images, folder / "photographs")
        for encoding in ENCODINGS:
            build(folder / "photographs", folder / encoding, Options(encoding=encoding))
        yield from _throughput(folder, crop, batch, rounds)
        yield from _stages(folder / "npy", crop, batch)
        yield from _stages(folder / "webp", crop, batch)
        yield from encodings(Index([folder / "npy"]))
        yield from memory(folder)
    yield from building(images, rounds)
    yield from scale()


def _throughput(folder: Path, crop: int, batch: int, rounds: int) -> Iterator[Figure]:
    ways = {f"loader, {encoding}": _loader(folder / encoding, crop, batch) for encoding in ENCODINGS}
    for encoding in ("npy", "png"):
        ways[f"webdataset, {encoding}"] = _webdataset(folder / encoding, encoding, crop, batch)
    ways["folder of PNG files"] = _photographs(folder / "photographs", crop)
    ways |= {f"bare read + decode, {encoding}": _bare(folder / encoding, batch) for encoding in ("png", "webp")}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            rates[name].append(_rate(way))
    for name, values in rates.items():
        yield Figure(name, values, "crops/s", f"crops of {crop}, batches of {batch}")
    for ours, other, wanted in (
        ("loader, npy", "webdataset, png", 20),
        ("loader, npy", "webdataset, npy", 2),
        ("loader, npy", "folder of PNG files", 300),
        ("loader, png", "bare read + decode, png", 0.9),
        ("loader, webp", "bare read + decode, webp", 0.9),
    ):
        ratios = [a / b for a, b in zip(rates[ours], rates[other], strict=True)]
        yield Figure(f"{ours} / {other}", ratios, note=f"wanted {wanted}")


def _loader(folder: Path, crop: int, batch: int) -> Way:
    index = Index([folder])
    batches = RankOrder(Order(index.sizes, 0, batch), 0, 0, 1, batch)
    return _counted(make_loader(CropDataset(index, 0, crop, Synthetic()), batches, workers=1, device=CPU))


def _webdataset(folder: Path, encoding: str, crop: int, batch: int) -> Way:
    """Decode, shuffle in a buffer, crop; without the JSON members, which it has no use for."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    pipeline = webdataset.WebDataset(urls, shardshuffle=len(urls), select_files=lambda name: not name.endswith("json"))
    pipeline = pipeline.repeat().shuffle(1000).decode("rgb8").to_tuple(f"0.{encoding}")
    pipeline = pipeline.map(lambda sample: _random_crop(sample[0], crop)).batched(batch, collation_fn=np.stack)
    return _counted(iter(torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=1, prefetch_factor=4)))


def _photographs(folder: Path, crop: int) -> Way:
    """Read a whole photograph for every crop, one a batch: more would take seconds."""
    loader = torch.utils.data.DataLoader(_Photographs(folder, crop), batch_size=1, num_workers=1, prefetch_factor=4)
    return _counted(itertools.chain.from_iterable(itertools.repeat(loader)))


class _Photographs(torch.utils.data.Dataset):
    def __init__(self, folder: Path, crop: int) -> None:
        self.crop = crop
        self.files = sorted(folder.iterdir()) * 1000

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> np.ndarray:
        return _random_crop(np.asarray(PIL.Image.open(self.files[number])), self.crop)


def _random_crop(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return a crop in one of eight symmetries, uint8 [3, side, side], as the loader does."""
    generator = np.random.default_rng()
    top, left = (int(generator.integers(length - side + 1)) for length in pixels.shape[:2])
    crop = np.rot90(pixels[top : top + side, left : left + side], int(generator.integers(4)))
    crop = crop[:, ::-1] if generator.integers(2) else crop
    return np.ascontiguousarray(crop.transpose(2, 0, 1))


def _bare(folder: Path, batch: int) -> Way:
    """Read and decode whole tiles in a row, in this process, and do nothing with them."""
    index = Index([folder])
    found = [index.sample(number) for number in range(len(index))]
    members = [(os.open(str(tar), os.O_RDONLY), sample.captures[0]) for tar, sample in found]

    def tiles() -> Iterator[np.ndarray]:
        for number in itertools.cycle(np.random.default_rng(0).permutation(len(members)).tolist()):
            file, member = members[number]
            yield decode(os.pread(file, member.size, member.offset), f".{member.extension}")

    endless = tiles()
    return lambda: len(list(itertools.islice(endless, batch)))


def _counted(batches: Iterator) -> Way:
    def way() -> int:
        batch = next(batches)
        return len(getattr(batch, "pixels", batch))

    return way


def _rate(way: Way) -> float:
    """Return crops a second, without what was read ahead and what the workers of other ways still read."""
    _wait_for_idle_workers()
    for _ in range(8):
        way()
    start, crops = _processor_time(), 0
    while (passed := _processor_time() - start) < SECONDS:
        crops += way()
    return crops / passed


def _wait_for_idle_workers() -> None:
    ticks = -1
    while ticks != (ticks := _ticks_of_workers()):
        time.sleep(0.3)


def _processor_time() -> float:
    """Return the seconds that the processor spent on this process and on its workers."""
    return time.process_time() + _ticks_of_workers() / os.sysconf("SC_CLK_TCK")


def _ticks_of_workers() -> int:
    ticks = 0
    for child in multiprocessing.active_children():
        # utime and stime (proc_pid_stat(5)), counted behind the name, which may hold blanks
        ticks += sum(map(int, Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks


def _stages(folder: Path, crop: int, batch_size: int) -> Iterator[Figure]:
    """Share of each stage in the time of a crop, and what the training device adds."""
    index = Index([folder])
    order = RankOrder(Order(index.sizes, 0, batch_size), 0, 0, 1, batch_size)
    dataset = CropDataset(index, 0, crop, Synthetic())
    cuts = list(itertools.islice(order, 100))
    numbers = [number for cut in cuts for _, number in cut]
    found = [index.sample(number) for number in numbers]
    loader = make_loader(dataset, order, workers=1, device=CPU)
    batch = next(loader)

    def per_crop(action: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            start = _processor_time()
            action()
            times.append(_processor_time() - start)
        return statistics.median(times) / len(numbers) * 1e6

    batches = iter(order)
    parts = {"order": per_crop(lambda: [next(batches) for _ in cuts])}
    parts["index"] = per_crop(lambda: [index.sample(number) for number in numbers])
    window = (3, 5, crop, crop)
    parts["read and decode"] = per_crop(lambda: [read_window(tar, s, s.captures[0], window) for tar, s in found])
    here = per_crop(lambda: [dataset[cut] for cut in cuts])
    parts["draws and symmetry"] = here - parts["index"] - parts["read and decode"]
    parts["worker to training"] = per_crop(lambda: [next(loader) for _ in cuts]) - here - parts["order"]
    total = sum(parts.values())
    yield Figure(f"{folder.name}, a crop", [total], "us")
    for name, value in parts.items():
        yield Figure(f"{folder.name}, share of {name}", [100 * value / total], "%")
    normalising = per_crop(lambda: [batch.normalised() for _ in cuts])
    yield Figure(f"{folder.name}, a crop normalised by the training", [normalising], "us")


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Keep this process, and the workers that it starts, on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
