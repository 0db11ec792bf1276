"""Tars that tests write by hand, and what is read from them."""

import io
import tarfile
from pathlib import Path

import numpy as np

from n2n_dist.images.codecs import encode
from n2n_dist.shards.index import Index
from n2n_dist.shards.reading import read_pixels
from support.images import random_pixels


def read_whole(index: Index, number: int) -> np.ndarray:
    tar, sample = index.sample(number)
    return read_pixels(tar, sample, sample.captures[0], (0, 0, *sample.shape[:2]))


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def png(shape: tuple[int, ...] = (20, 16, 3), seed: int = 0) -> bytes:
    return encode(random_pixels(shape, seed=seed), ".png")
