"""From a place in the order to a crop: the data set, the loader, and what happens to damaged samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from n2n_dist.data.order import Order
from n2n_dist.data.remote import GIB, Cache, Unavailable, location
from n2n_dist.data.shard import Index, read_pixels
from n2n_dist.errors import Refusal
from n2n_dist.noise import keys

ATTEMPTS = 100
"""Samples that are tried in the place of a damaged one."""


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
                raise Refusal(f"data.{name} {getattr(self, name)}: must be {smallest} or more")
        if self.streams is not None and self.streams < 1:
            raise Refusal(f"data.streams {self.streams}: must be 1 or more")
        if not 0 <= self.max_bad <= 1:
            raise Refusal(f"data.max_bad {self.max_bad}: must be between 0 and 1")
        for name in ("cache_gb", "timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise Refusal(f"data.{name} {getattr(self, name)}: must be above 0")
        folder_list(self.shards, "data.shards")

    def open_cache(self) -> Cache:
        """Return the cache for shards behind a URL; nothing is written before it is used."""
        return Cache(Path(self.cache) if self.cache else None, int(self.cache_gb * GIB), self.timeout)


@dataclass
class Batch:
    """Crops of one rank's slice of a global batch."""

    positions: torch.Tensor
    """Place of each sample in the run, int64 [B]."""
    samples: torch.Tensor
    """Number of each sample in the index, int64 [B]."""
    images: torch.Tensor
    """float32 [B, K, C, H, W], black 0 and white 1. K = 1: the image itself; K = 2: input and target capture."""
    bad: list[Refusal] = field(default_factory=list)
    """One message for each sample that could not be read and was replaced; zeros where one is `Unavailable`."""

    def pin_memory(self) -> Batch:
        """Move the crops to page-locked memory, from which a GPU copies without waiting."""
        return replace(self, images=self.images.pin_memory())


class CropDataset(torch.utils.data.Dataset):
    """Maps (position, sample number) to a crop; a pure function of these and the seed."""

    def __init__(self, index: Index, seed: int, crop: int, source: str) -> None:
        """Check that every sample can give what is asked for.

        Args:
            index: the shards.
            seed: keys the crop, the flips and the choice of captures.
            crop: height and width in pixels.
            source: `image` (the first capture), `captures` (two different captures of the scene, input and target)
                or `supervised` (a capture and the clean reference).

        Raises:
            Refusal: a shard has samples that are too small, or have no reference.

        """
        for path, shard in zip(index.paths, index.shards, strict=True):
            if min(shard.smallest) < crop:
                height, width = shard.smallest
                raise Refusal(
                    f"data.crop {crop}: {path} has tiles down to {height}x{width}; lower it, or leave small images out"
                )
            if source == "supervised" and not shard.clean:
                raise Refusal(f"pairs.supervised: {path} has samples without KEY.clean")
        self.index = index
        self.seed = seed
        self.crop = crop
        self.source = source
        self.gone: Unavailable | None = None
        """Why nothing more is read by this process: no other sample stands in for those of a source that is gone."""

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, int, torch.Tensor, list[Refusal]]:
        """Read a crop; one that cannot be read is replaced by a sample that only the position chooses."""
        position, sample = place
        bad: list[Refusal] = []
        for attempt in range(0 if self.gone else ATTEMPTS):
            try:
                return position, sample, self._read(position, sample), bad
            except Unavailable as gone:
                self.gone = gone
                break
            except Refusal as refusal:
                bad.append(refusal)
                sample = keys.integer(self.seed, position, f"replacement-{attempt}", len(self.index))
        # nothing is left to read: the loop will stop all ranks together
        channels = self.index.shards[0].channels[0]
        images = 1 if self.source == "image" else 2
        bad = [self.gone] if self.gone else bad
        return position, sample, torch.zeros(images, channels, self.crop, self.crop), bad

    def _read(self, position: int, number: int) -> torch.Tensor:
        def draw(purpose: str, bound: int) -> int:
            return keys.integer(self.seed, position, purpose, bound)

        tar, sample = self.index.sample(number)
        height, width, _ = sample.shape
        window = (
            draw("top", height - self.crop + 1),
            draw("left", width - self.crop + 1),
            self.crop,
            self.crop,
        )
        members = [sample.captures[0]]
        if self.source == "captures":
            first = draw("capture", len(sample.captures))
            other = (first + 1 + draw("other-capture", len(sample.captures) - 1)) % len(sample.captures)
            members = [sample.captures[first], sample.captures[other]]
        elif self.source == "supervised":
            members = [sample.captures[draw("capture", len(sample.captures))], sample.clean or sample.captures[0]]
        crops = np.stack([read_pixels(tar, sample, member, window) for member in members])
        # one of the eight symmetries of the square
        crops = np.rot90(crops, draw("quarter-turns", 4), axes=(1, 2))
        crops = crops[:, :, ::-1] if draw("flip", 2) else crops
        return torch.from_numpy(np.ascontiguousarray(crops.transpose(0, 3, 1, 2)))


