"""Speed and memory of the loader, against what else could feed the training, on the same images in one run.

Speed is that of one core, worker and training process together: time is what the processor spent on the two, so
that others on the machine do not enter. On a quiet core it is the time of the clock. Linux only.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import tifffile
import torch
import webdataset

from n2n_dist.benchmark.scale import memory, scale
from n2n_dist.data.build import build, cut
from n2n_dist.data.dataset import CropDataset, RankOrder
from n2n_dist.data.image import decode, encode, find_images, read_image, write_image
from n2n_dist.data.loader import make_loader
from n2n_dist.data.order import Order
from n2n_dist.data.plan import Options
from n2n_dist.data.scenes import Grouping, find_scenes
from n2n_dist.data.shard import Index, read_window
from n2n_dist.errors import Refusal

CROP, BATCH = 128, 32
ENCODINGS = ("npy", "png", "webp")
IMAGES = 16
"""Photographs that are used of a folder: the largest ones."""
SECONDS = 1.0
"""Time of one measurement."""
CPU = torch.device("cpu")
Way = Callable[[], int]
"""Does some work and returns how many crops it gave."""


def data(rounds: int, images: Path | None) -> None:
    """Run all comparisons on one core, with one worker; default images are mosaics of the demo tiles."""
    with tempfile.TemporaryDirectory() as name, _one_core():
        folder = Path(name)
        count = _write_photographs(images, folder / "photographs")
        print(f"data: {count} photographs ({images or 'mosaics of shards/demo'}), crops of {CROP}, batches of {BATCH}")
        for encoding in ENCODINGS:
            build(folder / "photographs", folder / encoding, Options(encoding=encoding))
        _throughput(folder, rounds)
        _stages(folder / "npy")
        _stages(folder / "webp")
        _encodings(Index([folder / "npy"]))
        memory(folder)
    building(images, rounds)
    scale()


def building(images: Path | None, rounds: int) -> None:
    """Build shards in one process, against reading, cutting and encoding the same images and no more."""
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_photographs(images, folder / "photographs")
        scenes = find_scenes(folder / "photographs", Grouping()).scenes
        for number in range(rounds):
            start = time.perf_counter()
            for scene in scenes:
                cut(folder / "photographs", 0, scene, Options())
            middle = time.perf_counter()
            build(folder / "photographs", folder / f"{number}", Options())
            ratios.append((middle - start) / (time.perf_counter() - middle))
            shutil.rmtree(folder / f"{number}")
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"  decode + encode / building: {statistics.median(ratios):.2f} ({spread}), wanted 0.9")


def _write_photographs(images: Path | None, folder: Path) -> int:
    if images is None:
        tiles = _tiles(Index([Path("shards/demo/train")]))
        for seed in range(4):
            order = np.random.default_rng(seed).permutation(64)
            rows = [np.concatenate([tiles[n] for n in order[start : start + 8]], 1) for start in range(0, 64, 8)]
            write_image(folder / f"{seed}.png", np.concatenate(rows))
        return 4
    count = 0
    for path in sorted(find_images(images), key=lambda path: -path.stat().st_size):
        pixels = read_image(path).pixels
        if pixels.dtype == np.uint8 and pixels.shape[2] == 3 and min(pixels.shape[:2]) >= 256:
            write_image(folder / f"{count:02d}.png", pixels)
            count += 1
        if count == IMAGES:
            break
    if not count:
        raise Refusal(f"--images {images}: no 8-bit RGB image of 256x256 or more in it")
    return count


def _tiles(index: Index) -> list[np.ndarray]:
    """Return all tiles of shards as they are stored."""
    found = (index.sample(number) for number in range(len(index)))
    return [read_window(tar, sample, sample.captures[0], (0, 0, *sample.shape[:2])) for tar, sample in found]


def _throughput(folder: Path, rounds: int) -> None:
    ways: dict[str, Way] = {f"loader, {encoding}": _loader(folder / encoding) for encoding in ENCODINGS}
    ways |= {f"webdataset, {encoding}": _webdataset(folder / encoding, encoding) for encoding in ("npy", "png")}
    ways["folder of PNG files"] = _photographs(folder / "photographs")
    ways |= {f"bare read + decode, {encoding}": _bare(folder / encoding) for encoding in ("png", "webp")}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            rates[name].append(_rate(way))
    for name, values in rates.items():
        print(f"  {name:26} {statistics.median(values):8.0f} crops a second ({min(values):.0f} to {max(values):.0f})")
    for ours, other, wanted in (
        ("loader, npy", "webdataset, png", 20),
        ("loader, npy", "webdataset, npy", 2),
        ("loader, npy", "folder of PNG files", 300),
        ("loader, png", "bare read + decode, png", 0.9),
        ("loader, webp", "bare read + decode, webp", 0.9),
    ):
        ratios = [a / b for a, b in zip(rates[ours], rates[other], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"  {ours} / {other}: {statistics.median(ratios):.2f} ({spread}), wanted {wanted}")


def _loader(folder: Path) -> Way:
    index = Index([folder])
    places = RankOrder(Order(index.sizes, 0, BATCH), 0, 0, 1, BATCH)
    return _counted(make_loader(CropDataset(index, 0, CROP, "image"), places, workers=1, device=CPU))


def _webdataset(folder: Path, encoding: str) -> Way:
    """Decode, shuffle in a buffer, crop; without the JSON members, which it has no use for."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    pipeline = webdataset.WebDataset(urls, shardshuffle=len(urls), select_files=lambda name: not name.endswith("json"))
    pipeline = pipeline.repeat().shuffle(1000).decode("rgb8").to_tuple(f"0.{encoding}")
    pipeline = pipeline.map(lambda sample: _random_crop(sample[0])).batched(BATCH, collation_fn=np.stack)
    return _counted(iter(torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=1, prefetch_factor=4)))


