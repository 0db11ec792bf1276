"""Index tars: find their samples, check every one of them, and write the lists that make them random-access."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from n2n_dist.data.image import Image, decode
from n2n_dist.data.shard import FORMAT, INDEX, MEMBERS, Member, Sample, Shard, check_tar, read_index, reindex
from n2n_dist.errors import Refusal

IMAGE_EXTENSIONS = ("npy", "png", "tif", "tiff", "jpg", "jpeg")


def write_index(folder: Path) -> list[Shard]:
    """Index every `*.tar` of a folder, whoever wrote it.

    Raises:
        Refusal: no tar, a damaged tar, or one whose samples cannot be used; names the sample and why.

    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise Refusal(f"{folder}: no *.tar file to index")
    if (folder / INDEX).is_file() and b'"format"' not in (folder / INDEX).read_bytes()[:20]:
        raise Refusal(f"{folder / INDEX}: not written by this package, and would be replaced; move it away")
    shards = []
    for tar in tars:
        samples = list(_scan(tar))
        if not samples:
            raise Refusal(f"{tar}: no sample in it; remove it or build it again")
        members = tar.with_suffix(MEMBERS)
        _write_json(members, [asdict(sample) for sample in samples])
        shards.append(
            Shard(
                name=tar.name,
                samples=len(samples),
                bytes=tar.stat().st_size,
                sha256=_sha256(tar),
                index_bytes=members.stat().st_size,
                index_sha256=_sha256(members),
                channels=sorted({sample.shape[2] for sample in samples}),
                captures=min(len(sample.captures) for sample in samples),
                clean=all(sample.clean is not None for sample in samples),
                smallest=(min(s.shape[0] for s in samples), min(s.shape[1] for s in samples)),
            )
        )
    _write_json(folder / INDEX, {"format": FORMAT, "shards": [asdict(shard) for shard in shards]})
    return shards


def verify(folder: Path) -> None:
    """Compare the digest of every tar with the index.

    Raises:
        Refusal: names the first tar that differs.

    """
    for shard in read_index(folder):
        check_tar(folder / shard.name, shard)
        if _sha256(folder / shard.name) != shard.sha256:
            raise Refusal(
                f"{folder / shard.name}: not the bytes that were indexed; copy it again, or {reindex(folder)}"
            )


def _scan(tar: Path) -> Iterator[Sample]:
    try:
        with tarfile.open(tar, "r:") as archive, tar.open("rb") as file:
            members: dict[str, dict[str, Member]] = {}
            for info in archive:
                if info.isdir():
                    continue
                name = info.name.removeprefix("./")
                if not info.isreg() or info.issparse() or name.startswith("/") or ".." in name.split("/"):
                    raise Refusal(f"{tar}: member {info.name!r} is a link, a device, sparse or leads outside; not used")
                folder, _, base = name.rpartition("/")
                stem, _, extension = base.partition(".")
                sample = members.setdefault(f"{folder}/{stem}".removeprefix("/"), {})
                if extension in sample:
                    raise Refusal(f"{tar}: member {info.name!r} stands in it twice; build the tar again")
                sample[extension] = Member(extension.rpartition(".")[2].lower(), info.offset_data, info.size)
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile stops at a bad header
                raise tarfile.ReadError("no end mark after the last readable member")
            for key, sample in members.items():
                yield _describe(tar, file, key, sample)
    except (tarfile.TarError, EOFError) as error:
        raise Refusal(f"{tar}: truncated or not a tar ({error}); copy or build it again") from None


def _describe(tar: Path, file: Any, key: str, members: dict[str, Member]) -> Sample:
    def read(member: Member) -> bytes:
        file.seek(member.offset)
        return bytes(file.read(member.size))

    images: dict[str, Member] = {}  # by what stands between key and extension: a number, `clean`, or nothing
    for name, member in members.items():
        part = name.rpartition(".")[0]
        part = str(int(part)) if part.isdecimal() else part
        if member.extension not in IMAGE_EXTENSIONS or not (part.isdecimal() or part in ("clean", "")):
            continue
        if part in images:
            raise Refusal(f"{tar}: sample {key!r} has two images for KEY{part and '.'}{part} ({', '.join(members)})")
        images[part] = member
    clean = images.get("clean")
    captures = [images[part] for part in sorted(filter(str.isdecimal, images), key=int)]
    captures = captures or [image for part, image in images.items() if not part]
    if not captures:
        raise Refusal(f"{tar}: sample {key!r} has no image ({', '.join(members)}); wanted KEY.0.png or KEY.png")
    try:
        settings = json.loads(read(members["json"])) if "json" in members else {}
        described = [
            Image.from_array(decode(read(m), f".{m.extension}"), settings.get("black"), settings.get("white"))
            for m in (*captures, *([clean] if clean else []))
        ]
    except (Refusal, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Refusal(f"{tar}: sample {key!r}: {error}") from None
    first = described[0].pixels
    if any(other.pixels.shape != first.shape or other.pixels.dtype != first.dtype for other in described):
        raise Refusal(f"{tar}: sample {key!r}: its images differ in size, channels or type")
    return Sample(
        key=key,
        captures=captures,
        clean=clean,
        shape=(first.shape[0], first.shape[1], first.shape[2]),
        dtype=str(first.dtype),
        black=float(described[0].black),
        white=float(described[0].white),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, content: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, separators=(",", ":")) + "\n")
    temporary.replace(path)
