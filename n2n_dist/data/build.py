"""Build shards: scenes are cut into tiles, and the tiles dealt over tars, by any number of parts and jobs.

A group of scenes (see `n2n_dist.data.plan`) is the unit of work. Until all are done, they stand in
DESTINATION.partial, and a build that was ended goes on with the groups that are missing.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import webdataset

from n2n_dist.data.image import Image, encode, read_frames
from n2n_dist.data.indexing import index_tar, write_json, write_list
from n2n_dist.data.order import permutation
from n2n_dist.data.plan import BUILDING, Group, Options, Plan, Report, make_plan, origins, read_plan
from n2n_dist.data.scenes import Scene
from n2n_dist.data.shard import Shard, check_tar
from n2n_dist.errors import Refusal

Sample = dict[str, str | bytes]
BUFFER = 1 << 20
"""Bytes of a tar that are digested and written at once."""


def build(
    source: Path,
    destination: Path,
    options: Options,
    part: tuple[int, int] | None = None,
    jobs: int = 1,
    warn: Callable[[str], None] = print,
) -> Report:
    """Cut the images below `source` into tiles and write them as indexed shards.

    A scene that cannot be read is named and skipped. The result appears under its final name only when it is
    complete, and is byte-identical for the same files, settings and library versions, whatever `part` and `jobs`.

    Args:
        source: folder of image files.
        destination: new folder.
        options: how.
        part: (I, N) builds the I-th of N disjoint parts, I from 1; `merge` makes the shards of all of them.
        jobs: processes that read and cut images.
        warn: called with a line for each scene that is skipped.

    Raises:
        Refusal: no image, too many unreadable scenes, or `destination` exists; an unfinished build of other files or
            settings stands in its place.

    """
    if destination.exists():
        raise Refusal(f"{destination}: exists already; remove it or choose another folder")
    if jobs < 1:
        raise Refusal(f"--jobs {jobs}: must be 1 or more")
    partial = destination.with_name(destination.name + ".partial")
    begun = partial.exists()
    plan = make_plan(source, partial, options)
    for message in plan.report.bad:
        warn(f"skipped: {message}")
    number, count = part or (1, 1)
    report = Report()
    try:
        # decoding goes on while this process writes and digests
        spawn = multiprocessing.get_context("spawn")
        processes = functools.partial(ProcessPoolExecutor, jobs, spawn, _end_with, (os.getpid(),))
        with ThreadPoolExecutor(1) if jobs == 1 else processes() as pool:
            for group in plan.groups[number - 1 :: count]:
                if not _done(partial, group).is_file():
                    _write_group(partial, group, _cut_all(source, group, options, pool, jobs), warn)
                _add(report, _done(partial, group))
                _check_bad(source, len(plan.report.bad) + len(report.bad), plan)
        return report if part else merge(destination)
    except OSError as error:
        raise Refusal(f"{partial}: cannot be written ({error.strerror or error}); choose another folder") from None
    except Refusal:
        if not part and not begun:  # parts that others have built stay
            shutil.rmtree(partial, ignore_errors=True)
        raise


def merge(destination: Path) -> Report:
    """Make the shards of a folder out of the finished parts of its build.

    Raises:
        Refusal: a part is missing, or too much was unreadable.

    """
    partial = destination.with_name(destination.name + ".partial")
    plan = read_plan(partial)
    missing = [group for group in plan.groups if not _done(partial, group).is_file()]
    if missing:
        raise Refusal(
            f"{partial}: {len(missing)} of {len(plan.groups)} groups are not built yet; run every --part I/N to its "
            "end, each with the settings of the others"
        )
    shards: dict[str, list[Shard]] = {}
    for group in plan.groups:
        shards.setdefault(group.folder, []).extend(_add(plan.report, _done(partial, group)))
    _check_bad(partial, len(plan.report.bad), plan)
    if not shards or not all(shards.values()):
        raise Refusal(f"{destination}: no usable image; the first of its messages: {(plan.report.bad or ['none'])[0]}")
    for folder, found in shards.items():
        for shard in found:
            check_tar(partial / folder / shard.name, shard)
        write_list(partial / folder, found)
    partial.rename(destination)
    shutil.rmtree(destination / BUILDING)
    return plan.report


def _check_bad(where: Path, bad: int, plan: Plan) -> None:
    if bad > plan.allowed:
        raise Refusal(
            f"{where}: {bad} unreadable scenes, more than the {plan.allowed} that --max-bad allows; repair or remove "
            "the files named above, or raise the limit"
        )


def _write_group(
    partial: Path, group: Group, scenes: Iterator[list[Sample] | str], warn: Callable[[str], None]
) -> None:
    """Deal the tiles of the scenes of a group over its tars, index them, and only then say that they are there."""
    names = [f"shard-{group.first_shard + number:06d}.tar" for number in range(group.shards)]
    total = sum(group.tiles)
    places = permutation(total, f"tiles/{group.number}") * group.shards // total
    report = Report()
    work = Path(tempfile.mkdtemp(dir=partial / BUILDING))
    try:
        with ExitStack() as stack:
            # fixed owner, mode and time: the same tiles give the same bytes
            fixed = {"user": "n2n", "group": "n2n", "mode": 0o644, "mtime": 0, "encoder": False}
            files = [_DigestedFile(work / name) for name in names]
            buffers = [stack.enter_context(io.BufferedWriter(file, BUFFER)) for file in files]
            writers = [stack.enter_context(webdataset.TarWriter(buffer, **fixed)) for buffer in buffers]
            filled, start = set(), 0
            for tiles, samples in zip(group.tiles, scenes, strict=True):
                if isinstance(samples, str):  # why there are none
                    warn(f"skipped: {samples}")
                    report.bad.append(samples)
                else:
                    report.scenes += 1
                    report.tiles += tiles
                    for sample, place in zip(samples, places[start : start + tiles], strict=True):
                        writers[place].write(sample)
                        filled.add(place)
                start += tiles
        shards = [index_tar(work / names[place], sha256=files[place].sha256.hexdigest()) for place in sorted(filled)]
        (partial / group.folder).mkdir(exist_ok=True)
        for shard in shards:
            for path in work.glob(f"{Path(shard.name).stem}.*"):
                path.replace(partial / group.folder / path.name)
        write_json(_done(partial, group), {"shards": [asdict(shard) for shard in shards], **asdict(report)})
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _DigestedFile(io.RawIOBase):
    """A new file whose digest is known when it is written."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb", buffering=0)
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def close(self) -> None:
        self.file.close()
        super().close()