class RankOrder(torch.utils.data.Sampler):
    """One rank's slice of every batch, cut into micro-batches: lists of (position, sample number)."""

    def __init__(self, order: Order, samples_seen: int, rank: int, world_size: int, micro_batch: int) -> None:
        """Start after `samples_seen` samples."""
        self.order = order
        self.samples_seen = samples_seen
        self.share = order.batch_size // world_size
        self.first = rank * self.share
        self.micro_batch = micro_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Go on for ever; the loop counts steps."""
        samples_seen = self.samples_seen
        while True:
            batch = self.order.batch(samples_seen).tolist()
            for start in range(self.first, self.first + self.share, self.micro_batch):
                yield [(samples_seen + i, batch[i]) for i in range(start, start + self.micro_batch)]
            samples_seen += self.order.batch_size


def collate(items: Sequence[tuple[int, int, torch.Tensor, list[Refusal]]]) -> Batch:
    """Stack crops; of a sample that was replaced, keep the first message."""
    positions, samples, images, bad = zip(*items, strict=True)
    return Batch(
        torch.tensor(positions),
        torch.tensor(samples),
        torch.stack(images),
        [messages[0] for messages in bad if messages],
    )


def make_loader(
    dataset: CropDataset, places: RankOrder, workers: int, device: torch.device
) -> torch.utils.data.DataLoader:
    """Read micro-batches ahead in `workers` processes."""
    return torch.utils.data.DataLoader(
        dataset,
        batch_sampler=places,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )


def folder_list(value: Any, name: str) -> list[Path | str]:
    """Read a setting that is one folder or URL or a list of them; a URL stays a string."""
    folders = [value] if isinstance(value, str) else value
    if not isinstance(folders, list) or not folders or not all(isinstance(f, str) for f in folders):
        raise Refusal(f"{name} {value!r}: give a folder of shards or a list of folders")
    return [location(folder) for folder in folders]


def open_data(
    settings: DataSettings, seed: int, channels: int, source: str, slots: range
) -> tuple[Index, Order, CropDataset]:
    """Open the shards to train on, and check that they have what is asked for.

    Args:
        settings: of the data.
        seed: of the run.
        channels: of every image.
        source: of the crops, as of `CropDataset`.
        slots: places of every batch that are read on this machine.

    Raises:
        Refusal: names the setting or the shard, and the remedy.

    """
    index = Index(folder_list(settings.shards, "data.shards"), settings.open_cache())
    index.require("data.shards", channels, captures=2 if source == "captures" else 1)
    order = Order(index.sizes, seed, settings.batch, settings.streams)
    index.require_room(-(-len(slots) * order.streams // order.batch_size))
    return index, order, CropDataset(index, seed, settings.crop, source)


def is_tolerated(bad: float, samples: int, max_bad: float) -> bool:
    """Say whether so many bad samples are within the tolerated share; a single one is no share yet."""
    return bad <= max_bad * samples or (bad == 1 and max_bad > 0)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
