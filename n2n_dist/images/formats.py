"""The file formats of labs: opened without decoding, read without losing bit depth.

A file holds one frame or many: the pages of a TIFF, the planes of a FITS cube, the frames of a DICOM file, the first
axis of an array. A frame is [H, W, C], uint8, uint16 or float32, 1 to 4 channels. What these types cannot hold exactly
is refused, but for double precision, which is rounded to float32.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageOps
import tifffile

from n2n_dist.errors import UserError

MAX_PIXELS = 1 << 29
"""Larger than any sensor or mosaic that fits into memory here; a frame that claims more is refused."""
MAX_FILE_PIXELS = 1 << 32
"""Most pixels in all frames of a file together, which is read as a whole."""
MAX_FRAMES = 1 << 20
"""Most frames of a file."""
MAX_CHANNELS = 4
FLOAT32_INTEGERS = 1 << 24
"""float32 holds every integer up to this one."""

PIL.Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses at twice this number

Size = tuple[int, int]
Range = tuple[float, float]


@dataclass
class Frames:
    """An opened file."""

    sizes: list[Size]
    """Height and width of each frame in pixels."""
    read: Callable[[], tuple[list[np.ndarray], Range | None]]
    """Decode all frames, each [H, W, C]; with the values that mean no light and full light, where type or metadata
    give them."""


def open_frames(file: BinaryIO, suffix: str) -> Frames:
    """Open a file of the format that `suffix` names; `file` must stay open until its frames are read.

    Raises:
        UserError: also from `read`: damaged, too large, an unsupported kind of image, or a package is missing.

    """
    if suffix.lower() not in _OPEN:
        raise UserError(f"{suffix or 'no suffix'}: not a known format; known are {', '.join(_OPEN)}")
    with damage_refused():
        frames = _OPEN[suffix.lower()](file)
    pixels = [height * width for height, width in frames.sizes]
    if not any(pixels):
        raise UserError("holds no image")
    if max(pixels) > MAX_PIXELS:
        raise UserError(f"claims {max(pixels):,} pixels, more than {MAX_PIXELS:,}; cut it into pieces")
    if sum(pixels) > MAX_FILE_PIXELS:
        raise UserError(f"claims {len(pixels):,} frames of {sum(pixels):,} pixels in all; split it into several files")

    def read() -> tuple[list[np.ndarray], Range | None]:
        with damage_refused():
            return frames.read()

    return Frames(frames.sizes, read)


def full_range(dtype: np.dtype) -> Range | None:
    """Return the smallest and largest value of an integer type; a float type has no range of its own."""
    return (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)) if np.issubdtype(dtype, np.integer) else None


@contextlib.contextmanager
def damage_refused() -> Iterator[None]:
    """Turn what the libraries raise for damaged bytes, each its own kinds of error, into a refusal."""
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise
    except PIL.UnidentifiedImageError:  # its message holds an address in memory
        raise UserError("damaged or not an image (no PNG or JPEG)") from None
    except Exception as error:
        raise UserError(f"damaged or not an image ({type(error).__name__}: {' '.join(str(error).split())})") from None


def _open_pillow(file: BinaryIO) -> Frames:
    header = file.read(26)
    file.seek(0)
    if header[1:4] == b"PNG" and header[24:25] == b"\x10":  # bit depth 16, which Pillow would cut to 8 in colour
        size = int.from_bytes(header[20:24], "big"), int.from_bytes(header[16:20], "big")
        return Frames([size], lambda: _supported([imagecodecs.png_decode(file.read())]))
    image = PIL.Image.open(file, formats=("PNG", "JPEG"))
    width, height = image.size
    oriented = image.format != "PNG"  # whose tags may follow the pixels
    turned = oriented and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # orientations that swap the axes

    def read() -> tuple[list[np.ndarray], Range | None]:
        upright = PIL.ImageOps.exif_transpose(image) if oriented else image
        if upright.mode == "P":
            upright = upright.convert("RGBA" if "transparency" in upright.info else "RGB")
        elif upright.mode in ("1", "CMYK"):
            upright = upright.convert("L" if upright.mode == "1" else "RGB")
        return _supported([np.asarray(upright)])

    return Frames([(width, height) if turned else (height, width)], read)


def _open_tiff(file: BinaryIO) -> Frames:
    tiff = tifffile.TiffFile(file)
    if any(series.is_multifile for series in tiff.series):  # a set of which every file names all: take its own pages
        file.seek(0)
        tiff = tifffile.TiffFile(file, is_ome=False)
    sizes: list[Size] = []
    for series in tiff.series:
        kind = tifffile.PHOTOMETRIC(series.keyframe.photometric).name
        compressed = series.keyframe.compression == tifffile.COMPRESSION.JPEG  # whose decoder makes RGB of YCbCr
        if kind not in ("MINISBLACK", "RGB") and not (kind == "YCBCR" and compressed):
            raise UserError(f"a TIFF of kind {kind}; save it as grey or RGB")
        lengths = dict(zip(series.axes, series.shape, strict=True))
        height, width, channels = (lengths.get(axis, 1) for axis in _image_axes(series))
        sizes += _same((height, width), math.prod(series.shape) // (height * width * channels))

    def read() -> tuple[list[np.ndarray], Range | None]:
        arrays: list[np.ndarray] = []
        for series in tiff.series:
            last = [series.axes.index(axis) for axis in _image_axes(series) if axis in series.axes]
            array = np.moveaxis(series.asarray(), last, range(-len(last), 0))
            arrays.extend(array.reshape(-1, *array.shape[-len(last) :]))
        frames, range_ = _supported(arrays)
        bits = {series.keyframe.bitspersample for series in tiff.series}
        if arrays[0].dtype in (np.uint8, np.uint16) and len(bits) == 1:  # packed, such as 12 bit of 16
            range_ = 0.0, float((1 << int(bits.pop())) - 1)
        return frames, range_

    return Frames(sizes, read)


def _image_axes(series: tifffile.TiffPageSeries) -> str:
    """Return the axes of one image: more than four channels of a microscope are frames, like every other axis."""
    channels = series.shape[series.axes.index("C")] if "C" in series.axes else MAX_CHANNELS + 1
    return "YXS" if "S" in series.axes or channels > MAX_CHANNELS else "YXC"


def _open_npy(file: BinaryIO) -> Frames:
    shape, dtype = _npy_header(file)
    missing = file.tell() + math.prod(shape) * dtype.itemsize - file.seek(0, 2)
    if missing > 0:
        raise UserError(
            f"damaged or not an image (claims shape {shape} and type {dtype}, {missing:,} bytes are missing)"
        )
    file.seek(0)
    return Frames(_frame_sizes(shape), lambda: _supported(_frames_of(np.load(file, allow_pickle=False))))


def _open_npz(file: BinaryIO) -> Frames:
    arrays = np.load(file, allow_pickle=False)
    names = [name for name in arrays.files if f"{name}.npy" in arrays.zip.namelist()]  # in the order of the archive
    sizes: list[Size] = []
    for name in names:
        with arrays.zip.open(f"{name}.npy") as member:
            sizes += _frame_sizes(_npy_header(member)[0])
    return Frames(sizes, lambda: _supported([frame for name in names for frame in _frames_of(arrays[name])]))


def _npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _frame_sizes(shape: tuple[int, ...]) -> list[Size]:
    """Take [H, W], [H, W, C] with C up to 4, else [N, H, W], or [N, H, W, C]."""
    if len(shape) == 4 and shape[3] <= MAX_CHANNELS:
        return _same((shape[1], shape[2]), shape[0])
    if len(shape) == 3 and shape[2] > MAX_CHANNELS:
        return _same((shape[1], shape[2]), shape[0])
    if len(shape) in (2, 3):
        return [(shape[0], shape[1])]
    raise UserError(
        f"an array of shape {shape}: give [H, W], [H, W, C], [N, H, W] or [N, H, W, C] with 1 to 4 channels"
    )


def _frames_of(array: np.ndarray) -> list[np.ndarray]:
    several = array.ndim == 4 or (array.ndim == 3 and array.shape[2] > MAX_CHANNELS)
    return list(array) if several else [array]


def _open_fits(file: BinaryIO) -> Frames:
    fits = _science("astropy.io.fits", "astropy")
    images = [hdu for hdu in fits.open(file, memmap=False) if hdu.is_image and len(hdu.shape) >= 2]
    sizes = [size for hdu in images for size in _same(hdu.shape[-2:], math.prod(hdu.shape[:-2]))]

    def read() -> tuple[list[np.ndarray], Range | None]:
        arrays = [hdu.data for hdu in images]
        if len({array.dtype for array in arrays}) > 1:  # such as an image and its mask
            planes = (f"{hdu.name} {array.dtype.name}".strip() for hdu, array in zip(images, arrays, strict=True))
            raise UserError(
                f"holds planes of several types ({', '.join(planes)}); write those of the image to a new file"
            )
        return _supported([frame for array in arrays for frame in array.reshape(-1, *array.shape[-2:])])

    return Frames(sizes, read)


def _open_dicom(file: BinaryIO) -> Frames:
    pydicom = _science("pydicom", "pydicom")
    header = pydicom.dcmread(file, stop_before_pixels=True)
    sizes = _same((int(header.Rows), int(header.Columns)), int(header.get("NumberOfFrames") or 1))

    def read() -> tuple[list[np.ndarray], Range | None]:
        file.seek(0)
        data = pydicom.dcmread(file)
        if data.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2", "RGB") and (
            not data.PhotometricInterpretation.startswith("YBR")
        ):
            raise UserError(f"a DICOM of kind {data.PhotometricInterpretation}; save it as grey or RGB")
        stored = data.pixel_array
        frames = list(stored) if len(sizes) > 1 else [stored]
        signed, bits = bool(data.PixelRepresentation), int(data.BitsStored)
        limits = np.array([-(1 << bits - 1), (1 << bits - 1) - 1] if signed else [0, (1 << bits) - 1], np.float64)
        scales = [_rescale(data, number) for number in range(len(frames))]
        if not signed and all(scale == (1.0, 0.0) for scale in scales):
            return _supported(frames)[0], (limits[0], limits[1])
        ends = np.array([slope * limits + intercept for slope, intercept in scales])
        scaled = [
            (frame * slope + intercept).astype(np.float32)
            for frame, (slope, intercept) in zip(frames, scales, strict=True)
        ]
        return _supported(scaled)[0], (float(ends.min()), float(ends.max()))

    return Frames(sizes, read)


def _rescale(data: Any, frame: int) -> tuple[float, float]:
    """Return slope and intercept of a DICOM frame: of the file, of all frames, or of this one."""
    places = [data]
    for groups, number in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        if len(data.get(groups) or []) > number:
            places += data[groups].value[number].get("PixelValueTransformationSequence") or []
    place = next((place for place in reversed(places) if "RescaleSlope" in place or "RescaleIntercept" in place), data)
    return float(place.get("RescaleSlope", 1)), float(place.get("RescaleIntercept", 0))


def _same(size: Size, count: int) -> list[Size]:
    if count > MAX_FRAMES:
        raise UserError(f"claims {count:,} frames, more than {MAX_FRAMES:,}; split it into several files")
    return [size] * count


def _science(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"needs the package {package}: pip install 'n2n_dist[science]'") from None


def _supported(frames: list[np.ndarray]) -> tuple[list[np.ndarray], Range | None]:
    """Bring frames to [H, W, C] and one of our types; their range is that of the type in the file."""
    range_ = full_range(frames[0].dtype)
    if any(frame.dtype != frames[0].dtype for frame in frames):
        raise UserError("holds frames of several types; save them as separate files")
    if frames[0].dtype.itemsize > 2:
        range_ = None  # no camera fills 32 bit: their ends say nothing
    if frames[0].dtype == bool:
        frames, range_ = [np.where(frame, np.uint8(255), np.uint8(0)) for frame in frames], (0.0, 255.0)
    return [_supported_frame(frame) for frame in frames], range_


def _supported_frame(frame: np.ndarray) -> np.ndarray:
    pixels = frame[..., None] if frame.ndim == 2 else frame
    if pixels.ndim != 3 or not 1 <= pixels.shape[2] <= MAX_CHANNELS:
        raise UserError(f"an image of shape {frame.shape}: give [H, W] or [H, W, C] with 1 to {MAX_CHANNELS} channels")
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    if np.issubdtype(pixels.dtype, np.integer) and (
        pixels.dtype.itemsize > 2 and max(abs(int(pixels.min())), abs(int(pixels.max()))) > FLOAT32_INTEGERS
    ):
        raise UserError(f"{pixels.dtype} values up to {pixels.max():,}, which float32 cannot hold exactly; scale them")
    if not np.issubdtype(pixels.dtype, np.integer) and not np.issubdtype(pixels.dtype, np.floating):
        raise UserError(f"an image of type {pixels.dtype}: convert it to uint8, uint16 or float32")
    with np.errstate(over="ignore"):
        pixels = pixels.astype(np.float32, copy=False)
    if broken := pixels.size - int(np.isfinite(pixels).sum()):
        raise UserError(f"{broken:,} of {pixels.size:,} values are NaN, infinite or beyond float32; replace them")
    return pixels


_OPEN: dict[str, Callable[[BinaryIO], Frames]] = {
    ".png": _open_pillow,
    ".jpg": _open_pillow,
    ".jpeg": _open_pillow,
    ".tif": _open_tiff,
    ".tiff": _open_tiff,
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".fits": _open_fits,
    ".fit": _open_fits,
    ".fts": _open_fits,
    ".dcm": _open_dicom,
}
SUFFIXES = tuple(_OPEN)
