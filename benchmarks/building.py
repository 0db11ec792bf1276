"""Speed of building shards, against decoding and encoding alone, and with several jobs against one."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.encodings import tiles_of
from benchmarks.figures import ROOT, Figure
from n2n_dist.building.build import build
from n2n_dist.building.plan import Options
from n2n_dist.building.tiles import SourceFile, Tile, cut
from n2n_dist.errors import UserError
from n2n_dist.images.image import find_images, read_image, write_image
from n2n_dist.scenes import Grouping, find_scenes
from n2n_dist.shards.index import Index

IMAGES = 16
"""Photographs that are used of a folder: the largest ones."""
COPIES = 4
"""Times that every photograph is built: else the start of Python would weigh in."""


def building(images: Path | None, rounds: int) -> Iterator[Figure]:
    """Build shards in one job, against doing no more than is needed, and in a process of two jobs against one of one.

    The first is processor time, which others on the machine hardly change; the second is the clock's, on the cores
    that this process may use.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, source = Path(name), Path(name) / "photographs"
        write_photographs(images, source)
        for path in sorted(source.iterdir()):
            for number in range(1, COPIES):
                os.link(path, source / f"{path.stem}-{number}.png")
        scenes = find_scenes(source, Grouping()).scenes
        decoding, digesting, jobs = [], [], []
        for _ in range(rounds):
            alone = needed = 0.0
            for scene in scenes:
                start = time.process_time()
                tiles = cut([SourceFile(source / scene.name, Options())], 0, scene)
                middle = time.process_time()
                _digest_and_write(tiles, folder / "tiles")
                alone, needed = alone + middle - start, needed + time.process_time() - middle
            start = time.process_time()
            build(source, folder / "built", Options())
            built = time.process_time() - start
            shutil.rmtree(folder / "built")
            (folder / "tiles").unlink()
            decoding.append(alone / built)
            digesting.append((alone + needed) / built)
            jobs.append(_time_of_jobs(source, folder / "built", 1) / _time_of_jobs(source, folder / "built", 2))
    yield Figure("decode + encode / building", decoding, note="wanted 0.9")
    yield Figure("decode + encode + sha256 + write / building", digesting)
    cores = len(os.sched_getaffinity(0))
    wanted = 1.6 if cores > 1 else 1
    yield Figure(f"building, speed of 2 jobs / 1 job on {cores} cores", jobs, note=f"wanted {wanted}")


def _digest_and_write(tiles: list[Tile] | str, path: Path) -> None:
    assert not isinstance(tiles, str), tiles
    digest = hashlib.sha256()
    with path.open("ab") as file:
        for tile in tiles:
            for content in tile.members.values():
                digest.update(content)
                file.write(content)


def _time_of_jobs(source: Path, destination: Path, jobs: int) -> float:
    start = time.perf_counter()
    command = [sys.executable, str(ROOT / "shards/build.py"), str(source), str(destination), "--jobs", str(jobs)]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(destination)
    return seconds


def write_photographs(images: Path | None, folder: Path) -> int:
    """Write the largest photographs of a folder, or mosaics of the demo tiles, as PNG files; return how many.

    Raises:
        UserError: the folder has none that are large enough.

    """
    if images is None:
        tiles = tiles_of(Index([ROOT / "shards/demo/train"]))
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
        raise UserError(f"--images {images}: no 8-bit RGB image of 256x256 or more in it")
    return count
