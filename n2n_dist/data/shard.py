"""Shards: plain WebDataset tars, and an index that makes them random-access.

A sample KEY is `KEY.json` (source, tile origin, black and white level, bit depth), `KEY.0.<ext>`,
`KEY.1.<ext>`, ... (one member a capture) and optionally `KEY.clean.<ext>` (a reference). `KEY.<ext>` from a
tar written by others is one capture. Beside `NAME.tar` stands `NAME.index.json`, the offset and size of every
member, read only when a sample of that shard is; `index.json` lists the shards.

A process keeps the last shards that it read from open, and of each the place of every sample's record: 8 bytes
a sample, so that memory does not grow with the data set and hardly with the size of a shard.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from n2n_dist.data.image import Image, decode
from n2n_dist.errors import Refusal

INDEX = "index.json"
MEMBERS = ".index.json"
FORMAT = 1
IMAGE_EXTENSIONS = ("npy", "png", "webp", "tif", "tiff", "jpg", "jpeg")
SHARDS_OPEN = 128
"""Shards that a process keeps open: twice the streams of a batch, which pass from one shard to the next."""


@dataclass
class Member:
    """Where the bytes of one image lie in a tar."""

    extension: str
    offset: int
    size: int


@dataclass
class Sample:
    """One sample of a shard: its images are all of the same shape, type and range."""

    key: str
    captures: list[Member]
    clean: Member | None
    shape: tuple[int, int, int]
    """Height, width and channels."""
    dtype: str
    black: float
    white: float


@dataclass
class Shard:
    """A tar as `index.json` lists it; the last four describe its samples without reading them."""

    name: str
    samples: int
    bytes: int
    sha256: str
    channels: list[int]
    captures: int
    """The smallest number of captures of a sample."""
    clean: bool
    """Whether every sample has a clean reference."""
    smallest: tuple[int, int]
    """The smallest height and the smallest width."""


class Index:
    """The shards of one or several folders, in a fixed order; samples are numbered through all of them."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Read every folder's `index.json` and compare the sizes of its tars.

        Raises:
            Refusal: a folder, index or tar is missing, empty, or not the one that was indexed.

        """
        self.shards: list[Shard] = []
        self.paths: list[Path] = []
        for folder in folders:
            for shard in _read_index(folder):
                _check_tar(folder / shard.name, shard)
                self.shards.append(shard)
                self.paths.append(folder / shard.name)
        self.sizes = np.array([shard.samples for shard in self.shards], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self._starts[-1])

    def require(self, setting: str, channels: int, captures: int) -> None:
        """Check what every sample holds.

        Args:
            setting: key of the configuration that named the shards.
            channels: of every image.
            captures: least number of captures of a sample.

        Raises:
            Refusal: names the first shard that does not fit.

        """
        for path, shard in zip(self.paths, self.shards, strict=True):
            if shard.channels != [channels]:
                found = " and ".join(map(str, shard.channels))
                raise Refusal(
                    f"{setting}: {path} has images of {found} channels, model.channels is {channels}; set it to that, "
                    "or use other shards"
                )
            if shard.captures < captures:
                raise Refusal(
                    f"{setting}: {path} has samples with one capture, pairs.source captures needs two; build the "
                    "shards with --captures folder"
                )

    @property
    def fingerprint(self) -> str:
        """A digest of the content: equal for the same samples in the same order, wherever they lie."""
        return hashlib.sha256("\n".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def sample(self, number: int) -> tuple[Path, Sample]:
        """Return the tar and the description of sample `number` in [0, len(self))."""
        shard = int(self._starts.searchsorted(number, side="right")) - 1
        records = _records(self.paths[shard], self.shards[shard].samples)
        return self.paths[shard], records.sample(number - int(self._starts[shard]))


def read_window(tar: Path, sample: Sample, member: Member, window: tuple[int, int, int, int]) -> np.ndarray:
    """Read one window of a member as it is stored, [height, width, C].

    Of an uncompressed member (`.npy`) only the rows of the window are read.

    Args:
        tar: the shard.
        sample: the sample that the member belongs to.
        member: a capture of it, or its clean reference.
        window: top, left, height and width.

    Raises:
        Refusal: the bytes are not what the index says.

    """
    top, left, height, width = window
    try:
        file = _open(tar)
        if member.extension == "npy":
            dtype = np.dtype(sample.dtype)
            row = sample.shape[1] * sample.shape[2] * dtype.itemsize
            data_offset = member.offset + member.size - sample.shape[0] * row
            data = file.read(height * row, data_offset + top * row)
            rows = np.frombuffer(data, dtype).reshape(height, *sample.shape[1:])
        else:
            pixels = decode(file.read(member.size, member.offset), f".{member.extension}")
            rows = pixels.reshape(sample.shape)[top : top + height]
    except (OSError, ValueError, Refusal) as error:
        raise Refusal(f"{tar}: sample {sample.key}: {error}") from None
    return rows[:, left : left + width]


def read_pixels(tar: Path, sample: Sample, member: Member, window: tuple[int, int, int, int]) -> np.ndarray:
    """Read one window of a member as float32 [height, width, C], black at 0 and white at 1, not clipped.

    Arguments and refusals are those of `read_window`.
    """
    return Image(read_window(tar, sample, member, window), sample.black, sample.white).normalised()


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
        _write_json(tar.with_suffix(MEMBERS), [asdict(sample) for sample in samples])
        shards.append(
            Shard(
                name=tar.name,
                samples=len(samples),
                bytes=tar.stat().st_size,
                sha256=_sha256(tar),
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
    for shard in _read_index(folder):
        _check_tar(folder / shard.name, shard)
        if _sha256(folder / shard.name) != shard.sha256:
            raise Refusal(
                f"{folder / shard.name}: not the bytes that were indexed; copy it again, or {_reindex(folder)}"
            )


def _scan(tar: Path) -> Iterator[Sample]:
    try:
        with tarfile.open(tar, "r:") as archive, tar.open("rb") as file:
            members: dict[str, dict[str, Member]] = {}
            for info in archive:
                if info.isdir():
                    continue
                name = info.name.removeprefix("./")
                if not info.isreg() or name.startswith("/") or ".." in name.split("/"):
                    raise Refusal(f"{tar}: member {info.name!r} is a link, a device or leads outside; not used")
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

    images = {name: member for name, member in members.items() if member.extension in IMAGE_EXTENSIONS}
    clean = next((member for name, member in images.items() if name.startswith("clean.")), None)
    numbered = {int(name.split(".")[0]): m for name, m in images.items() if name.split(".")[0].isdecimal()}
    captures = [numbered[number] for number in sorted(numbered)]
    captures = captures or [member for name, member in images.items() if "." not in name]
    if not captures:
        raise Refusal(f"{tar}: sample {key!r} has no image ({', '.join(members)}); wanted KEY.0.png or KEY.png")
    try:
        settings = json.loads(read(members["json"])) if "json" in members else {}
        described = [
            Image.from_array(decode(read(m), f".{m.extension}"), settings.get("black"), settings.get("white"))
            for m in (*captures, *([clean] if clean else []))
        ]
    except (Refusal, ValueError, TypeError, AttributeError) as error:
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


def _read_index(folder: Path) -> list[Shard]:
    path = folder / INDEX
    if not folder.is_dir():
        raise Refusal(f"{folder}: no such folder of shards; make one with: python shards/build.py IMAGES {folder}")
    if not path.is_file():
        raise Refusal(f"{path}: missing; {_reindex(folder)}")
    try:
        content = json.loads(path.read_text())
        shards = [Shard(**shard) for shard in content["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal(f"{path}: not an index of this version ({error!r}); {_reindex(folder)}") from None
    if content.get("format") != FORMAT:
        raise Refusal(f"{path}: format {content.get('format')}, this version reads {FORMAT}; {_reindex(folder)}")
    if not shards:
        raise Refusal(f"{path}: lists no shard; build the shards again")
    return shards


def _check_tar(tar: Path, shard: Shard) -> None:
    try:
        size = tar.stat().st_size
    except OSError:
        raise Refusal(f"{tar}: missing, but the index lists it; copy it again, or {_reindex(tar.parent)}") from None
    if not tar.with_suffix(MEMBERS).is_file():
        raise Refusal(f"{tar.with_suffix(MEMBERS)}: missing; {_reindex(tar.parent)}")
    if size != shard.bytes:
        raise Refusal(
            f"{tar}: {size:,} bytes, but the index says {shard.bytes:,}: truncated, or written since it was "
            f"indexed; copy it again, or {_reindex(tar.parent)}"
        )


def _reindex(folder: Path) -> str:
    return f"index anew with: python shards/build.py index {folder}"


class _File:
    """A file that stays open, read at any place, by any process that inherits it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self._descriptor, size, offset)


