"""Build shards: a folder of images, or of scenes with several captures, cut into tiles."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import webdataset

from n2n_dist.data.image import SUFFIXES, Image, encode, find_images, read_image
from n2n_dist.data.shard import write_index
from n2n_dist.errors import Refusal

VALIDATION = "validation"
ENCODINGS = ("npy", "png", "webp")


@dataclass
class Options:
    """How images become tiles and tiles become tars."""

    captures: bool = False
    """Whether every folder below the source is one scene, and its images are captures of it."""
    tile: int = 256
    """Largest height and width of a tile in pixels; tiles of a larger image cover it and may overlap."""
    encoding: str = "npy"
    """`npy`: uncompressed, crops are read without decoding; `webp`: a third of the size, 8-bit RGB only; `png`: half of
    it, 8 and 16 bit only."""
    shard_samples: int = 512
    """Samples in one tar."""
    black: float | None = None
    """Value that means no light; default 0."""
    white: float | None = None
    """Value that means full light; default the largest value of the type. Float images need it."""
    holdout: int = 0
    """Scenes kept out of training and written to DESTINATION/validation, evenly spread over the source."""
    max_bad: float = 0.05
    """Largest share of unreadable scenes; one is always tolerated."""


@dataclass
class Report:
    """What was built."""

    allowed: int
    """Scenes that may be skipped."""
    scenes: int = 0
    tiles: int = 0
    bad: list[str] = field(default_factory=list)
    """One message for each scene that was skipped."""


def build(source: Path, destination: Path, options: Options, warn: Callable[[str], None] = print) -> Report:
    """Cut the images below `source` into tiles and write them as indexed shards.

    An image that cannot be read is named and skipped. The result appears under its final name
    only when it is complete, and is byte-identical for the same files, settings and library versions.

    Raises:
        Refusal: no image, too many unreadable ones, or `destination` exists.

    """
    _check(options)
    scenes = _find_scenes(source, options.captures)
    if destination.exists():
        raise Refusal(f"{destination}: exists already; remove it or choose another folder")
    if not 0 <= options.holdout < len(scenes):
        raise Refusal(f"--holdout {options.holdout}: must be 0 or more and below the {len(scenes)} scenes of {source}")
    held_out = {len(scenes) * k // options.holdout for k in range(options.holdout)}
    train = [scene for number, scene in enumerate(scenes) if number not in held_out]
    validation = [scenes[number] for number in sorted(held_out)]
    partial = destination.with_name(destination.name + ".partial")
    if partial.exists():
        raise Refusal(f"{partial}: exists, perhaps left by a build that was ended; remove it")
    report = Report(allowed=max(1, int(options.max_bad * len(scenes))))
    try:
        _write(train, source, partial, options, report, warn)
        if validation:
            _write(validation, source, partial / VALIDATION, options, report, warn)
        partial.rename(destination)
    except OSError as error:
        raise Refusal(f"{destination}: cannot be written ({error.strerror or error}); choose another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def _write(
    scenes: Sequence[Sequence[Path]],
    source: Path,
    folder: Path,
    options: Options,
    report: Report,
    warn: Callable[[str], None],
) -> None:
    folder.mkdir(parents=True)
    samples = _samples(scenes, source, options, report, warn)
    shard = 0
    while chunk := list(itertools.islice(samples, options.shard_samples)):
        name = str(folder / f"shard-{shard:06d}.tar")
        # fixed owner, mode and time: the same tiles give the same bytes
        with webdataset.TarWriter(name, user="n2n", group="n2n", mode=0o644, mtime=0, encoder=False) as writer:
            for sample in chunk:
                writer.write(sample)
        shard += 1
    if not shard:
        raise Refusal(f"{source}: no usable image; the messages above say why")
    write_index(folder)


def _samples(
    scenes: Sequence[Sequence[Path]],
    source: Path,
    options: Options,
    report: Report,
    warn: Callable[[str], None],
) -> Iterator[dict[str, str | bytes]]:
    for number, files in enumerate(scenes):
        try:
            images = _read_scene(files, options)
        except Refusal as refusal:
            report.bad.append(str(refusal))
            warn(f"skipped: {refusal}")
            if len(report.bad) > report.allowed:
                raise Refusal(
                    f"{source}: {len(report.bad)} unreadable scenes, more than --max-bad {options.max_bad:g} of all; "
                    "repair or remove the files named above, or raise the limit"
                ) from None
            continue
        report.scenes += 1
        name = files[0].relative_to(source)
        slug = re.sub(r"[^A-Za-z0-9]+", "-", str((name.parent if options.captures else name).with_suffix("")))[-48:]
        height, width, _ = images[0].pixels.shape
        for top in _origins(height, options.tile):
            for left in _origins(width, options.tile):
                report.tiles += 1
                about = {
                    "source": str(name),
                    "top": top,
                    "left": left,
                    "black": images[0].black,
                    "white": images[0].white,
                    "bit_depth": images[0].pixels.dtype.itemsize * 8,
                }
                sample: dict[str, str | bytes] = {
                    "__key__": f"{number:06d}-{slug.strip('-')}-{top:05d}-{left:05d}",
                    "json": json.dumps(about, sort_keys=True).encode(),
                }
                for capture, image in enumerate(images):
                    pixels = image.pixels[top : top + options.tile, left : left + options.tile]
                    sample[f"{capture}.{options.encoding}"] = encode(pixels, f".{options.encoding}")
                yield sample


def _read_scene(files: Sequence[Path], options: Options) -> list[Image]:
    if options.captures and len(files) < 2:
        raise Refusal(f"{files[0]}: the only capture of its scene; a pair needs two or more in {files[0].parent}")
    images = [read_image(file, options.black, options.white) for file in files]
    for file, image in zip(files, images, strict=True):
        pixels, first = image.pixels, images[0].pixels
        if pixels.shape != first.shape or pixels.dtype != first.dtype:
            raise Refusal(
                f"{file} is {pixels.shape} {pixels.dtype}, but {files[0]} of the same scene is "
                f"{first.shape} {first.dtype}; captures of a scene must agree"
            )
        if pixels.dtype == np.float32 and options.white is None:
            shares = ", ".join(f"{q}%: {np.percentile(pixels, q):g}" for q in (0, 1, 50, 99, 100))
            raise Refusal(f"{file}: float data has no range of its own ({shares}); give --white (and --black)")
    return images


def _find_scenes(source: Path, captures: bool) -> list[list[Path]]:
    images = find_images(source)
    if not captures:
        return [[path] for path in images]
    if any(path.parent == source for path in images):
        raise Refusal(f"{source}: images outside a scene folder; --captures folder wants {source}/SCENE/*{SUFFIXES[0]}")
    folders = sorted({path.parent for path in images})
    return [[path for path in images if path.parent == folder] for folder in folders]


def _origins(length: int, tile: int) -> list[int]:
    """Spread the fewest tiles that cover `length` evenly."""
    count = -(-length // tile)
    return [round(k * (length - tile) / (count - 1)) for k in range(count)] if count > 1 else [0]


def _check(options: Options) -> None:
    if options.encoding not in ENCODINGS:
        raise Refusal(f"--encoding {options.encoding}: must be {', '.join(ENCODINGS[:-1])} or {ENCODINGS[-1]}")
    for name, value, smallest in (("tile", options.tile, 16), ("shard-samples", options.shard_samples, 1)):
        if value < smallest:
            raise Refusal(f"--{name} {value}: must be {smallest} or more")
    if not 0 < options.max_bad <= 1:
        raise Refusal(f"--max-bad {options.max_bad:g}: must be above 0 and at most 1")
