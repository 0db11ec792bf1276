"""Cut a scene into tiles, each the members of one sample of a shard."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from n2n_dist.building.plan import Options, origins
from n2n_dist.errors import UserError
from n2n_dist.images.codecs import encode
from n2n_dist.images.image import Image, read_frames
from n2n_dist.scenes import Scene
from n2n_dist.shards.records import Member, Sample


@dataclass
class Tile:
    """The same window of all images of a scene: one sample of a shard."""

    key: str
    members: dict[str, bytes]
    """Content by name, in their order in a tar."""
    captures: list[str]
    """Names of the members that are captures, in the order of the scene."""
    clean: str | None
    """Name of the member that is the clean reference."""
    shape: tuple[int, int, int]
    """Height, width and channels of every image."""
    dtype: str
    black: float
    white: float

    def sample(self, offsets: dict[str, int]) -> Sample:
        """Describe the tile as a sample of a tar, in which the contents of its members begin at `offsets`."""

        def member(name: str) -> Member:
            return Member(name.rpartition(".")[2], offsets[name], len(self.members[name]))

        captures = [member(name) for name in self.captures]
        clean = member(self.clean) if self.clean else None
        return Sample(self.key, captures, clean, self.shape, self.dtype, self.black, self.white)


@dataclass
class SourceFile:
    """An image file that is read once for all scenes that it holds, by the first thread that needs it."""

    path: Path
    options: Options

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: list[Image] | UserError | None = None

    def frames(self) -> list[Image]:
        """Return all frames.

        Raises:
            UserError: as of `read_frames`.

        """
        with self._lock:
            if self._frames is None:
                try:
                    self._frames = read_frames(self.path, self.options.black, self.options.white)
                except UserError as refusal:
                    self._frames = refusal
        if isinstance(self._frames, UserError):
            raise UserError(str(self._frames))
        return self._frames


def cut(files: Sequence[SourceFile], number: int, scene: Scene) -> list[Tile] | str:
    """Return the tiles of scene `number`, whose frames are in `files`, or, if it cannot be read, why."""
    options = files[0].options
    try:
        images = _read_scene(files, scene)
        slug = re.sub(r"[^A-Za-z0-9]+", "-", scene.name.rpartition(".")[0] or scene.name)[-48:].strip("-")
        return [
            _tile(images, scene, f"{number:06d}-{slug}-{top:05d}-{left:05d}", top, left, options)
            for top in origins(scene.size[0], options.tile)
            for left in origins(scene.size[1], options.tile)
        ]
    except UserError as refusal:
        return str(refusal)


def _tile(images: Sequence[Image], scene: Scene, key: str, top: int, left: int, options: Options) -> Tile:
    """Encode the window at `top`, `left` of the captures of a scene and, last, its clean reference."""
    windows = [image.pixels[top : top + options.tile, left : left + options.tile] for image in images]
    parts = [*map(str, range(len(scene.captures))), *(["clean"] if scene.clean else [])]
    names = [f"{key}.{part}.{options.encoding}" for part in parts]
    black, white = images[0].black, images[0].white
    about = {
        "source": scene.captures[0].file,
        "scene": scene.name,
        "top": top,
        "left": left,
        "black": black,
        "white": white,
        "bit_depth": windows[0].dtype.itemsize * 8,
    }
    members = {name: encode(window, f".{options.encoding}") for name, window in zip(names, windows, strict=True)}
    members[f"{key}.json"] = json.dumps(about, sort_keys=True).encode()
    return Tile(
        key=key,
        members=dict(sorted(members.items())),
        captures=names[: len(scene.captures)],
        clean=names[-1] if scene.clean else None,
        shape=windows[0].shape,
        dtype=str(windows[0].dtype),
        black=float(black),
        white=float(white),
    )


def _read_scene(files: Sequence[SourceFile], scene: Scene) -> list[Image]:
    """Read the captures of a scene and, last, its clean reference, which must agree."""
    images = [file.frames()[frame.number] for file, frame in zip(files, scene.frames, strict=True)]
    for file, image in zip(files, images, strict=True):
        found, first = image.pixels, images[0].pixels
        if found.shape != first.shape or found.dtype != first.dtype or found.shape[:2] != scene.size:
            raise UserError(
                f"{file.path} is {found.shape} {found.dtype}, but {files[0].path} of the same scene is {first.shape} "
                f"{first.dtype}; captures of a scene must agree"
            )
        if (image.black, image.white) != (images[0].black, images[0].white):
            raise UserError(
                f"{file.path} ranges from {image.black:g} to {image.white:g}, but {files[0].path} from "
                f"{images[0].black:g} to {images[0].white:g}; give --black and --white"
            )
    return images