def _photographs(folder: Path) -> Way:
    """Read a whole photograph for every crop, one a batch: 32 would take seconds."""
    loader = torch.utils.data.DataLoader(_Photographs(folder), batch_size=1, num_workers=1, prefetch_factor=4)
    return _counted(itertools.chain.from_iterable(itertools.repeat(loader)))


class _Photographs(torch.utils.data.Dataset):
    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.iterdir()) * 1000

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> np.ndarray:
        return _random_crop(np.asarray(PIL.Image.open(self.files[number])))


def _random_crop(pixels: np.ndarray) -> np.ndarray:
    """Return a crop in one of eight symmetries, uint8 [3, CROP, CROP], as the loader does."""
    generator = np.random.default_rng()
    top, left = (int(generator.integers(length - CROP + 1)) for length in pixels.shape[:2])
    crop = np.rot90(pixels[top : top + CROP, left : left + CROP], int(generator.integers(4)))
    crop = crop[:, ::-1] if generator.integers(2) else crop
    return np.ascontiguousarray(crop.transpose(2, 0, 1))


def _bare(folder: Path) -> Way:
    """Read and decode whole tiles in a row, in this process, and do nothing with them."""
    index = Index([folder])
    found = [index.sample(number) for number in range(len(index))]
    members = [(os.open(str(tar), os.O_RDONLY), sample.captures[0]) for tar, sample in found]

    def tiles() -> Iterator[np.ndarray]:
        for number in itertools.cycle(np.random.default_rng(0).permutation(len(members)).tolist()):
            file, member = members[number]
            yield decode(os.pread(file, member.size, member.offset), f".{member.extension}")

    endless = tiles()
    return lambda: len(list(itertools.islice(endless, BATCH)))


def _counted(batches: Iterator) -> Way:
    def way() -> int:
        batch = next(batches)
        return len(getattr(batch, "pixels", batch))

    return way


def _rate(way: Way) -> float:
    """Return crops a second, without what was read ahead."""
    for _ in range(8):
        way()
    start, crops = _processor_time(), 0
    while (passed := _processor_time() - start) < SECONDS:
        crops += way()
    return crops / passed


