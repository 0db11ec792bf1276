"""Build shards: scenes are cut into tiles, and the tiles dealt over tars, by any number of parts and jobs.

A group of scenes (see `n2n_dist.building.plan`) is the unit of work. Until all are done, they are in
DESTINATION.partial, and an interrupted build resumes with the groups that are missing.

Jobs are threads: the libraries that decode, encode, digest and write let other threads run meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

from n2n_dist.building.plan import BUILDING, PLAN, Group, Options, Report, make_plan, read_plan, working_folder
from n2n_dist.building.tiles import SourceFile, Tile, cut
from n2n_dist.errors import UserError
from n2n_dist.files import fsync, write_json
from n2n_dist.rng import permutation
from n2n_dist.shards.index import INDEX, Shard, check_tar
from n2n_dist.shards.indexing import list_members, write_list
from n2n_dist.shards.records import Sample
from n2n_dist.shards.tar import TarWriter

FILES_KEPT = 3
"""Source files that stay decoded for the next scene: a pair of neighbours and their reference share two with it."""
NAMED = 8
"""Files that are named of those that were skipped for one reason."""


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
    complete and on the disk, and is byte-identical for the same files, settings and library versions, whatever `part`
    and `jobs`.

    Args:
        source: folder of image files.
        destination: new folder.
        options: how.
        part: (I, N) builds the I-th of N disjoint parts, I from 1; `merge` makes the shards of all of them.
        jobs: images that are read and cut at a time.
        warn: called with a line for the first scene that is skipped for a reason, and with one for the others.

    Raises:
        UserError: no image, too many unreadable scenes, or `destination` exists; an unfinished build of other files or
            settings is there.

    """
    partial = working_folder(destination)
    if destination.exists() and partial != destination:
        raise UserError(f"{destination}: exists already; remove it or choose another folder")
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: must be 1 or more")
    begun = partial.exists()
    plan = make_plan(source, partial, options)
    number, count = part or (1, 1)
    groups = plan.groups[number - 1 :: count]
    missing = [group for group in groups if not _done(partial, group).is_file()]
    report, before = Report(), Report()
    skipped = _Skipped(source, plan.allowed, warn)
    try:
        for group in groups:
            if group not in missing:
                _add(before, _done(partial, group))
        skipped.add(plan.report.bad + before.bad)
        _build_groups(source, partial, missing, options, jobs, skipped)
        for group in groups:
            _add(report, _done(partial, group))
        return report if part else merge(destination)
    except OSError as error:
        raise UserError(f"{partial}: cannot be written ({error.strerror or error}); choose another folder") from None
    except UserError:
        if not part and not begun:  # parts that others have built stay
            shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        skipped.name_others()


def merge(destination: Path) -> Report:
    """Make the shards of a folder out of the finished parts of its build.

    Raises:
        UserError: a part is missing, or too much was unreadable.

    """
    partial = working_folder(destination)
    plan = read_plan(partial)
    missing = [group for group in plan.groups if not _done(partial, group).is_file()]
    if missing:
        raise UserError(
            f"{partial}: {len(missing)} of {len(plan.groups)} groups are not built yet; run every --part I/N to its "
            "end, each with the settings of the others"
        )
    shards: dict[str, list[Shard]] = {}
    for group in plan.groups:
        shards.setdefault(group.folder, []).extend(_add(plan.report, _done(partial, group)))
    _check_bad(partial, len(plan.report.bad), plan.allowed)
    if not shards or not all(shards.values()):
        raise UserError(
            f"{destination}: no usable image; the first of its messages: {(plan.report.bad or ['none'])[0]}"
        )
    for folder, found in shards.items():
        for shard in found:
            check_tar(partial / folder / shard.name, shard)
        for left in (partial / folder).glob(f"{INDEX}.*"):  # by a merge that was killed
            left.unlink()
        write_list(partial / folder, found)
    partial.rename(destination)
    fsync(destination.parent)
    (destination / BUILDING / PLAN).unlink()
    shutil.rmtree(destination / BUILDING)
    return plan.report


def _build_groups(
    source: Path, partial: Path, groups: Sequence[Group], options: Options, jobs: int, skipped: _Skipped
) -> None:
    """Write the tars of groups; one group may wait for the disk while the next one is cut."""
    with (
        tempfile.TemporaryDirectory(dir=partial / BUILDING) as work,
        ThreadPoolExecutor(1) as disk,
        contextlib.closing(_cut_all(source, groups, options, jobs)) as scenes,
    ):
        finishing: Future[None] | None = None
        for group in groups:
            folder = Path(work) / str(group.number)
            folder.mkdir()
            tars, report = _write_group(folder, group, scenes, disk, skipped)
            if finishing:
                finishing.result()
            finishing = disk.submit(_finish_group, partial, group, tars, report)
        if finishing:
            finishing.result()


