"""Images with their value range: read from files, written to files and to the members of shards."""

from __future__ import annotations

import functools
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import tifffile

from n2n_dist.errors import UserError
from n2n_dist.files import write_atomically
from n2n_dist.images.formats import MAX_CHANNELS, MAX_PIXELS, SUFFIXES, Range, damage_refused, full_range, open_frames

PERCENTILES = (0, 1, 50, 99, 100)
NPY_HEADER = 1 << 12
"""Bytes that hold the header of any `.npy` member; of ours, 128 do."""


@dataclass
class Image:
    """An image and the values that stand for no light and full light."""

    pixels: np.ndarray
    """[H, W, C], uint8, uint16 or float32, 1 to 4 channels."""
    black: float
    """Value that means no light."""
    white: float
    """Value that means full light."""

    @classmethod
    def from_array(cls, array: np.ndarray, black: float | None = None, white: float | None = None) -> Image:
        """Wrap an array [H, W] or [H, W, C]; the range defaults to the type's (float: 0 to 1).

        Raises:
            UserError: another type, shape or number of channels, or white not above black.

        """
        pixels = array[..., None] if array.ndim == 2 else array
        if array.dtype not in (np.uint8, np.uint16, np.float32):
            raise UserError(f"an image of type {array.dtype}: convert it to uint8, uint16 or float32")
        if pixels.ndim != 3 or not 1 <= pixels.shape[2] <= MAX_CHANNELS or 0 in pixels.shape:
            raise UserError(f"an image of shape {array.shape}: give [H, W] or [H, W, C] with 1 to 4 channels")
        lowest, highest = full_range(array.dtype) or (0.0, 1.0)
        black = lowest if black is None else black
        white = highest if white is None else white
        if not (white > black and math.isfinite(white - black)):
            raise UserError(f"white level {white:g} is not above black level {black:g}")
        return cls(pixels, black, white)

    def normalised(self) -> np.ndarray:
        """Return float32 [H, W, C] with black at 0 and white at 1, not clipped."""
        return (self.pixels.astype(np.float32) - np.float32(self.black)) / np.float32(self.white - self.black)

    def with_normalised(self, values: np.ndarray) -> Image:
        """Return an image of the same type and range from float32 values [H, W, C] with white at 1.

        `values` are overwritten: large images should not be in memory twice.
        """
        values *= np.float32(self.white - self.black)
        values += np.float32(self.black)
        if limits := full_range(self.pixels.dtype):
            np.clip(np.rint(values, out=values), *limits, out=values)
        return Image(values.astype(self.pixels.dtype, copy=False), self.black, self.white)


def find_images(folder: Path) -> list[Path]:
    """List the image files below `folder` in a fixed order, hidden files left out.

    Raises:
        UserError: there is no such folder, or no image in it.

    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files, seen = [], set()
    for name, folders, names in os.walk(folder, followlinks=True):
        place = Path(name)
        folders[:] = [] if place.resolve() in seen else [inner for inner in folders if not inner.startswith(".")]
        if place.resolve() not in seen:  # a link may lead back
            files += [place / file for file in names if not file.startswith(".")]
        seen.add(place.resolve())
    files = sorted(path for path in files if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise UserError(f"{folder}: no image in it; give a folder of {', '.join(SUFFIXES)} files")
    return files


def read_frames(path: Path, black: float | None = None, white: float | None = None) -> list[Image]:
    """Read every frame of an image file; the range given goes over that of its type or metadata.

    Raises:
        UserError: the file cannot be read, is too large, holds an unsupported kind of image, or floating-point values
            whose range nobody gave.

    """
    try:
        with path.open("rb") as file:
            frames, known = open_frames(file, path.suffix).read()
        if known is None and white is None:
            raise UserError(f"which value is white? Give --white (and --black); values are {_percentiles(frames)}")
        black, white = _range(known, black, white)
        return [Image.from_array(frame, black, white) for frame in frames]
    except UserError as refusal:
        raise UserError(f"{path}: {refusal}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_image(path: Path, black: float | None = None, white: float | None = None) -> Image:
    """Read a file of one frame.

    Raises:
        UserError: as for `read_frames`, or there are several.

    """
    frames = read_frames(path, black, white)
    if len(frames) != 1:
        raise UserError(f"{path}: holds {len(frames)} frames; save each as a file of its own")
    return frames[0]


def decode(data: bytes, suffix: str) -> np.ndarray:
    """Decode the bytes of a member of a shard to [H, W] or [H, W, C].

    Raises:
        UserError: the bytes are damaged, too large, of an unsupported kind, or several frames.

    """
    if suffix.lower() == ".npy":
        return _decode_npy(data)
    if suffix.lower() == ".webp":  # at most 16383 pixels a side
        with damage_refused():
            return imagecodecs.webp_decode(data)
    frames, _ = open_frames(io.BytesIO(data), suffix).read()
    if len(frames) != 1:
        raise UserError(f"holds {len(frames)} frames; a member is one image")
    return frames[0]


def npy_stand_in(start: bytes, size: int) -> np.ndarray:
    """Return an array of the shape and type of an `.npy` member, but without its values.

    Args:
        start: the first `NPY_HEADER` bytes of the member.
        size: its length in bytes.

    Raises:
        UserError: damaged, truncated, or a layout out of which rows cannot be read.

    """
    shape, dtype, _ = _npy_layout(start, size)
    return np.broadcast_to(np.zeros((), dtype), shape)


def _npy_layout(start: bytes, size: int) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return shape, type and where the values begin. Believes no header that claims more than there is."""
    with damage_refused():
        head, length = (10, start[8:10]) if start[6:7] == b"\1" else (12, start[8:12])
        shape, dtype, fortran, offset = _npy_header(start[: head + int.from_bytes(length, "little")])
    if math.prod(shape[:2]) > MAX_PIXELS:
        raise UserError(f"claims {math.prod(shape[:2]):,} pixels, more than {MAX_PIXELS:,}; cut it into pieces")
    if fortran:  # rows are taken out of the file
        raise UserError("an array in Fortran order; save numpy.ascontiguousarray of it")
    if size != offset + math.prod(shape) * dtype.itemsize:
        raise UserError(f"damaged or not an image ({size:,} bytes for {dtype} of shape {shape})")
    return shape, dtype, offset


