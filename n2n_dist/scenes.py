"""Which files, and which frames of them, are captures of one scene."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from n2n_dist.errors import UserError
from n2n_dist.images.frames import Size, open_frames
from n2n_dist.images.image import find_images

READERS = 8
"""Files whose headers are read at a time: on a shared file system each waits for an answer."""


@dataclass
class Grouping:
    """How files become scenes."""

    captures: str | None = None
    """None: every frame of every file is a scene of its own; `folder`: every folder is a scene, its files are the
    captures; `stack`: every file is a scene, its frames are the captures; `pattern`: given by `pattern`."""
    pattern: str | None = None
    """Regular expression over a file's path below the source, with the named groups `scene` and `capture`."""
    consecutive: bool = False
    """Whether only neighbouring captures t and t + 1 are pairs, each of them a scene, as in a time series."""
    clean: str | None = None
    """Regular expression that finds the clean reference of a scene among the files; which scene, its named group
    `scene` names, or the folder of the file."""

    def __post_init__(self) -> None:
        if self.captures not in (None, "folder", "stack", "pattern"):
            raise UserError(f"--captures {self.captures}: must be folder, stack, or pattern 'REGEX'")
        if (self.captures == "pattern") != (self.pattern is not None):
            raise UserError("--captures pattern: give the regular expression after it, and only there")
        if self.captures is None and (self.consecutive or self.clean):
            raise UserError("--frames and --clean need --captures, which defines a scene")
        for option, expression, names in (
            ("--captures pattern", self.pattern, {"scene", "capture"}),
            ("--clean", self.clean, set() if self.captures == "folder" else {"scene"}),
        ):
            if expression is not None and not names <= _compiled(option, expression).groupindex.keys():
                groups = " and ".join(f"(?P<{name}>...)" for name in sorted(names, reverse=True))
                raise UserError(f"{option} {expression!r}: needs named groups {groups}")


@dataclass
class Frame:
    """One frame of a file."""

    file: str
    """Path below the source."""
    number: int = 0
    """Its number in the file."""


@dataclass
class Scene:
    """One image of the shards, before it is cut into tiles."""

    name: str
    recording: str
    """The folder, file or sequence that it comes from: scenes of one recording look alike."""
    captures: list[Frame]
    size: Size
    """Height and width in pixels."""
    clean: Frame | None = None

    @property
    def frames(self) -> list[Frame]:
        """The captures and, last, the clean reference."""
        return [*self.captures, *([self.clean] if self.clean else [])]


@dataclass
class Found:
    """All scenes below a folder, in a fixed order."""

    scenes: list[Scene] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    """One message for each scene that cannot be used."""
    ignored: list[str] = field(default_factory=list)
    """Files that the pattern does not match."""


def find_scenes(source: Path, grouping: Grouping) -> Found:
    """Group the image files below `source`; reads their headers, not their pixels.

    Raises:
        UserError: no image, none that the pattern matches, or files outside a scene.

    """
    files = [path.relative_to(source).as_posix() for path in find_images(source)]
    found = Found()
    captures, clean = _group(source, files, grouping, found)
    with ThreadPoolExecutor(READERS) as pool:
        sizes = dict(zip(files, pool.map(lambda file: _sizes(source / file), files), strict=True))
    for name, members in captures.items():
        try:
            frames = _frames(source, members, sizes, several=grouping.captures in (None, "stack"))
            reference = _frames(source, [clean[name]], sizes)[0] if name in clean else None
            found.scenes += _scenes(source, name, frames, reference, sizes, grouping)
        except UserError as refusal:
            found.bad.append(str(refusal))
    return found


def _group(
    source: Path, files: Sequence[str], grouping: Grouping, found: Found
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the capture files of every scene in their order, and the clean file of those that have one."""
    captures: dict[str, list[tuple[str, str]]] = {}
    clean: dict[str, str] = {}
    for file in files:
        folder = file.rpartition("/")[0]
        if grouping.clean is not None and (match := re.search(grouping.clean, file)):
            name = match.groupdict().get("scene", folder) or folder
            if name in clean:
                raise UserError(f"--clean {grouping.clean!r}: finds {clean[name]} and {file} for one scene")
            clean[name] = file
            continue
        name, capture = file, file
        match grouping.captures:
            case "folder" if not folder:
                raise UserError(
                    f"{source}: images outside a scene folder, such as {file}; wanted {source}/SCENE/{file}"
                )
            case "folder":
                name = folder
            case "stack":
                name = file.rpartition(".")[0]
                if name in captures:
                    raise UserError(
                        f"--captures stack: {captures[name][0][1]} and {file} are both scene {name!r}; rename one"
                    )
            case "pattern":
                match = re.search(str(grouping.pattern), file)
                if match is None or None in (match["scene"], match["capture"]):
                    found.ignored.append(file)
                    continue
                name, capture = match["scene"], match["capture"]
        captures.setdefault(name, []).append((capture, file))
    if not captures:
        raise UserError(f"--captures pattern {grouping.pattern!r}: matches none of the files, such as {files[0]}")
    if lost := sorted(clean.keys() - captures.keys()):
        raise UserError(f"--clean {grouping.clean!r}: {clean[lost[0]]} is of scene {lost[0]!r}, which has no captures")
    ordered = {
        name: [file for _, file in sorted(members, key=lambda member: [_natural(part) for part in member])]
        for name, members in captures.items()
    }
    return ordered, clean


def _scenes(
    source: Path,
    name: str,
    frames: list[Frame],
    clean: Frame | None,
    sizes: dict[str, list[Size] | UserError],
    grouping: Grouping,
) -> list[Scene]:
    def size(frame: Frame) -> Size:
        return sizes[frame.file][frame.number]  # type: ignore[index]  # `_frames` has raised the refusals

    if grouping.captures is None:
        names = [name] if len(frames) == 1 else [f"{name}#{frame.number}" for frame in frames]
        return [Scene(own, name, [frame], size(frame)) for own, frame in zip(names, frames, strict=True)]
    if len(frames) < 2 and (clean is None or grouping.consecutive):
        raise UserError(f"{source / frames[0].file}: the only capture of its scene; a pair needs two or more")
    for frame in [*frames, *([clean] if clean else [])]:
        if size(frame) != size(frames[0]):
            raise UserError(
                f"{source / frame.file}{_place(frame)} has {size(frame)} pixels, but {source / frames[0].file}"
                f"{_place(frames[0])} of the same scene {size(frames[0])}; captures of a scene must agree"
            )
    if not grouping.consecutive:
        return [Scene(name, name, frames, size(frames[0]), clean)]
    return [
        Scene(f"{name}#{number}", name, list(pair), size(pair[0]), clean)
        for number, pair in enumerate(itertools.pairwise(frames))
    ]


def _frames(
    source: Path, files: Sequence[str], sizes: dict[str, list[Size] | UserError], several: bool = False
) -> list[Frame]:
    frames = []
    for file in files:
        found = sizes[file]
        if isinstance(found, UserError):
            raise UserError(str(found))
        if len(found) > 1 and not several:
            raise UserError(f"{source / file}: holds {len(found)} frames; give one capture a file, or --captures stack")
        frames += [Frame(file, number) for number in range(len(found))]
    return frames


def _sizes(path: Path) -> list[Size] | UserError:
    try:
        with open_frames(path) as frames:
            return [frame.size for frame in frames]
    except UserError as refusal:
        return refusal


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort key that puts frame 9 before frame 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _place(frame: Frame) -> str:
    return f" frame {frame.number}" if frame.number else ""


def _compiled(option: str, expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise UserError(f"{option} {expression!r}: not a regular expression ({error})") from None