def _end_with(parent: int) -> None:
    """Let a worker end when the process that started it was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _done(partial: Path, group: Group) -> Path:
    """Return the file that says that a group is finished, and what it holds."""
    return partial / BUILDING / f"group-{group.number:06d}.json"


def _add(report: Report, done: Path) -> list[Shard]:
    """Add a finished group to the report; return its shards."""
    record = json.loads(done.read_text())
    report.scenes += record["scenes"]
    report.tiles += record["tiles"]
    report.bad += record["bad"]
    return [Shard(**shard) for shard in record["shards"]]


def _cut_all(source: Path, group: Group, options: Options, pool: Executor, jobs: int) -> Iterator[list[Sample] | str]:
    """Cut the scenes of a group in order; a scene that cannot be read gives why."""
    waiting: deque[Future[list[Sample] | str]] = deque()
    for number, scene in group.scenes:
        waiting.append(pool.submit(cut, source, number, scene, options))
        if len(waiting) > 2 * jobs:  # no more in memory than keeps all busy
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def cut(source: Path, number: int, scene: Scene, options: Options) -> list[Sample] | str:
    """Return the tiles of scene `number` as samples of a shard, or, if it cannot be read, why."""
    try:
        images = _read_scene(source, scene, options)
        names = [*map(str, range(len(scene.captures))), *(["clean"] if scene.clean else [])]
        slug = re.sub(r"[^A-Za-z0-9]+", "-", scene.name.rpartition(".")[0] or scene.name)[-48:].strip("-")
        samples = []
        for top in origins(scene.size[0], options.tile):
            for left in origins(scene.size[1], options.tile):
                about = {
                    "source": scene.captures[0].file,
                    "scene": scene.name,
                    "top": top,
                    "left": left,
                    "black": images[0].black,
                    "white": images[0].white,
                    "bit_depth": images[0].pixels.dtype.itemsize * 8,
                }
                sample: Sample = {
                    "__key__": f"{number:06d}-{slug}-{top:05d}-{left:05d}",
                    "json": json.dumps(about, sort_keys=True).encode(),
                }
                for name, image in zip(names, images, strict=True):
                    pixels = image.pixels[top : top + options.tile, left : left + options.tile]
                    sample[f"{name}.{options.encoding}"] = encode(pixels, f".{options.encoding}")
                samples.append(sample)
    except Refusal as refusal:
        return str(refusal)
    return samples


def _read_scene(source: Path, scene: Scene, options: Options) -> list[Image]:
    """Read the captures of a scene and, last, its clean reference, which must agree."""
    frames = [*scene.captures, *([scene.clean] if scene.clean else [])]
    images = [_read(source / frame.file, options.black, options.white)[frame.number] for frame in frames]
    for frame, image in zip(frames, images, strict=True):
        found, first = image.pixels, images[0].pixels
        if found.shape != first.shape or found.dtype != first.dtype or found.shape[:2] != scene.size:
            raise Refusal(
                f"{source / frame.file} is {found.shape} {found.dtype}, but {source / frames[0].file} of the same "
                f"scene is {first.shape} {first.dtype}; captures of a scene must agree"
            )
        if (image.black, image.white) != (images[0].black, images[0].white):
            raise Refusal(
                f"{source / frame.file} ranges from {image.black:g} to {image.white:g}, but "
                f"{source / frames[0].file} from {images[0].black:g} to {images[0].white:g}; give --black and --white"
            )
    return images


@functools.lru_cache(maxsize=3)  # a pair of neighbours and their reference: the next pair shares two of them
def _read(path: Path, black: float | None, white: float | None) -> list[Image]:
    return read_frames(path, black, white)
