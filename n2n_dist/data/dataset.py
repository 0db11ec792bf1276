"""Crops of a batch, read from the samples that the order chooses; damaged samples are replaced."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from n2n_dist import rng
from n2n_dist.data.order import Order
from n2n_dist.errors import UserError
from n2n_dist.images.image import Image
from n2n_dist.shards.cache import GIB, Cache, SourceUnavailableError, location
from n2n_dist.shards.index import Index
from n2n_dist.shards.reading import read_window
from n2n_dist.shards.records import Member

ATTEMPTS = 100
"""Most samples that are tried instead of a damaged one."""
SYMMETRIES = 8
"""Of a square: a crop is seen in one of them."""
SOURCES = {
    "image": ["the first capture"],
    "capture": ["a capture"],
    "captures": ["a capture", "another capture"],
    "mean": ["a capture", "the mean of all others"],
    "captures and mean": ["a capture", "another capture", "the mean of all others"],
    "supervised": ["a capture", "the clean reference"],
}
"""Images that can be read of a sample: one crop of each, all from the same window."""


@dataclass
class DataSettings:
    """Where samples come from and how they are grouped."""

    shards: Any = "shards/demo/train"
    """Folder or URL (https://, s3://, ...) of shards, or a list of them that are read as one."""
    validation: Any = None
    """Folder or URL of shards to validate on, or a mapping {name: folder}; null for no validation."""
    cache: str | None = None
    """Folder on each machine's disk for shards behind a URL; default: n2n_dist-UID in $TMPDIR, else in /var/tmp."""
    cache_gb: float = 50
    """GiB that the cache may take; shards that were used longest ago are removed."""
    timeout: float = 30
    """Seconds of silence after which a download is tried again; a source is given up after six tries."""
    crop: int = 128
    """Height and width of a training crop in pixels."""
    batch: int = 16
    """Global batch: crops in one optimiser step, over all ranks."""
    workers: int = 1
    """Loader processes on each rank; 0 reads in the training process. Does not change the samples."""
    streams: int | None = None
    """Places of the shuffled epoch that a batch mixes; divides the batch. Default: its largest divisor up to 64."""
    max_bad: float = 0.001
    """Largest tolerated share of samples that cannot be read; they are replaced and named."""

    def __post_init__(self) -> None:
        for name, smallest in (("crop", 8), ("batch", 1), ("workers", 0)):
            if getattr(self, name) < smallest:
                raise UserError(f"data.{name} {getattr(self, name)}: must be {smallest} or more")
        if self.streams is not None and self.streams < 1:
            raise UserError(f"data.streams {self.streams}: must be 1 or more")
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"data.max_bad {self.max_bad}: must be between 0 and 1")
        for name in ("cache_gb", "timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"data.{name} {getattr(self, name)}: must be above 0")
        folder_list(self.shards, "data.shards")

    def open_cache(self) -> Cache:
        """Return the cache for shards behind a URL; nothing is written before it is used."""
        return Cache(Path(self.cache) if self.cache else None, int(self.cache_gb * GIB), self.timeout)


@dataclass
class Batch:
    """Crops of one rank's slice of a global batch, as they are stored."""

    positions: np.ndarray
    """Place of each sample in the run, int64 [B]."""
    samples: np.ndarray
    """Number of each sample in the index, int64 [B]."""
    pixels: torch.Tensor
    """uint8, uint16 or float32 [B, K, C, H, W]: the K images that one of `SOURCES` lists."""
    black: np.ndarray
    """Value that means no light in each sample, float64 [B]."""
    white: np.ndarray
    """Value that means full light, float64 [B]."""
    bad: list[UserError] = field(default_factory=list)
    """One message for each sample that could not be read and was replaced; zeros where its source is unavailable."""

    def to(self, device: torch.device) -> Batch:
        """Move the pixels to `device`, a GPU by way of page-locked memory: the copy goes on after the return."""
        pixels = self.pixels.pin_memory() if device.type == "cuda" else self.pixels
        return replace(self, pixels=pixels.to(device, non_blocking=True))

    def normalised(self) -> torch.Tensor:
        """Return float32 [B, K, C, H, W] with black at 0 and white at 1, not clipped.

        The arithmetic is that of `Image.normalised`, so that the values are the same to the bit.
        """

        def level(values: np.ndarray) -> torch.Tensor:
            level = torch.from_numpy(values.astype(np.float32)).view(-1, 1, 1, 1, 1)
            return level.to(self.pixels.device, non_blocking=True)

        images = self.pixels.to(torch.float32, copy=True)
        return images.sub_(level(self.black)).div_(level(self.white - self.black))


class CropDataset(torch.utils.data.Dataset[Batch]):
    """Maps a list of (position, sample number) to a batch; a pure function of these and the seed."""

    def __init__(self, index: Index, seed: int, crop: int, source: str, epoch: int | None = None) -> None:
        """Check that every sample can give what is asked for.

        Args:
            index: the shards.
            seed: keys the crop, the flips and the choice of captures.
            crop: height and width in pixels.
            source: one of `SOURCES`. Captures take turns: in K (K - 1) epochs each of the K captures of a scene is
                the input with every other one as the target once, starting anywhere.
            epoch: positions after which the order begins anew; default: the number of samples.

        Raises:
            UserError: a shard has samples that are too small, or have no reference.

        """
        for path, shard in zip(index.paths, index.shards, strict=True):
            if min(shard.smallest) < crop:
                height, width = shard.smallest
                raise UserError(
                    f"data.crop {crop}: {path} has tiles down to {height}x{width}; lower it, or leave small images out"
                )
            if source == "supervised" and not shard.clean:
                raise UserError(f"pairs.supervised: {path} has samples without KEY.clean")
        self.index = index
        self.seed = seed
        self.crop = crop
        self.source = source
        self.epoch = epoch or len(index)
        self.source_error: SourceUnavailableError | None = None
        """Why this process reads nothing more: samples of a source that is lost are not replaced."""
        self.shape = (len(SOURCES[source]), index.shards[0].channels[0], crop, crop)

    def bytes(self, samples: int) -> int:
        """Return the memory that the crops of so many samples need, of whatever type they are."""
        return samples * math.prod(self.shape) * 4

    def __getitem__(self, samples: Sequence[tuple[int, int]]) -> Batch:
        """Read the crops of `samples`, (position, sample number) each, into memory of their own."""
        return self.read(samples, np.empty(self.bytes(len(samples)), np.uint8))

    def read(self, samples: Sequence[tuple[int, int]], memory: np.ndarray) -> Batch:
        """Read the crops of `samples`; those of several types are normalised to float32.

        A sample that cannot be read is replaced by one that only the position chooses.

        Args:
            samples: (position, sample number) of each crop.
            memory: where the pixels are written, uint8 [self.bytes(len(samples))].

        """
        batch = self._read(samples, memory, mixed=False) or self._read(samples, memory, mixed=True)
        assert batch is not None
        return batch

    def largest(self, samples: Sequence[tuple[int, int]]) -> tuple[float, str]:
        """Return the largest absolute value of the crops of `samples`, where white is 1, and the sample it is in."""
        batch = self[samples]
        values = batch.normalised().abs().amax(dim=(1, 2, 3, 4))
        tar, sample = self.index.sample(int(batch.samples[values.argmax()]))
        return values.max().item(), f"{tar}: sample {sample.key}"

    def _read(self, wanted: Sequence[tuple[int, int]], memory: np.ndarray, mixed: bool) -> Batch | None:
        """Read a batch of samples of one type, or, if they may be `mixed`, of any; None if they are of several."""
        count = len(wanted)
        samples, black, white = np.empty(count, np.int64), np.empty(count), np.empty(count)
        bad: list[UserError] = []
        pixels = None
        for i, (position, number) in enumerate(wanted):
            samples[i], images, messages = self._images(position, number)
            bad += messages[:1]
            if mixed:
                images = [Image(image.normalised(), 0.0, 1.0) for image in images]
            dtype = images[0].pixels.dtype
            if pixels is None:
                shape = (count, *self.shape)
                pixels = memory[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
            elif pixels.dtype != dtype:
                return None
            black[i], white[i] = images[0].black, images[0].white
            for to, image in zip(pixels[i], images, strict=True):
                to[...] = image.pixels.transpose(2, 0, 1)
        positions = np.array([position for position, _ in wanted], np.int64)
        return Batch(positions, samples, torch.from_numpy(pixels), black, white, bad)

    def _images(self, position: int, number: int) -> tuple[int, list[Image], list[UserError]]:
        """Return the sample that was read, its crops, and why others were not."""
        bad: list[UserError] = []
        for attempt in range(0 if self.source_error else ATTEMPTS):
            try:
                return number, self._crops(position, number), bad
            except SourceUnavailableError as error:
                self.source_error = error
                break
            except UserError as refusal:
                bad.append(refusal)
                number = rng.integer(self.seed, position, f"replacement-{attempt}", len(self.index))
        # nothing is left to read: the loop will stop all ranks together
        bad = [self.source_error] if self.source_error else bad
        images, channels, height, width = self.shape
        return number, [Image(np.zeros((height, width, channels), np.uint8), 0.0, 1.0)] * images, bad

    def _crops(self, position: int, number: int) -> list[Image]:
        tar, sample = self.index.sample(number)
        tops, lefts = (length - self.crop + 1 for length in sample.shape[:2])
        # one draw for all: hashing takes as long as reading
        corner, symmetry = divmod(rng.integer(self.seed, position, "crop", tops * lefts * SYMMETRIES), SYMMETRIES)
        window = (*divmod(corner, lefts), self.crop, self.crop)

        def read(member: Member) -> Image:
            pixels = read_window(tar, sample, member, window)
            return Image(_symmetry(pixels, symmetry), sample.black, sample.white)

        if self.source == "image":
            return [read(sample.captures[0])]
        count = len(sample.captures)
        start = rng.integer(self.seed, number, "first-pair", max(1, count * (count - 1)))
        first, *others = [sample.captures[k] for k in capture_order(count, start + position // self.epoch)]
        match self.source:
            case "capture":
                return [read(first)]
            case "captures":
                return [read(first), read(others[0])]
            case "supervised":
                return [read(first), read(sample.clean or first)]
        # a mean is no integer, so all are normalised
        rest = [read(other).normalised() for other in others]
        mean = np.mean(rest, axis=0, dtype=np.float32)
        images = [mean] if self.source == "mean" else [rest[0], mean]
        return [Image(image, 0.0, 1.0) for image in (read(first).normalised(), *images)]


class RankOrder(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """One rank's slice of every batch, cut into micro-batches: lists of (position, sample number)."""

    def __init__(self, order: Order, samples_seen: int, rank: int, world_size: int, micro_batch: int) -> None:
        """Start after `samples_seen` samples."""
        self.order = order
        self.samples_seen = samples_seen
        self.share = order.batch_size // world_size
        self.first = rank * self.share
        self.micro_batch = micro_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield without end; the loop counts steps."""
        samples_seen = self.samples_seen
        while True:
            samples = self.at(samples_seen)
            for start in range(0, self.share, self.micro_batch):
                yield samples[start : start + self.micro_batch]
            samples_seen += self.order.batch_size

    def at(self, samples_seen: int) -> list[tuple[int, int]]:
        """Return the slice of the batch that comes after `samples_seen` samples."""
        numbers = self.order.batch(samples_seen, self.first, self.first + self.share)
        return list(enumerate(numbers.tolist(), samples_seen + self.first))


def capture_order(captures: int, turn: int) -> list[int]:
    """Order the captures of a scene: input, target, all others.

    In K (K - 1) consecutive turns every ordered pair of the K captures comes first once.
    """
    first, step = turn % captures, turn // captures
    others = captures - 1
    return [first, *((first + 1 + (step + k) % others) % captures for k in range(others))]


def _symmetry(pixels: np.ndarray, symmetry: int) -> np.ndarray:
    """Return one of the eight symmetries of the square: 0 to 3 quarter turns to the left, and the same mirrored.

    A view, as of `numpy.rot90`, which costs more time than it takes to copy a row.
    """
    turns, flip = symmetry % 4, symmetry >= 4
    upside_down, mirrored = turns in (2, 3), turns in (1, 2)
    pixels = pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
    pixels = pixels.swapaxes(0, 1) if turns % 2 else pixels
    return pixels[:, ::-1] if flip else pixels


def folder_list(value: Any, name: str) -> list[Path | str]:
    """Read a setting that is one folder or URL or a list of them; a URL stays a string."""
    folders = [value] if isinstance(value, str) else value
    if not isinstance(folders, list) or not folders or not all(isinstance(f, str) for f in folders):
        raise UserError(f"{name} {value!r}: give a folder of shards or a list of folders")
    return [location(folder) for folder in folders]


def open_data(
    settings: DataSettings, seed: int, channels: int, source: str, slots: range
) -> tuple[Index, Order, CropDataset]:
    """Open the shards to train on, and check that they have what is asked for.

    Args:
        settings: of the data.
        seed: of the run.
        channels: of every image.
        source: of the crops, one of `SOURCES`.
        slots: of every batch, those that are read on this machine.

    Raises:
        UserError: names the setting or the shard, and the remedy.

    """
    index = Index(folder_list(settings.shards, "data.shards"), settings.open_cache())
    paired = source in ("captures", "mean", "captures and mean")
    index.require("data.shards", channels, captures=2 if paired else 1)
    order = Order(index.sizes, seed, settings.batch, settings.streams)
    index.require_room(-(-len(slots) * order.streams // order.batch_size))
    return index, order, CropDataset(index, seed, settings.crop, source, order.samples_per_epoch)


def is_tolerated(bad: float, samples: int, max_bad: float) -> bool:
    """Say whether so many bad samples are within the tolerated share; a single one is no share yet."""
    return bad <= max_bad * samples or (bad == 1 and max_bad > 0)
