"""Shards: plain WebDataset tars, and an index that makes them random-access.

A sample KEY is `KEY.json` (source, scene, tile origin, black and white level, bit depth), `KEY.0.<ext>`,
`KEY.1.<ext>`, ... (one member a capture) and optionally `KEY.clean.<ext>` (a reference). `KEY.<ext>` from a
tar written by others is one capture. Beside `NAME.tar` stands `NAME.index.json`, the offset and size of every
member, read only when a sample of that shard is; `index.json` lists the shards. A folder of shards may lie on this
machine or behind a URL.

A process keeps the last shards that it read from open, and of each the place of every sample's record: 8 bytes
a sample, so that memory does not grow with the data set and hardly with the size of a shard.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from n2n_dist.data.image import Image, decode
from n2n_dist.data.remote import GIB, Cache, File, RemoteFile, Unavailable
from n2n_dist.errors import Refusal

INDEX = "index.json"
MEMBERS = ".index.json"
FORMAT = 2
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
    index_bytes: int
    """Size of `NAME.index.json`."""
    index_sha256: str
    channels: list[int]
    captures: int
    """The smallest number of captures of a sample."""
    clean: bool
    """Whether every sample has a clean reference."""
    smallest: tuple[int, int]
    """The smallest height and the smallest width."""


class Index:
    """The shards of one or several folders, in a fixed order; samples are numbered through all of them."""

    def __init__(self, folders: Sequence[Path | str], cache: Cache | None = None) -> None:
        """Read every folder's `index.json` and compare the sizes of its tars, where they lie on this machine.

        Args:
            folders: paths, and URLs as strings.
            cache: for what lies behind a URL.

        Raises:
            Refusal: a folder, index or tar is missing, empty, or not the one that was indexed.

        """
        self.cache = cache or Cache()
        self.shards: list[Shard] = []
        self.paths: list[File] = []
        """The tars."""
        self.members: list[File] = []
        """Their lists of members."""
        for folder in folders:
            for shard in read_index(folder, self.cache):
                members = Path(shard.name).with_suffix(MEMBERS).name
                self.shards.append(shard)
                if isinstance(folder, Path):
                    check_tar(folder / shard.name, shard)
                    self.paths.append(folder / shard.name)
                    self.members.append(folder / members)
                else:
                    self.paths.append(RemoteFile(f"{folder}/{shard.name}", shard.bytes, shard.sha256, self.cache))
                    self.members.append(
                        RemoteFile(f"{folder}/{members}", shard.index_bytes, shard.index_sha256, self.cache)
                    )
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
                    "shards with --captures folder, or set pairs.source=neighbours"
                )

    def require_room(self, streams: int) -> None:
        """Check that the cache can hold the shards that are in use at once.

        Args:
            streams: places of the epoch that this machine reads from.

        Raises:
            Refusal: names both numbers.

        """
        files = [self.remote_files(shard) for shard in range(len(self.shards))]
        sizes = sorted(sum(file.bytes for file in shard) for shard in files)
        needed = sum(sizes[-streams - 1 :])  # one more, for the step into the next
        if needed > self.cache.limit:
            raise Refusal(
                f"data.cache_gb {self.cache.limit / GIB:.3g}: {streams} shards are in use at once on this machine, "
                f"which takes {needed / GIB:.3g}; give more, or lower data.streams (in a new run)"
            )

    def remote_files(self, shard: int) -> list[RemoteFile]:
        """Return what has to be fetched before the samples of a shard can be read."""
        return [file for file in (self.members[shard], self.paths[shard]) if isinstance(file, RemoteFile)]

    @property
    def remote(self) -> bool:
        """Whether any shard lies behind a URL."""
        return any(isinstance(path, RemoteFile) for path in self.paths)

    @property
    def fingerprint(self) -> str:
        """A digest of the content: equal for the same samples in the same order, wherever they lie."""
        return hashlib.sha256("\n".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def sample(self, number: int) -> tuple[File, Sample]:
        """Return the tar and the description of sample `number` in [0, len(self)).

        Raises:
            Refusal: the tar, or its list of members, is not the one that was indexed.
            Unavailable: one of them cannot be fetched.

        """
        shard = int(self._starts.searchsorted(number, side="right")) - 1
        records = _records(self.paths[shard], self.members[shard], self.shards[shard].index_sha256)
        return self.paths[shard], records.sample(number - int(self._starts[shard]))


def read_window(tar: File, sample: Sample, member: Member, window: tuple[int, int, int, int]) -> np.ndarray:
    """Read one window of a member as it is stored, [height, width, C].

    Of an uncompressed member (`.npy`) only the rows of the window are read.

    Args:
        tar: the shard.
        sample: the sample that the member belongs to.
        member: a capture of it, or its clean reference.
        window: top, left, height and width.

    Raises:
        Refusal: the bytes are not what the index says, or a value is not finite.
        Unavailable: the tar cannot be fetched.

    """
    top, left, height, width = window
    dtype = np.dtype(sample.dtype)
    try:
        if member.extension == "npy":
            row = sample.shape[1] * sample.shape[2] * dtype.itemsize
            data_offset = member.offset + member.size - sample.shape[0] * row
            data = _read_at(tar, height * row, data_offset + top * row)
            rows = np.frombuffer(data, dtype).reshape(height, *sample.shape[1:])
        else:
            pixels = decode(_read_at(tar, member.size, member.offset), f".{member.extension}")
            rows = pixels.reshape(sample.shape)[top : top + height]
        pixels = rows[:, left : left + width]
        if dtype.kind == "f" and not np.isfinite(pixels).all():
            raise ValueError("values that are not finite")
    except Unavailable:
        raise
    except (OSError, ValueError, Refusal) as error:
        raise Refusal(f"{tar}: sample {sample.key}: {error}") from None
    return pixels


def read_pixels(tar: File, sample: Sample, member: Member, window: tuple[int, int, int, int]) -> np.ndarray:
    """Read one window of a member as float32 [height, width, C], black at 0 and white at 1, not clipped.

    Arguments and refusals are those of `read_window`.
    """
    return Image(read_window(tar, sample, member, window), sample.black, sample.white).normalised()


def read_index(folder: Path | str, cache: Cache | None = None) -> list[Shard]:
    """Read the list of shards of a folder, or of a URL through the cache.

    Raises:
        Refusal: there is none, or it is damaged or of another version.

    """
    if isinstance(folder, Path):
        path = str(folder / INDEX)
        if not folder.is_dir():
            raise Refusal(f"{folder}: no such folder of shards; make one with: python shards/build.py IMAGES {folder}")
        if not (folder / INDEX).is_file():
            raise Refusal(f"{path}: missing; {reindex(folder)}")
        text = (folder / INDEX).read_bytes()
    else:
        path = f"{folder}/{INDEX}"
        text = (cache or Cache()).read(path)
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise Refusal(f"{path}: format {content['format']}, this version reads {FORMAT}; {reindex(folder)}")
        shards = [Shard(**shard) for shard in content["shards"]]
        if not all(_is_sound(shard) for shard in shards):
            raise ValueError("a shard with a name, number or digest that cannot be")
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal(f"{path}: not an index of this version ({error!r}); {reindex(folder)}") from None
    if not shards:
        raise Refusal(f"{path}: lists no shard; build the shards again")
    return shards


def _is_sound(shard: Shard) -> bool:
    """Look at what becomes a path or a size: an index from elsewhere may say anything."""
    numbers = (shard.samples, shard.bytes, shard.index_bytes, *shard.smallest, *shard.channels)
    return (
        re.fullmatch(r"[^/\\\0]+\.tar", shard.name) is not None
        and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in (shard.sha256, shard.index_sha256))
        and all(type(number) is int and number > 0 for number in numbers)
    )


def check_tar(tar: Path, shard: Shard) -> None:
    """Compare a tar on this machine with the index, by its size alone.

    Raises:
        Refusal: it, or its list of members, is missing or of another size.

    """
    if not tar.is_file():
        raise Refusal(f"{tar}: missing, but the index lists it; copy it again, or {reindex(tar.parent)}")
    members = tar.with_suffix(MEMBERS)
    if not members.is_file():
        raise Refusal(f"{members}: missing; {reindex(tar.parent)}")
    for path, size in ((tar, shard.bytes), (members, shard.index_bytes)):
        if path.stat().st_size != size:
            raise Refusal(
                f"{path}: {path.stat().st_size:,} bytes, but the index says {size:,}: truncated, or written since it "
                f"was indexed; copy it again, or {reindex(tar.parent)}"
            )


def reindex(folder: Path | str) -> str:
    """Say how to get an index that fits."""
    if isinstance(folder, Path):
        return f"index anew with: python shards/build.py index {folder}"
    return "index the shards anew where they were built (python shards/build.py index FOLDER) and copy them there again"


class _OpenFile:
    """A file that stays open, read at any place, by any process that inherits it."""

    def __init__(self, path: Path, inode: int, modified: int) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self._descriptor, size, offset)


def _read_at(file: File, size: int, offset: int) -> bytes:
    if isinstance(file, Path):
        about = file.stat()  # shards may be built again under a name
        return _open(file, about.st_ino, about.st_mtime_ns).read(size, offset)
    with file.open("rb") as cached:  # not kept open: the cache counts uses, and the room of what it removed
        cached.seek(offset)
        return cached.read(size)


class _Records:
    """The list of members of one shard: where the record of each sample stands in it."""

    def __init__(self, tar: File, members: File, sha256: str) -> None:
        self._tar = tar
        self._members = members
        try:
            with members.open("rb") as file:
                text = file.read()
            if hashlib.sha256(text).hexdigest() != sha256:
                raise ValueError(f"is not the one that {INDEX} names")
            self._ends = _scan_records(text)
        except Unavailable:
            raise
        except (OSError, ValueError) as error:
            raise self._refusal(error) from None
        _check_members(tar, [self.sample(0), self.sample(len(self._ends) - 2)])

    def sample(self, place: int) -> Sample:
        start, end = self._ends[place : place + 2].tolist()
        try:
            record = json.loads(_read_at(self._members, end - start - 1, start + 1))
            record["captures"] = [Member(**member) for member in record["captures"]]
            record["clean"] = record["clean"] and Member(**record["clean"])
            record["shape"] = tuple(record["shape"])
            return Sample(**record)
        except Unavailable:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> Refusal:
        return Refusal(f"{self._members}: cannot be read ({error}); {_repair(self._tar)}")


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


_open = functools.lru_cache(maxsize=SHARDS_OPEN)(_OpenFile)
_records = functools.lru_cache(maxsize=SHARDS_OPEN)(_Records)


def _repair(tar: File) -> str:
    return reindex(tar.parent) if isinstance(tar, Path) else f"remove its copies in {tar.cache.folder}"


def _check_members(tar: File, samples: Sequence[Sample]) -> None:
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
            raise Refusal(f"{tar}: is not the tar that was indexed; {_repair(tar)}")
