"""PNG of 8 and 16 bit, and JPEG."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from n2n_dist.errors import UserError
from n2n_dist.images.axes import image_axes, image_regions, to_image
from n2n_dist.images.format import Format, StoredArray, WholeWriter, single

ORIENTATION = 0x0112
SWAPPED = (5, 6, 7, 8)
"""Orientations whose width is stored as height."""
DEEP_BANDS = {0: 1, 2: 3, 4: 2, 6: 4}
"""Channels of a 16-bit PNG by its colour type."""
PNG_HEADER = 33
"""Bytes of the signature and of the first chunk."""
INCH = 0.0254
"""Metres."""


def open_pillow(file: BinaryIO) -> list[StoredArray]:
    """Open a PNG or JPEG, whichever it is: one suffix is often given to the other.

    Raises:
        UserError: neither.

    """
    header = file.read(26)
    file.seek(0)
    is_png = header[1:4] == b"PNG"
    try:  # not PIL.Image.open, whose limit of pixels belongs to the program that imports us
        image = PngImageFile(file) if is_png else JpegImageFile(file)
    except SyntaxError:
        raise UserError("damaged or not an image (no PNG or JPEG)") from None
    deep = is_png and header[24] == 16  # bits, which Pillow would cut to 8 in colour
    bands = DEEP_BANDS[header[25]] if deep else _bands(image)
    orientation = 1 if is_png else image.getexif().get(ORIENTATION, 1)  # a PNG's tags may follow its pixels
    height, width = image.size if orientation in SWAPPED else image.size[::-1]

    def load(_: Any) -> np.ndarray:
        if not deep:
            return _decode(image, upright=not is_png)
        file.seek(0)
        return imagecodecs.png_decode(file.read())

    shape = (height, width) if bands == 1 else (height, width, bands)
    dtype = np.dtype(np.uint16 if deep else np.uint8)
    return [StoredArray(shape, dtype, load, "YXS"[: len(shape)], metadata=_metadata(image, is_png), regions=False)]


def create_png(path: Path, like: Sequence[StoredArray]) -> WholeWriter:
    """Begin a PNG with colour profile, resolution and EXIF of the array given."""
    array = single(like, "PNG")
    image = image_axes(array.known_axes, array.shape)
    if len(list(image_regions(array.known_axes, array.shape, image))) != 1:
        raise UserError(f"PNG holds one image, not an array of shape {array.shape}; use .tif or .npy")
    _check_png_type(array.dtype)

    def save(values: list[np.ndarray]) -> None:
        path.write_bytes(encode_png(to_image(values[0], array.known_axes, image), array.metadata))

    return WholeWriter.of(like, save)


def encode_png(pixels: np.ndarray, metadata: Mapping[str, Any] = {}) -> bytes:
    """Encode uint8 or uint16 [H, W, C] without loss.

    Raises:
        UserError: another type.

    """
    _check_png_type(pixels.dtype)
    squeezed = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if pixels.dtype.itemsize == 2:
        data = bytes(imagecodecs.png_encode(squeezed.astype(np.uint16, copy=False)))
    else:
        buffer = io.BytesIO()
        PIL.Image.fromarray(squeezed, "LA" if pixels.shape[2] == 2 else None).save(buffer, "PNG", optimize=True)
        data = buffer.getvalue()
    chunks = b""
    if "icc" in metadata:
        chunks += _chunk(b"iCCP", b"profile\0\0" + zlib.compress(metadata["icc"]))
    if "dpi" in metadata:
        across, down = (round(dpi / INCH) for dpi in metadata["dpi"])
        chunks += _chunk(b"pHYs", struct.pack(">IIB", across, down, 1))
    if "exif" in metadata:
        chunks += _chunk(b"eXIf", metadata["exif"].removeprefix(b"Exif\0\0"))
    return data[:PNG_HEADER] + chunks + data[PNG_HEADER:]


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _check_png_type(dtype: np.dtype) -> None:
    if dtype.kind != "u" or dtype.itemsize > 2:
        raise UserError(f"PNG cannot hold {dtype}; use TIFF or NPY")


def _bands(image: PIL.Image.Image) -> int:
    """Return the channels after `_decode`."""
    if image.mode == "P":
        return 4 if "transparency" in image.info else 3
    return 3 if image.mode == "CMYK" else len(image.getbands())


def _decode(image: PIL.Image.Image, upright: bool) -> np.ndarray:
    turned = PIL.ImageOps.exif_transpose(image) if upright else image
    if turned.mode == "P":
        turned = turned.convert("RGBA" if "transparency" in turned.info else "RGB")
    elif turned.mode in ("1", "CMYK"):
        turned = turned.convert("L" if turned.mode == "1" else "RGB")
    return np.asarray(turned)


def _metadata(image: PIL.Image.Image, is_png: bool) -> dict[str, Any]:
    """Return colour profile, resolution and EXIF; a profile of CMYK is none of the RGB that becomes of it."""
    found: dict[str, Any] = {}
    if image.mode != "CMYK" and image.info.get("icc_profile"):
        found["icc"] = image.info["icc_profile"]
    if dpi := image.info.get("dpi"):
        found["dpi"] = (float(dpi[0]), float(dpi[1]))
    if "exif" in image.info:
        exif = PIL.Image.Exif()
        exif.load(image.info["exif"])
        if not is_png:
            exif.pop(ORIENTATION, None)  # the pixels are upright
        found["exif"] = exif.tobytes()
    return found


PNG = Format(
    "PNG", (".png",), open_pillow, create_png, metadata="colour profile, resolution, EXIF that comes before the pixels"
)
JPEG = Format(  # a lossy result would add new artefacts
    "JPEG", (".jpg", ".jpeg"), open_pillow, written_as=".png", metadata="colour profile, resolution, EXIF"
)