def _write_group(
    folder: Path, group: Group, scenes: Iterator[list[Tile] | str], disk: Executor, skipped: _Skipped
) -> tuple[list[_ShardWriter], Report]:
    """Deal the tiles of the next scenes, those of a group, over its tars."""
    total = sum(group.tiles)
    shard_of_tile = permutation(total, f"tiles/{group.number}") * group.shards // total
    shards: dict[int, _ShardWriter] = {}
    report, start = Report(), 0
    for count in group.tiles:
        tiles = next(scenes)
        if isinstance(tiles, str):  # why there are none
            report.bad.append(tiles)
            skipped.add([tiles])
        else:
            report.scenes += 1
            report.tiles += count
            for tile, number in zip(tiles, shard_of_tile[start : start + count].tolist(), strict=True):
                if number not in shards:
                    shards[number] = _ShardWriter(folder / f"shard-{group.first_shard + number:06d}.tar", disk)
                shards[number].add(tile)
        start += count
    return [shards[number] for number in sorted(shards)], report


def _finish_group(partial: Path, group: Group, written: Sequence[_ShardWriter], report: Report) -> None:
    """End the tars of a group; write its file of `_done` only when all is on the disk."""
    shards = [writer.finish() for writer in written]
    (partial / group.folder).mkdir(exist_ok=True)
    for writer in written:
        for path in writer.path.parent.glob(f"{writer.path.stem}.*"):
            path.replace(partial / group.folder / path.name)
    fsync(partial / group.folder)
    fsync(partial)
    write_json(_done(partial, group), {"shards": shards, **vars(report)})


class _ShardWriter:
    """A new tar, and the list of its members, made while it is written."""

    def __init__(self, path: Path, disk: Executor) -> None:
        self.path = path
        self._tar = TarWriter(path, disk)
        self._samples: list[Sample] = []

    def add(self, tile: Tile) -> None:
        self._samples.append(tile.sample(self._tar.add(tile.members)))

    def finish(self) -> Shard:
        """Wait until tar and list are on the disk, and describe the shard; call it in `disk`."""
        return list_members(self.path, self._samples, self._tar.finish())


def _cut_all(
    source: Path, groups: Sequence[Group], options: Options, jobs: int
) -> Generator[list[Tile] | str, None, None]:
    """Cut the scenes of groups in order; a scene that cannot be read gives why."""
    opened = functools.lru_cache(FILES_KEPT)(functools.partial(SourceFile, options=options))
    tasks = (
        functools.partial(cut, [opened(source / frame.file) for frame in scene.frames], number, scene)
        for group in groups
        for number, scene in group.scenes
    )
    if jobs == 1:
        for task in tasks:
            yield task()
        return
    waiting: deque[Future[list[Tile] | str]] = deque()
    pool = ThreadPoolExecutor(jobs)
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > 2 * jobs:  # no more in memory than keeps all busy
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Skipped:
    """Names the scenes that cannot be used, each reason once, and ends a build that has too many of them."""

    def __init__(self, where: Path, allowed: int, warn: Callable[[str], None]) -> None:
        self._where = where
        self._allowed = allowed
        self._warn = warn
        self._files: dict[str, list[str]] = {}

    def add(self, messages: Sequence[str]) -> None:
        for message in messages:
            file, _, reason = message.partition(": ")
            files = self._files.setdefault(reason.partition(";")[0] or message, [])
            if not files:
                self._warn(f"skipped: {message}")
            files.append(file)
        _check_bad(self._where, sum(map(len, self._files.values())), self._allowed)

    def name_others(self) -> None:
        for first, *others in self._files.values():
            if others:
                names = ", ".join(others[:NAMED]) + (", ..." if len(others) > NAMED else "")
                self._warn(f"skipped for the same reason as {first}: {len(others):,} more, {names}")


def _check_bad(where: Path, bad: int, allowed: int) -> None:
    if bad > allowed:
        raise UserError(
            f"{where}: {bad} unreadable scenes, more than the {allowed} that --max-bad allows; repair or remove the "
            "files named above, or raise the limit"
        )


def _done(partial: Path, group: Group) -> Path:
    """Return the file that marks a group as finished and lists its shards."""
    return partial / BUILDING / f"group-{group.number:06d}.json"


def _add(report: Report, done: Path) -> list[Shard]:
    """Add a finished group to the report; return its shards."""
    record = json.loads(done.read_text())
    report.scenes += record["scenes"]
    report.tiles += record["tiles"]
    report.bad += record["bad"]
    return [Shard(**shard) for shard in record["shards"]]
