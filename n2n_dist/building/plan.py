"""Plan of a build of shards: a function of the files and settings, the same for all its parts.

The scenes, shuffled, are taken in groups that fill at most `SHARDS` tars, and the tiles of a group are dealt over its
tars at random. So every image is decoded once, and a tar holds tiles of many images.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from n2n_dist.errors import UserError
from n2n_dist.files import write_json
from n2n_dist.images.image import find_images
from n2n_dist.rng import permutation
from n2n_dist.scenes import Frame, Grouping, Scene, find_scenes
from n2n_dist.shards.index import INDEX, VALIDATION

SHARDS = 16
"""Tars that a group fills at most, but for an image that fills more."""
BUILDING = "building"
"""Folder of an unfinished build that holds its plan and its unfinished groups."""
PLAN = "plan.json"
ENCODINGS = ("npy", "png", "webp")


@dataclass
class Options:
    """How images become tiles and tiles become tars."""

    grouping: Grouping = field(default_factory=Grouping)
    """How files make a scene."""
    tile: int = 256
    """Largest height and width of a tile in pixels; tiles of a larger image cover it and may overlap."""
    encoding: str = "npy"
    """`npy`: uncompressed, crops are read without decoding; `webp`: 2/5 of the size, 8-bit RGB only; `png`: half of
    it, 8 and 16 bit only."""
    shard_samples: int = 512
    """Samples in one tar."""
    black: float | None = None
    """Value that means no light; default: the value in the file, or the smallest of its type."""
    white: float | None = None
    """Value that means full light; default: the value in the file, or the largest of its type. Float images need it."""
    holdout: int = 0
    """Recordings kept out of training and written to DESTINATION/validation, evenly spread over the source."""
    max_bad: float = 0.05
    """Largest share of unreadable scenes; one is always tolerated."""

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise UserError(f"--encoding {self.encoding}: must be {', '.join(ENCODINGS[:-1])} or {ENCODINGS[-1]}")
        for name, value, smallest in (("tile", self.tile, 16), ("shard-samples", self.shard_samples, 1)):
            if value < smallest:
                raise UserError(f"--{name} {value}: must be {smallest} or more")
        if not 0 < self.max_bad <= 1:
            raise UserError(f"--max-bad {self.max_bad:g}: must be above 0 and at most 1")


@dataclass
class Group:
    """Scenes whose tiles are dealt over the same tars."""

    folder: str
    """Where the tars go, below the destination."""
    number: int
    """Among all groups of the build."""
    first_shard: int
    shards: int
    scenes: list[tuple[int, Scene]]
    """Each with its number among all scenes."""
    tiles: list[int]
    """Of each scene."""


@dataclass
class Report:
    """Summary of a build."""

    scenes: int = 0
    tiles: int = 0
    bad: list[str] = field(default_factory=list)
    """One message for each scene that was skipped."""
    ignored: list[str] = field(default_factory=list)
    """Files that belong to no scene."""


@dataclass
class Plan:
    """All that is to be done, the same for every part."""

    groups: list[Group]
    allowed: int
    """Scenes that may be unreadable."""
    report: Report
    """Files and scenes found while planning."""


def make_plan(source: Path, partial: Path, options: Options) -> Plan:
    """Plan a build, or read the plan of the unfinished one that this resumes.

    Raises:
        UserError: nothing to build, or `partial` is something else.

    """
    abouts = {path: path.stat() for path in find_images(source)}
    listing = [(str(path.relative_to(source)), about.st_size, about.st_mtime_ns) for path, about in abouts.items()]
    key = hashlib.sha256(json.dumps([listing, asdict(options)]).encode()).hexdigest()
    path = partial / BUILDING / PLAN
    if path.is_file():
        if json.loads(path.read_text())["key"] != key:
            raise UserError(
                f"{partial}: an unfinished build of other files or settings; resume with those, or remove it to begin"
            )
        return read_plan(partial)
    if partial.exists() and not path.parent.exists() and any(partial.iterdir()):
        raise UserError(f"{partial}: exists, and is not an unfinished build; move it away")
    found = find_scenes(source, options.grouping)
    plan = Plan(
        groups=group_scenes(found.scenes, options),
        allowed=max(1, int(options.max_bad * (len(found.scenes) + len(found.bad)))),
        report=Report(bad=found.bad, ignored=found.ignored),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, **vars(plan)})
    except OSError as error:
        raise UserError(f"{partial}: cannot be written ({error.strerror or error}); choose another folder") from None
    return plan


def read_plan(partial: Path) -> Plan:
    """Read the plan of an unfinished build.

    Raises:
        UserError: there is none.

    """
    try:
        plan = json.loads((partial / BUILDING / PLAN).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{partial}: not an unfinished build ({error!r})") from None

    def frame(record: dict[str, Any] | None) -> Frame | None:
        return Frame(**record) if record else None

    def scene(record: dict[str, Any]) -> Scene:
        captures = [Frame(**capture) for capture in record["captures"]]
        return Scene(**{**record, "captures": captures, "size": tuple(record["size"]), "clean": frame(record["clean"])})

    groups = [
        Group(**{**group, "scenes": [(number, scene(record)) for number, record in group["scenes"]]})
        for group in plan["groups"]
    ]
    return Plan(groups, plan["allowed"], Report(**plan["report"]))


def working_folder(destination: Path) -> Path:
    """Return the folder of an unfinished build; its final name only while its working files are removed."""
    named = (destination / BUILDING / PLAN).is_file() and (destination / INDEX).is_file()
    return destination if named else destination.with_name(destination.name + ".partial")


def unfinished(destination: Path) -> bool:
    """Whether a build of `destination` was begun and did not come to its end."""
    folder = working_folder(destination)
    return folder == destination or (folder.exists() and not destination.exists())


def parse_part(text: str | None) -> tuple[int, int] | None:
    """Read `I/N`.

    Raises:
        UserError: it is something else.

    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--part {text}: must be I/N with I from 1 to N, such as 3/100")
    return int(match[1]), int(match[2])


