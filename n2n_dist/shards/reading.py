"""Read windows of the images in tars."""

from __future__ import annotations

import numpy as np

from n2n_dist.errors import UserError
from n2n_dist.images.codecs import decode
from n2n_dist.images.image import Image
from n2n_dist.shards.cache import File, SourceUnavailableError
from n2n_dist.shards.open_files import read_at
from n2n_dist.shards.records import Member, Sample


def read_window(tar: File, sample: Sample, member: Member, window: tuple[int, int, int, int]) -> np.ndarray:
    """Read one window of a member as it is stored, [height, width, C].

    Of an uncompressed member (`.npy`) only the rows of the window are read.

    Args:
        tar: the shard.
        sample: the sample that the member belongs to.
        member: a capture of it, or its clean reference.
        window: top, left, height and width.

    Raises:
        UserError: the bytes are not those that were indexed, or a value is not finite.
        SourceUnavailableError: the tar cannot be fetched.

    """
    top, left, height, width = window
    dtype = np.dtype(sample.dtype)
    try:
        if member.extension == "npy":
            row = sample.shape[1] * sample.shape[2] * dtype.itemsize
            data_offset = member.offset + member.size - sample.shape[0] * row
            data = read_at(tar, height * row, data_offset + top * row)
            rows = np.frombuffer(data, dtype).reshape(height, *sample.shape[1:])
        else:
            pixels = decode(read_at(tar, member.size, member.offset), f".{member.extension}")
            rows = pixels.reshape(sample.shape)[top : top + height]
        pixels = rows[:, left : left + width]
        if dtype.kind == "f" and not np.isfinite(pixels).all():
            raise ValueError("values that are not finite")
    except SourceUnavailableError:
        raise
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{tar}: sample {sample.key}: {error}") from None
    return pixels


def read_pixels(tar: File, sample: Sample, member: Member, window: tuple[int, int, int, int]) -> np.ndarray:
    """Read one window of a member as float32 [height, width, C], black at 0 and white at 1, not clipped.

    Arguments and refusals are those of `read_window`.
    """
    return Image(read_window(tar, sample, member, window), sample.black, sample.white).normalised()
