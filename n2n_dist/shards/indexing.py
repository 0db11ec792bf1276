"""Index tars: find their samples, check every one of them, and write the lists that make them random-access."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from n2n_dist import files
from n2n_dist.errors import UserError
from n2n_dist.images.codecs import NPY_HEADER, decode, npy_stand_in
from n2n_dist.images.image import Image
from n2n_dist.shards.index import INDEX, Shard, check_tar, read_index
from n2n_dist.shards.records import FORMAT, MEMBERS, Member, Sample, reindex, write_records
from n2n_dist.version import __version__

IMAGE_EXTENSIONS = ("npy", "png", "webp", "tif", "tiff", "jpg", "jpeg")


def write_index(folder: Path, black: float | None = None, white: float | None = None) -> list[Shard]:
    """Index every `*.tar` of a folder, also one written by another program.

    Args:
        folder: holds the tars.
        black: value that means no light, for samples without it in `KEY.json`; default the type's smallest.
        white: value that means full light, likewise; default the type's largest. Float images need it.

    Raises:
        UserError: no tar, a damaged tar, or one whose samples cannot be used; names the sample and why.

    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise UserError(f"{folder}: no *.tar file to index")
    if (folder / INDEX).is_file() and b'"format"' not in (folder / INDEX).read_bytes()[:20]:
        raise UserError(f"{folder / INDEX}: not written by this package, and would be replaced; move it away")
    shards = [index_tar(tar, black, white) for tar in tars]
    write_list(folder, shards)
    return shards


def index_tar(tar: Path, black: float | None = None, white: float | None = None) -> Shard:
    """Look at every sample of a tar, write the list of its members beside it, and describe it.

    Args:
        tar: the shard.
        black: as for `write_index`.
        white: as for `write_index`.

    Raises:
        UserError: it is damaged or empty, or a sample cannot be used.

    """
    samples = list(_scan(tar, black, white))
    if not samples:
        raise UserError(f"{tar}: no sample in it; remove it or build it again")
    return list_members(tar, samples, files.sha256(tar))


def list_members(tar: Path, samples: Sequence[Sample], sha256: str) -> Shard:
    """Write the list of the members of a tar beside it, and describe it.

    Args:
        tar: the shard.
        samples: all that it holds, at least one.
        sha256: of its bytes.

    """
    members = tar.with_suffix(MEMBERS)
    write_records(members, samples)
    return Shard(
        name=tar.name,
        samples=len(samples),
        bytes=tar.stat().st_size,
        sha256=sha256,
        index_bytes=members.stat().st_size,
        index_sha256=files.sha256(members),
        channels=sorted({sample.shape[2] for sample in samples}),
        captures=min(len(sample.captures) for sample in samples),
        clean=all(sample.clean is not None for sample in samples),
        smallest=(min(s.shape[0] for s in samples), min(s.shape[1] for s in samples)),
    )


def write_list(folder: Path, shards: Sequence[Shard]) -> None:
    """Write the `index.json` of a folder."""
    files.write_json(folder / INDEX, {"format": FORMAT, "version": __version__, "shards": shards})


def verify(folder: Path) -> None:
    """Compare the digest of every tar with the index.

    Raises:
        UserError: names the first tar that differs.

    """
    for tar in differing(folder):
        raise UserError(f"{tar}: not the bytes that were indexed; copy it again, or {reindex(folder)}")


def differing(folder: Path) -> Iterator[Path]:
    """Yield the tars whose digest is not that of the index.

    Raises:
        UserError: no index, or a tar that is missing or of another size.

    """
    for shard in read_index(folder):
        check_tar(folder / shard.name, shard)
        if files.sha256(folder / shard.name) != shard.sha256:
            yield folder / shard.name


def _scan(tar: Path, black: float | None, white: float | None) -> Iterator[Sample]:
    try:
        with tarfile.open(tar, "r:") as archive, tar.open("rb") as file:
            members: dict[str, dict[str, Member]] = {}
            for info in archive:
                if info.isdir():
                    continue
                name = info.name.removeprefix("./")
                if not info.isreg() or info.issparse() or name.startswith("/") or ".." in name.split("/"):
                    raise UserError(
                        f"{tar}: member {info.name!r} is a link, a device, sparse or leads outside; not used"
                    )
                folder, _, base = name.rpartition("/")
                if base.startswith("._"):  # added by macOS
                    continue
                stem, _, extension = base.partition(".")
                sample = members.setdefault(f"{folder}/{stem}".removeprefix("/"), {})
                if extension in sample:
                    raise UserError(f"{tar}: member {info.name!r} occurs twice; build the tar again")
                sample[extension] = Member(extension.rpartition(".")[2].lower(), info.offset_data, info.size)
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile stops at a bad header
                raise tarfile.ReadError("no end mark after the last readable member")
            for key, sample in members.items():
                yield _describe(tar, file, key, sample, black, white)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{tar}: truncated or not a tar ({error}); copy or build it again") from None


def _describe(
    tar: Path, file: Any, key: str, members: dict[str, Member], black: float | None, white: float | None
) -> Sample:
    def read(member: Member, most: int | None = None) -> bytes:
        file.seek(member.offset)
        return bytes(file.read(member.size if most is None else min(most, member.size)))

    def look(member: Member) -> np.ndarray:
        if member.extension == "npy":  # complete when its length is right
            return npy_stand_in(read(member, NPY_HEADER), member.size)
        return decode(read(member), f".{member.extension}")

    images: dict[str, Member] = {}  # by the part between key and extension: a number, `clean`, or nothing
    for name, member in members.items():
        part = name.rpartition(".")[0]
        part = str(int(part)) if part.isdecimal() else part
        if member.extension not in IMAGE_EXTENSIONS or not (part.isdecimal() or part in ("clean", "")):
            continue
        if part in images:
            raise UserError(f"{tar}: sample {key!r} has two images for KEY{part and '.'}{part} ({', '.join(members)})")
        images[part] = member
    clean = images.get("clean")
    captures = [images[part] for part in sorted(filter(str.isdecimal, images), key=int)]
    captures = captures or [image for part, image in images.items() if not part]
    if not captures:
        raise UserError(f"{tar}: sample {key!r} has no image ({', '.join(members)}); wanted KEY.0.png or KEY.png")
    try:
        settings = {"black": black, "white": white}
        settings |= json.loads(read(members["json"])) if "json" in members else {}
        seen = [look(member) for member in (*captures, *([clean] if clean else []))]
        if seen[0].dtype == np.float32 and settings["white"] is None:
            raise UserError("float values without a range; give --white (and --black)")
        described = [Image.from_array(array, settings["black"], settings["white"]) for array in seen]
    except (UserError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{tar}: sample {key!r}: {error}") from None
    first = described[0].pixels
    if any(other.pixels.shape != first.shape or other.pixels.dtype != first.dtype for other in described):
        raise UserError(f"{tar}: sample {key!r}: its images differ in size, channels or type")
    return Sample(
        key=key,
        captures=captures,
        clean=clean,
        shape=(first.shape[0], first.shape[1], first.shape[2]),
        dtype=str(first.dtype),
        black=float(described[0].black),
        white=float(described[0].white),
    )
