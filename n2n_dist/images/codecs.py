"""Images as bytes: the members of shards."""

from __future__ import annotations

import io
import math

import imagecodecs
import numpy as np
import tifffile

from n2n_dist.errors import UserError
from n2n_dist.images import frames
from n2n_dist.images.format import damage_refused
from n2n_dist.images.readers import open_arrays
from n2n_dist.images.readers.npy import Header, format_header, parse_header
from n2n_dist.images.readers.pillow import encode_png

NPY_HEADER = 1 << 12
"""Bytes that hold the header of any `.npy` member; of ours, 128 do."""


def decode(data: bytes, suffix: str) -> np.ndarray:
    """Decode the bytes of a member to [H, W, C], or an `.npy` as it is.

    Raises:
        UserError: the bytes are damaged, too large, of an unsupported kind, or several frames.

    """
    if suffix.lower() == ".npy":  # `np.load` takes the memory that a header claims before it looks for the data
        header = _npy_header(data[:NPY_HEADER], len(data))
        with damage_refused():
            return np.frombuffer(data, header.dtype, offset=header.offset).reshape(header.shape)
    if suffix.lower() == ".webp":  # at most 16383 pixels a side
        with damage_refused():
            return imagecodecs.webp_decode(data)
    found = frames.list_frames(open_arrays(io.BytesIO(data), suffix))
    if len(found) != 1:
        raise UserError(f"holds {len(found)} frames; a member is one image")
    return found[0].read()


def encode(pixels: np.ndarray, suffix: str) -> bytes:
    """Encode [H, W, C] losslessly by suffix: `.npy`, `.png` (8 and 16 bit), `.webp` (8-bit RGB) or `.tif`.

    Raises:
        UserError: the format cannot hold this type of pixel.

    """
    match suffix.lower():
        case ".npy":
            return b"".join((format_header(pixels.shape, pixels.dtype), pixels.tobytes()))
        case ".tif" | ".tiff":
            return _encode_tiff(pixels)
        case ".webp" if pixels.dtype != np.uint8 or pixels.shape[2] != 3:
            raise UserError(f"WebP holds 8-bit RGB, not {pixels.dtype} of {pixels.shape[2]} channels; use PNG or NPY")
        case ".webp":
            return bytes(imagecodecs.webp_encode(np.ascontiguousarray(pixels), lossless=True))
        case ".png":
            return encode_png(pixels)
    raise UserError(f"cannot write {suffix} without loss; use .png, .tif or .npy")


def npy_stand_in(start: bytes, size: int) -> np.ndarray:
    """Return an array of the shape and type of an `.npy` member, but without its values.

    Args:
        start: the first `NPY_HEADER` bytes of the member.
        size: its length in bytes.

    Raises:
        UserError: damaged, truncated, or a layout out of which rows cannot be read.

    """
    header = _npy_header(start, size)
    return np.broadcast_to(np.zeros((), header.dtype), header.shape)


def _npy_header(start: bytes, size: int) -> Header:
    """Parse the header of a member of `size` bytes; believes none that claims more than there is."""
    with damage_refused():
        head, length = (10, start[8:10]) if start[6:7] == b"\1" else (12, start[8:12])
        header = parse_header(start[: head + int.from_bytes(length, "little")])
    pixels = math.prod(header.shape[:2])
    if pixels > frames.MAX_PIXELS:
        raise UserError(f"claims {pixels:,} pixels, more than {frames.MAX_PIXELS:,}; cut it into pieces")
    if header.fortran:  # rows are taken out of the file
        raise UserError("an array in Fortran order; save numpy.ascontiguousarray of it")
    if size != header.offset + math.prod(header.shape) * header.dtype.itemsize:
        raise UserError(f"damaged or not an image ({size:,} bytes for {header.dtype} of shape {header.shape})")
    return header


def _encode_tiff(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    channels = pixels.shape[2]
    tifffile.imwrite(
        buffer,
        pixels[..., 0] if channels == 1 else pixels,
        bigtiff=pixels.nbytes >= 1 << 31,
        photometric="rgb" if channels >= 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        compression="zlib",
    )
    return buffer.getvalue()
