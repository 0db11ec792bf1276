"""Read and write image files without losing bit depth: PNG, TIFF and JPEG; uint8, uint16, float32."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageOps
import tifffile

from n2n_dist.errors import Refusal

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
MAX_PIXELS = 1 << 29
"""Larger than any sensor or mosaic that fits into memory here; a file that claims more is refused."""

PIL.Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses at twice this number


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
            Refusal: another type, shape or number of channels, or white not above black.

        """
        pixels = array[..., None] if array.ndim == 2 else array
        if array.dtype not in (np.uint8, np.uint16, np.float32):
            raise Refusal(f"an image of type {array.dtype}: convert it to uint8, uint16 or float32")
        if pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4 or 0 in pixels.shape:
            raise Refusal(f"an image of shape {array.shape}: give [H, W] or [H, W, C] with 1 to 4 channels")
        black = 0.0 if black is None else black
        white = full_scale(array.dtype) if white is None else white
        if not white > black:
            raise Refusal(f"white level {white:g} is not above black level {black:g}")
        return cls(pixels, black, white)

    def normalised(self) -> np.ndarray:
        """Return float32 [H, W, C] with black at 0 and white at 1, not clipped."""
        return (self.pixels.astype(np.float32) - np.float32(self.black)) / np.float32(self.white - self.black)

    def with_normalised(self, values: np.ndarray) -> Image:
        """Return an image of the same type and range from float32 values [H, W, C] with white at 1."""
        values = values * np.float32(self.white - self.black) + np.float32(self.black)
        if self.pixels.dtype != np.float32:
            values = np.clip(np.rint(values), 0, full_scale(self.pixels.dtype)).astype(self.pixels.dtype)
        return Image(values, self.black, self.white)


def full_scale(dtype: np.dtype) -> float:
    """Return the largest value of an integer type, or 1 for a float type."""
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0


def find_images(folder: Path) -> list[Path]:
    """List the image files below `folder` in a fixed order, hidden files left out.

    Raises:
        Refusal: there is no such folder, or no image in it.

    """
    if not folder.is_dir():
        raise Refusal(f"{folder}: no such folder")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not files:
        raise Refusal(f"{folder}: no image in it; give a folder of {', '.join(SUFFIXES)} files")
    return files


def read_image(path: Path, black: float | None = None, white: float | None = None) -> Image:
    """Read an image file; a PNG's palette becomes RGB, a JPEG's orientation tag is followed.

    Raises:
        Refusal: the file cannot be read, is too large, or holds an unsupported kind of image.

    """
    try:
        return Image.from_array(decode(path.read_bytes(), path.suffix), black, white)
    except Refusal as refusal:
        raise Refusal(f"{path}: {refusal}") from None
    except OSError as error:
        raise Refusal(f"{path}: cannot be read ({error.strerror or error})") from None


def decode(data: bytes, suffix: str) -> np.ndarray:
    """Decode the bytes of a file by its suffix to [H, W] or [H, W, C].

    Raises:
        Refusal: the bytes are damaged, too large or of an unsupported kind.

    """
    try:
        match suffix.lower():
            case ".npy":
                array = np.load(io.BytesIO(data), allow_pickle=False)
                if not array.flags.c_contiguous:  # `read_pixels` takes rows out of the file
                    raise Refusal("an array in Fortran order; save numpy.ascontiguousarray of it")
                return array
            case ".tif" | ".tiff":
                return _decode_tiff(data)
            case ".png" if data[24:25] == b"\x10":  # bit depth 16, which Pillow would cut to 8 in colour
                _check_size(int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big"))
                return imagecodecs.png_decode(data)
            case ".webp":  # at most 16383 pixels a side
                return imagecodecs.webp_decode(data)
            case _:
                return _decode_pillow(data)
    except Refusal:
        raise
    except Exception as error:  # each library has its own kinds of error for damaged bytes
        raise Refusal(f"damaged or not an image ({type(error).__name__}: {error})") from None


def encode(pixels: np.ndarray, suffix: str) -> bytes:
    """Encode [H, W, C] losslessly by suffix: `.npy`, `.png` (8 and 16 bit), `.webp` (8-bit RGB) or `.tif`.

    Raises:
        Refusal: the format cannot hold this type of pixel.

    """
    squeezed = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    buffer = io.BytesIO()
    match suffix.lower():
        case ".npy":
            np.save(buffer, np.ascontiguousarray(pixels))
        case ".tif" | ".tiff":
            photometric = "rgb" if pixels.shape[2] >= 3 else "minisblack"
            layout = "contig" if pixels.shape[2] > 1 else None
            tifffile.imwrite(buffer, squeezed, photometric=photometric, compression="zlib", planarconfig=layout)
        case ".webp" if pixels.dtype != np.uint8 or pixels.shape[2] != 3:
            raise Refusal(f"WebP holds 8-bit RGB, not {pixels.dtype} of {pixels.shape[2]} channels; use PNG or NPY")
        case ".webp":
            return bytes(imagecodecs.webp_encode(np.ascontiguousarray(pixels), lossless=True))
        case ".png" if pixels.dtype == np.float32:
            raise Refusal("PNG cannot hold float32; use TIFF or NPY")
        case ".png" if pixels.dtype == np.uint16:
            return bytes(imagecodecs.png_encode(np.ascontiguousarray(squeezed)))
        case ".png" if pixels.shape[2] == 2:
            PIL.Image.fromarray(pixels, "LA").save(buffer, "PNG")
        case ".png":
            PIL.Image.fromarray(squeezed).save(buffer, "PNG", optimize=True)
        case _:
            raise Refusal(f"cannot write {suffix} without loss; use .png or .tif")
    return buffer.getvalue()


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write [H, W, C] losslessly by the file's suffix, through a temporary file."""
    data = encode(pixels, path.suffix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise Refusal(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from None


def _decode_pillow(data: bytes) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as opened:
        image = PIL.ImageOps.exif_transpose(opened)
        if image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        elif image.mode in ("1", "CMYK"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        return np.asarray(image)


def _decode_tiff(data: bytes) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if len(file.pages) != 1:
            raise Refusal(f"a TIFF of {len(file.pages)} pages; save each page as a file of its own")
        kind = tifffile.PHOTOMETRIC(file.pages.first.photometric).name
        if kind not in ("MINISBLACK", "RGB", "YCBCR"):
            raise Refusal(f"a TIFF of kind {kind}; save it as grey or RGB")
        series = file.series[0]
        _check_size(series.size)
        array = series.asarray()
    if array.ndim == 3 and series.axes.startswith("S"):
        array = np.moveaxis(array, 0, -1)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _check_size(values: int) -> None:
    if values > MAX_PIXELS:
        raise Refusal(f"claims {values:,} pixels, more than {MAX_PIXELS:,}; cut it into pieces")