def group_scenes(scenes: Sequence[Scene], options: Options) -> list[Group]:
    """Cut the shuffled scenes of training, then those held out, into groups.

    Raises:
        UserError: more is to be held out than there is.

    """
    recordings = list(dict.fromkeys(scene.recording for scene in scenes))
    count = len(recordings)
    if not 0 <= options.holdout < max(count, 1):
        raise UserError(f"--holdout {options.holdout}: must be 0 or more and below the {count} recordings there are")
    held_out = {recordings[count * k // options.holdout] for k in range(options.holdout)}
    numbered: dict[str, list[tuple[int, Scene]]] = {recording: [] for recording in recordings}
    for number, scene in enumerate(scenes):
        numbered[scene.recording].append((number, scene))
    groups: list[Group] = []
    for folder in ("", VALIDATION):
        chosen = [recording for recording in recordings if (recording in held_out) == (folder == VALIDATION)]
        group, total = None, 0
        for index in permutation(len(chosen), f"recordings/{folder}"):
            # the scenes of a recording stay together: they may be frames of one file, which is then read once
            for number, scene in numbered[chosen[index]]:
                height, width = scene.size
                tiles = len(origins(height, options.tile)) * len(origins(width, options.tile))
                if group is None or total + tiles > SHARDS * options.shard_samples:
                    first = group.first_shard + group.shards if group else 0
                    group, total = Group(folder, len(groups), first, 0, [], []), 0
                    groups.append(group)
                group.scenes.append((number, scene))
                group.tiles.append(tiles)
                total += tiles
                group.shards = -(-total // options.shard_samples)
    return groups


def origins(length: int, tile: int) -> list[int]:
    """Return where the fewest tiles that cover `length` pixels begin, evenly spread."""
    count = -(-length // tile)
    return [round(k * (length - tile) / (count - 1)) for k in range(count)] if count > 1 else [0]