@functools.lru_cache(maxsize=64)  # the tiles of a shard are of a few sizes, and numpy's parser is slow
def _npy_header(start: bytes) -> tuple[tuple[int, ...], np.dtype, bool, int]:
    file = io.BytesIO(start)
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = read(file)
    return shape, dtype, fortran, file.tell()


def encode(pixels: np.ndarray, suffix: str) -> bytes:
    """Encode [H, W, C] losslessly by suffix: `.npy`, `.png` (8 and 16 bit), `.webp` (8-bit RGB) or `.tif`.

    Raises:
        UserError: the format cannot hold this type of pixel.

    """
    squeezed = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    buffer = io.BytesIO()
    match suffix.lower():
        case ".npy":
            return _encode_npy(pixels)
        case ".tif" | ".tiff":
            return _encode_tiff([pixels])
        case ".webp" if pixels.dtype != np.uint8 or pixels.shape[2] != 3:
            raise UserError(f"WebP holds 8-bit RGB, not {pixels.dtype} of {pixels.shape[2]} channels; use PNG or NPY")
        case ".webp":
            return bytes(imagecodecs.webp_encode(np.ascontiguousarray(pixels), lossless=True))
        case ".png" if pixels.dtype == np.float32:
            raise UserError("PNG cannot hold float32; use TIFF or NPY")
        case ".png" if pixels.dtype == np.uint16:
            return bytes(imagecodecs.png_encode(np.ascontiguousarray(squeezed)))
        case ".png" if pixels.shape[2] == 2:
            PIL.Image.fromarray(pixels, "LA").save(buffer, "PNG")
        case ".png":
            PIL.Image.fromarray(squeezed).save(buffer, "PNG", optimize=True)
        case _:
            raise UserError(f"cannot write {suffix} without loss; use .png, .tif or .npy")
    return buffer.getvalue()


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write [H, W, C] losslessly by the file's suffix, through a temporary file."""
    write_frames(path, [pixels])


def write_frames(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Write one or several frames [H, W, C] losslessly by the file's suffix, through a temporary file.

    Raises:
        UserError: the format cannot hold them, or the file cannot be written.

    """
    suffix = path.suffix.lower()
    if len(frames) == 1:
        data = encode(frames[0], suffix)
    elif suffix in (".tif", ".tiff"):
        data = _encode_tiff(frames)
    elif suffix == ".npy":
        data = _encode_npy(np.stack(frames))
    else:
        raise UserError(f"{path}: {suffix} holds one frame, not {len(frames)}; use .tif or .npy")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from None


def _encode_npy(array: np.ndarray) -> bytes:
    return b"".join((_npy_start(array.shape, array.dtype), array.tobytes()))


@functools.lru_cache(maxsize=64)  # as of `_npy_header`
def _npy_start(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    buffer = io.BytesIO()
    layout = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, layout)
    return buffer.getvalue()


def _encode_tiff(frames: Sequence[np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, bigtiff=sum(frame.nbytes for frame in frames) >= 1 << 31) as file:
        for frame in frames:
            channels = frame.shape[2]
            file.write(
                frame[..., 0] if channels == 1 else frame,
                photometric="rgb" if channels >= 3 else "minisblack",
                planarconfig="contig" if channels > 1 else None,
                compression="zlib",
            )
    return buffer.getvalue()


def _decode_npy(data: bytes) -> np.ndarray:
    """Use the bytes as they are: `np.load` takes the memory that a header claims before it looks for the data."""
    shape, dtype, offset = _npy_layout(data[:NPY_HEADER], len(data))
    with damage_refused():
        return np.frombuffer(data, dtype, offset=offset).reshape(shape)


def _range(known: Range | None, black: float | None, white: float | None) -> Range:
    lowest, highest = known or (0.0, 1.0)
    return lowest if black is None else black, highest if white is None else white


def _percentiles(frames: Sequence[np.ndarray]) -> str:
    values = np.concatenate([frame.ravel()[:: max(1, frame.size // 100_000)] for frame in frames])
    return ", ".join(
        f"{q}%: {value:g}" for q, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)
    )
