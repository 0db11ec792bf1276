"""Crops of a batch, read from the samples that the order chooses; damaged samples are replaced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from n2n_dist import rng
from n2n_dist.data.batch import Batch
from n2n_dist.data.order import Order
from n2n_dist.errors import UserError
from n2n_dist.images.image import Image
from n2n_dist.shards.cache import GIB, Cache, SourceUnavailableError, location
from n2n_dist.shards.index import Index
from n2n_dist.shards.reading import read_window
from n2n_dist.shards.records import Member, Sample

ATTEMPTS = 100
"""Most samples that are tried instead of a damaged one."""
SYMMETRIES = 8
"""Of a square: a crop is seen in one of them."""


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


class ImageSource(Protocol):
    """Chooses the images of a sample that are read, see `n2n_dist.pairs.base.Pairs`."""

    name: str
    min_captures: int
    needs_reference: bool

    def image_count(self, averaged: bool) -> int:
        """Return the number of images that `images` asks for."""

    def images(self, sample: Sample, turn: int, averaged: bool) -> list[list[Member]]:
        """Choose members; those of an inner list are averaged."""


class CropDataset(torch.utils.data.Dataset[Batch]):
    """Maps a list of (position, sample number) to a batch; a pure function of these and the seed."""

    def __init__(
        self,
        index: Index,
        seed: int,
        crop: int,
        pairs: ImageSource,
        averaged: bool = False,
        epoch: int | None = None,
    ) -> None:
        """Check that every sample can give what is asked for.

        Args:
            index: the shards.
            seed: keys the crop, the flips and the choice of captures.
            crop: height and width in pixels.
            pairs: chooses the images of a sample; of K captures by a turn that starts anywhere in [0, K (K - 1)) and
                counts the epochs.
            averaged: whether it adds the mean of all captures but the input.
            epoch: positions after which the order begins anew; default: the number of samples.

        Raises:
            UserError: a shard has samples that are too small, or lack captures or a reference.

        """
        for path, shard in zip(index.paths, index.shards, strict=True):
            if min(shard.smallest) < crop:
                height, width = shard.smallest
                raise UserError(
                    f"data.crop {crop}: {path} has tiles down to {height}x{width}; lower it, or leave small images out"
                )
            if shard.captures < pairs.min_captures:
                raise UserError(
                    f"data.shards: {path} has samples with {shard.captures} capture(s), pairs.name {pairs.name} needs "
                    f"{pairs.min_captures}; build the shards with --captures folder, or set pairs.name=neighbours"
                )
            if pairs.needs_reference and not shard.clean:
                raise UserError(
                    f"data.shards: {path} has samples without KEY.clean, the clean target of pairs.name {pairs.name}; "
                    "build them with --clean, or set pairs.supervised=false"
                )
        self.index = index
        self.seed = seed
        self.crop = crop
        self.pairs = pairs
        self.averaged = averaged
        self.epoch = epoch or len(index)
        self.source_error: SourceUnavailableError | None = None
        """Why this process reads nothing more: samples of a source that is lost are not replaced."""
        self.shape = (pairs.image_count(averaged), index.shards[0].channels[0], crop, crop)

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

        count = len(sample.captures)
        start = rng.integer(self.seed, number, "first-pair", count * (count - 1)) if count > 1 else 0
        groups = self.pairs.images(sample, start + position // self.epoch, self.averaged)
        crops: dict[int, Image] = {}
        for member in (member for group in groups for member in group):
            if member.offset not in crops:  # the mean of captures may hold the target too
                pixels = _symmetry(read_window(tar, sample, member, window), symmetry)
                crops[member.offset] = Image(pixels, sample.black, sample.white)
        images = [[crops[member.offset] for member in group] for group in groups]
        if all(len(group) == 1 for group in images):
            return [image for (image,) in images]
        # a mean is no integer, so all are normalised
        normalised = [np.stack([image.normalised() for image in group]) for group in images]
        return [Image(group.mean(axis=0, dtype=np.float32), 0.0, 1.0) for group in normalised]


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
    settings: DataSettings, seed: int, channels: int, pairs: ImageSource, averaged: bool, slots: range
) -> tuple[Index, Order, CropDataset]:
    """Open the shards to train on, and check that they have what is asked for.

    Args:
        settings: of the data.
        seed: of the run.
        channels: of every image.
        pairs: chooses the images of a sample.
        averaged: whether it adds the mean of all captures but the input.
        slots: of every batch, those that are read on this machine.

    Raises:
        UserError: names the setting or the shard, and the remedy.

    """
    index = Index(folder_list(settings.shards, "data.shards"), settings.open_cache())
    index.require("data.shards", channels)
    order = Order(index.sizes, seed, settings.batch, settings.streams)
    index.require_room(-(-len(slots) * order.streams // order.batch_size))
    return index, order, CropDataset(index, seed, settings.crop, pairs, averaged, order.samples_per_epoch)


def is_tolerated(bad: float, samples: int, max_bad: float) -> bool:
    """Say whether so many bad samples are within the tolerated share; a single one is no share yet."""
    return bad <= max_bad * samples or (bad == 1 and max_bad > 0)
