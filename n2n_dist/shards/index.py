"""Shards: plain WebDataset tars, and an index that makes them random-access.

A sample KEY is `KEY.json` (source, scene, tile origin, black and white level, bit depth), `KEY.0.<ext>`,
`KEY.1.<ext>`, ... (one member a capture) and optionally `KEY.clean.<ext>` (a reference). `KEY.<ext>` from a
tar written by others is one capture. Beside `NAME.tar` is `NAME.index.json`, the offset and size of every
member, read only when a sample of that shard is; `index.json` lists the shards. A folder of shards may be on this
machine or behind a URL.

`n2n_dist.shards.records` holds the lists of members, `n2n_dist.shards.reading` reads the images.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from n2n_dist.commands import command
from n2n_dist.errors import UserError
from n2n_dist.shards.cache import GIB, Cache, File, RemoteFile
from n2n_dist.shards.records import FORMAT, MEMBERS, Sample, open_records, reindex
from n2n_dist.version import __version__

INDEX = "index.json"
VALIDATION = "validation"
"""Folder beside the tars of training that holds those of validation."""


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
        """Read every folder's `index.json` and compare the sizes of its tars, where they are on this machine.

        Args:
            folders: paths, and URLs as strings.
            cache: for folders behind a URL.

        Raises:
            UserError: a folder, index or tar is missing, empty, or not the one that was indexed.

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

    def require(self, setting: str, channels: int) -> None:
        """Check the channels of every sample.

        Args:
            setting: key of the configuration that named the shards.
            channels: of every image.

        Raises:
            UserError: names the first shard that does not fit.

        """
        for path, shard in zip(self.paths, self.shards, strict=True):
            if shard.channels != [channels]:
                found = " and ".join(map(str, shard.channels))
                raise UserError(
                    f"{setting}: {path} has images of {found} channels, model.channels is {channels}; set it to that, "
                    "or use other shards"
                )

    def require_room(self, streams: int) -> None:
        """Check that the cache can hold the shards that are in use at once.

        Args:
            streams: of the order, those that this machine reads.

        Raises:
            UserError: names both numbers.

        """
        files = [self.remote_files(shard) for shard in range(len(self.shards))]
        sizes = sorted(sum(file.bytes for file in shard) for shard in files)
        needed = sum(sizes[-streams - 1 :])  # one more, for the step into the next
        if needed > self.cache.limit:
            raise UserError(
                f"data.cache_gb {self.cache.limit / GIB:.3g}: {streams} shards are in use at once on this machine, "
                f"which takes {needed / GIB:.3g}; give more, or lower data.streams (in a new run)"
            )

    def remote_files(self, shard: int) -> list[RemoteFile]:
        """Return the files to fetch before the samples of a shard can be read."""
        return [file for file in (self.members[shard], self.paths[shard]) if isinstance(file, RemoteFile)]

    @property
    def remote(self) -> bool:
        """Whether any shard is behind a URL."""
        return any(isinstance(path, RemoteFile) for path in self.paths)

    @property
    def fingerprint(self) -> str:
        """A digest of the content: equal for the same samples in the same order, wherever they are."""
        return hashlib.sha256("\n".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def sample(self, number: int) -> tuple[File, Sample]:
        """Return the tar and the description of sample `number` in [0, len(self)).

        Raises:
            UserError: the tar, or its list of members, is not the one that was indexed.
            SourceUnavailableError: one of them cannot be fetched.

        """
        shard = int(self._starts.searchsorted(number, side="right")) - 1
        records = open_records(self.paths[shard], self.members[shard], self.shards[shard].index_sha256)
        return self.paths[shard], records.sample(number - int(self._starts[shard]))


def read_index(folder: Path | str, cache: Cache | None = None) -> list[Shard]:
    """Read the list of shards of a folder, or of a URL through the cache.

    Raises:
        UserError: there is none, or it is damaged or of another version.

    """
    if isinstance(folder, Path):
        path = str(folder / INDEX)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of shards; make one with: {command('build', 'IMAGES', folder)}")
        if not (folder / INDEX).is_file() and not any(folder.glob("*.tar")):
            raise UserError(f"{folder}: no *.tar file in it; give a folder of shards ({command('build')} makes one)")
        if not (folder / INDEX).is_file():
            raise UserError(f"{path}: missing; {reindex(folder)}")
        text = (folder / INDEX).read_bytes()
    else:
        path = f"{folder}/{INDEX}"
        text = (cache or Cache()).read(path)
    try:
        content = json.loads(text)
        number = content["format"]
        if number not in FORMATS:
            writer = f"n2n_dist {content['version']}" if "version" in content else "an older n2n_dist"
            raise UserError(
                f"{path}: format {number} of {writer}; n2n_dist {__version__} reads format "
                f"{', '.join(map(str, FORMATS))}; {reindex(folder)}"
            )
        shards = FORMATS[number](content)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not an index of this version ({error!r}); {reindex(folder)}") from None
    if not shards:
        raise UserError(f"{path}: lists no shard; build the shards again")
    return shards


def _read_format_3(content: dict[str, Any]) -> list[Shard]:
    shards = [Shard(**shard) for shard in content["shards"]]
    if not all(_is_sound(shard) for shard in shards):
        raise ValueError("a shard with a name, number or digest that cannot be")
    return shards


FORMATS = {FORMAT: _read_format_3}
"""The reader of each format of `index.json`."""


def _is_sound(shard: Shard) -> bool:
    """Check the fields that become a path or a size: an index from elsewhere may hold anything."""
    numbers = (shard.samples, shard.bytes, shard.index_bytes, *shard.smallest, *shard.channels)
    return (
        re.fullmatch(r"[^/\\\0]+\.tar", shard.name) is not None
        and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in (shard.sha256, shard.index_sha256))
        and all(type(number) is int and number > 0 for number in numbers)
    )


def check_tar(tar: Path, shard: Shard) -> None:
    """Compare a tar on this machine with the index, by its size alone.

    Raises:
        UserError: it, or its list of members, is missing or of another size.

    """
    if not tar.is_file():
        raise UserError(f"{tar}: missing, but the index lists it; copy it again, or {reindex(tar.parent)}")
    members = tar.with_suffix(MEMBERS)
    if not members.is_file():
        raise UserError(f"{members}: missing; {reindex(tar.parent)}")
    for path, size in ((tar, shard.bytes), (members, shard.index_bytes)):
        if path.stat().st_size != size:
            raise UserError(
                f"{path}: {path.stat().st_size:,} bytes, but {size:,} in the index: truncated, or written since it "
                f"was indexed; copy it again, or {reindex(tar.parent)}"
            )
