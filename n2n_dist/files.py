"""Files that are whole or absent: digests, waiting for the disk, and writing through a temporary name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, for a file or a folder; rename it at the end, or remove it after an error.

    Readers see the old file or the new one, never a part; so does a start after a crash or a loss of power, because the
    bytes are on the disk before the rename, and the rename before this returns. Several processes may write the same
    file: the last rename counts. A process that is killed leaves a file for `remove_temporaries`.

    Raises:
        OSError: names `path`, where the temporary name is what failed.

    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and str(error.filename) in ("None", str(temporary)):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left of `write_atomically` in a folder where none is writing now."""
    for path in folder.glob(f"*.{'[0-9a-f]' * 12}.tmp"):
        path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write a JSON file atomically; objects, such as dataclasses, become mappings of their attributes.

    Args:
        path: the file.
        content: what it holds.
        indent: columns a level; None: all on one line without blanks.

    """
    separators = (",", ":") if indent is None else None
    write_text(path, json.dumps(content, indent=indent, separators=separators, default=vars) + "\n")
