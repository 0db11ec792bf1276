"""Images that tests make up."""

import datetime
import io
import struct
import zlib
from typing import Any

import numpy as np
import tifffile
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage


def random_pixels(shape: tuple[int, ...], dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """Noise over the whole range of an integer type; float32 goes below 0 and above 1."""
    rng = np.random.default_rng(seed)
    if dtype is np.float32:
        return rng.normal(0.5, 1, shape).astype(np.float32)
    return rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


def smooth_scene(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Smooth hills with the edges of some discs, float [H, W] from 0.05 to 0.95; without noise or fine texture."""
    rng = np.random.default_rng(seed)
    height, width = size
    down, right = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    blur = np.exp(-2 * (np.pi * 12) ** 2 * (down**2 + right**2))
    hills = np.fft.irfft2(np.fft.rfft2(rng.normal(size=size)) * blur, size)
    scene = hills / hills.std()
    rows, columns = np.mgrid[:height, :width]
    for _ in range(12):
        radius = np.hypot(rows - rng.uniform(0, height), columns - rng.uniform(0, width))
        # an edge of two pixels, so that the scene can be shifted by parts of a pixel
        scene += rng.normal() / (1 + np.exp(np.clip(radius - rng.uniform(5, 40), -50, 50)))
    return 0.05 + 0.9 * (scene - scene.min()) / np.ptp(scene)


def shifted(scene: np.ndarray, down: float, right: float) -> np.ndarray:
    """Displace a scene [H, W] by parts of a pixel in the frequency domain; what leaves at one edge enters opposite."""
    height, width = scene.shape
    phase = np.fft.fftfreq(height)[:, None] * down + np.fft.rfftfreq(width) * right
    return np.fft.irfft2(np.fft.rfft2(scene) * np.exp(-2j * np.pi * phase), scene.shape)


def big_png(side: int, bits: int) -> bytes:
    """An RGB PNG of a hundred bytes that claims `side` x `side` pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, bits, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(bytes(100))
    chunks = b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, body)
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def big_tiff(side: int) -> bytes:
    """A grey, compressed TIFF of a few hundred bytes that claims `side` x `side` pixels."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((16, 16), np.uint8), compression="zlib", photometric="minisblack", metadata=None)
    data = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        for name in ("ImageWidth", "ImageLength"):
            tag = file.pages.first.tags[name]
            struct.pack_into("<HI", data, tag.offset + 2, 4, 1)  # one number of 32 bits
            struct.pack_into("<I", data, tag.valueoffset, side)
    return bytes(data)


@st.composite
def regions(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Boxes that are not empty in an array of `shape`."""
    ends = [sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in shape]
    return tuple(slice(first, last) for first, last in ends)


def dicom(stored: np.ndarray, bits: int, compressed: bool = False, **tags: Any) -> bytes:
    """Write [H, W], [N, H, W] or [H, W, 3] with `bits` of every value in use."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    colour = stored.ndim == 3 and stored.shape[2] == 3
    data.Rows, data.Columns = stored.shape[:2] if stored.ndim == 2 or colour else stored.shape[1:]
    if stored.ndim == 3 and not colour:
        data.NumberOfFrames = len(stored)
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    data.BitsAllocated = 8 * stored.dtype.itemsize
    data.BitsStored, data.HighBit = bits, bits - 1
    data.PixelRepresentation = int(np.issubdtype(stored.dtype, np.signedinteger))
    data.PixelData = stored.tobytes()
    data["PixelData"].VR = "OW"
    data.ContentDate = datetime.date(2020, 1, 1)
    for name, value in tags.items():
        setattr(data, name, value)
    if compressed:
        data.compress(RLELossless)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