class _Records:
    """The list of members of one shard: where the record of each sample stands in it."""

    def __init__(self, tar: Path, count: int) -> None:
        self._path = tar.with_suffix(MEMBERS)
        self._again = _reindex(tar.parent)
        try:
            self._file = _File(self._path)
            self._ends = _scan_records(self._path.read_bytes())
        except (OSError, ValueError) as error:
            raise Refusal(f"{self._path}: cannot be read ({error!r}); {self._again}") from None
        if len(self._ends) != count + 1:
            raise Refusal(f"{self._path}: {len(self._ends) - 1} samples, but {INDEX} says {count}; {self._again}")
        _check_members(tar, [self.sample(0), self.sample(count - 1)])

    def sample(self, place: int) -> Sample:
        start, end = self._ends[place : place + 2].tolist()
        try:
            record = json.loads(self._file.read(end - start - 1, start + 1))
            record["captures"] = [Member(**member) for member in record["captures"]]
            record["clean"] = record["clean"] and Member(**record["clean"])
            record["shape"] = tuple(record["shape"])
            return Sample(**record)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Refusal(f"{self._path}: cannot be read ({error!r}); {self._again}") from None


def _scan_records(data: bytes) -> np.ndarray:
    """Return where the elements of a JSON list end, int64 [elements + 1], the first entry that of its bracket.

    Between two ends stand a separator of one character and an element.
    """
    text = data.decode("latin-1")  # one character a byte
    decode_one, end, ends = json.JSONDecoder().raw_decode, 0, [0]
    while text[end : end + 1] in ("[", ","):
        _, end = decode_one(text, end + 1)
        ends.append(end)
    if text[end:].rstrip() != "]":
        raise ValueError(f"not a list of records at byte {end}")
    return np.array(ends)


_open = functools.lru_cache(maxsize=SHARDS_OPEN)(_File)
_records = functools.lru_cache(maxsize=SHARDS_OPEN)(_Records)


def _check_members(tar: Path, samples: Sequence[Sample]) -> None:
    """Look for the headers of samples, in front of their bytes: another tar of the same size has others."""
    for sample in samples:
        member, key = sample.captures[0], f"{sample.key}."
        try:
            with tar.open("rb") as file:
                file.seek(member.offset - tarfile.BLOCKSIZE)
                header = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            header = tarfile.TarInfo()
        except (OSError, ValueError) as error:
            raise Refusal(f"{tar}: cannot be read ({error})") from None
        # the header cuts a long name, and may hold other letters in the place of those that are not ASCII
        name = header.name.removeprefix("./")
        if header.size != member.size or (key.isascii() and name[: len(key)] != key[: len(name)]):
            raise Refusal(f"{tar}: is not the tar that was indexed; {_reindex(tar.parent)}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, content: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, separators=(",", ":")) + "\n")
    temporary.replace(path)