def _processor_time() -> float:
    """Return the seconds that the processor spent on this process and on its workers."""
    ticks = 0
    for child in multiprocessing.active_children():
        # utime and stime (proc_pid_stat(5)), counted behind the name, which may hold blanks
        ticks += sum(map(int, Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _stages(folder: Path) -> None:
    """Share of each stage in the time of a crop, and what the training device adds."""
    index = Index([folder])
    order = RankOrder(Order(index.sizes, 0, BATCH), 0, 0, 1, BATCH)
    dataset = CropDataset(index, 0, CROP, "image")
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

    places = iter(order)
    parts = {"order": per_crop(lambda: [next(places) for _ in cuts])}
    parts["index"] = per_crop(lambda: [index.sample(number) for number in numbers])
    window = (3, 5, CROP, CROP)
    parts["read and decode"] = per_crop(lambda: [read_window(tar, s, s.captures[0], window) for tar, s in found])
    here = per_crop(lambda: [dataset[cut] for cut in cuts])
    parts["draws and symmetry"] = here - parts["index"] - parts["read and decode"]
    parts["worker to training"] = per_crop(lambda: [next(loader) for _ in cuts]) - here - parts["order"]
    total = sum(parts.values())
    shares = ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in parts.items())
    print(f"  stages, {folder.name}: {total:.0f} us a crop: {shares}")
    print(f"    then normalised by the training: {per_crop(lambda: [batch.normalised() for _ in cuts]):.0f} us")


def _encodings(index: Index) -> None:
    """Size and time of lossless encodings of 32 tiles: 8-bit RGB, and 16-bit grey made of the means of 2x2 pixels."""
    tiles = [tile for tile in _tiles(index) if tile.shape == (256, 256, 3)][:128:4]
    grey = [np.rint(257 * _reduced(tile @ [0.299, 0.587, 0.114])).astype(np.uint16)[..., None] for tile in tiles]

    def tiff(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        kind = "rgb" if pixels.shape[2] == 3 else "minisblack"
        tifffile.imwrite(buffer, pixels, compression="zstd", predictor=True, photometric=kind)
        return buffer.getvalue()

    def npy_rows(data: bytes) -> np.ndarray:
        return np.frombuffer(data[len(data) // 4 : 3 * len(data) // 4], np.uint8)

    codecs: dict[str, tuple[Callable, Callable]] = {
        "npy, half of the rows": (lambda pixels: encode(pixels, ".npy"), npy_rows),
        "png": (lambda pixels: encode(pixels, ".png"), lambda data: decode(data, ".png")),
        "webp": (lambda pixels: encode(pixels, ".webp"), lambda data: decode(data, ".webp")),
        "qoi": (imagecodecs.qoi_encode, imagecodecs.qoi_decode),
        "jpeg-xl, effort 1": (
            lambda p: imagecodecs.jpegxl_encode(p, lossless=True, effort=1, numthreads=1),
            lambda data: imagecodecs.jpegxl_decode(data, numthreads=1),
        ),
        "jpeg-ls": (imagecodecs.jpegls_encode, imagecodecs.jpegls_decode),
        "tiff, zstd + predictor": (tiff, lambda data: decode(data, ".tif")),
        "npy in zstd": (lambda pixels: imagecodecs.zstd_encode(encode(pixels, ".npy"), 3), imagecodecs.zstd_decode),
    }
    for kind, images in (("8-bit RGB", tiles), ("16-bit grey", grey)):
        for name, (encoder, decoder) in codecs.items():
            try:
                coded = [bytes(encoder(pixels)) for pixels in images]
            except (Refusal, ValueError):
                continue  # this encoding holds no 16-bit images
            times = [_seconds(decoder, encoded) for encoded in coded for _ in range(3)]
            share = sum(map(len, coded)) / sum(pixels.nbytes for pixels in images)
            speed = images[0].nbytes / statistics.median(times) / 1e6
            print(f"  {kind:11} {name:24} {100 * share:4.0f} % of the bytes, decoded at {speed:6.0f} MB/s")


def _reduced(values: np.ndarray) -> np.ndarray:
    """Return the means of 2x2 values."""
    height, width = values.shape
    return values.reshape(height // 2, 2, width // 2, 2).mean((1, 3))


def _seconds(decoder: Callable[[bytes], object], encoded: bytes) -> float:
    start = time.process_time()
    decoder(encoded)
    return time.process_time() - start


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
