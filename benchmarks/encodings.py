"""Size and time of lossless encodings of tiles."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator

import imagecodecs
import numpy as np
import tifffile

from benchmarks.figures import Figure
from n2n_dist.errors import UserError
from n2n_dist.images.codecs import decode, encode
from n2n_dist.shards.index import Index
from n2n_dist.shards.reading import read_window


def tiles_of(index: Index) -> list[np.ndarray]:
    """Return all tiles of shards as they are stored."""
    found = (index.sample(number) for number in range(len(index)))
    return [read_window(tar, sample, sample.captures[0], (0, 0, *sample.shape[:2])) for tar, sample in found]


def encodings(index: Index) -> Iterator[Figure]:
    """Size and time of lossless encodings of 32 tiles: 8-bit RGB, and 16-bit grey made of the means of 2x2 pixels."""
    tiles = [tile for tile in tiles_of(index) if tile.shape == (256, 256, 3)][:128:4]
    grey = [np.rint(257 * _reduced(tile @ [0.299, 0.587, 0.114])).astype(np.uint16)[..., None] for tile in tiles]

    def tiff(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        kind = "rgb" if pixels.shape[2] == 3 else "minisblack"
        tifffile.imwrite(buffer, pixels, compression="zstd", predictor=True, photometric=kind)
        return buffer.getvalue()

    def npy_rows(data: bytes) -> np.ndarray:
        return np.frombuffer(data[len(data) // 4 : 3 * len(data) // 4], np.uint8)

    codecs: dict[str, tuple[Callable, Callable]] = {
        "npy, half of the rows": (lambda pixels: encode(pixels, ".npy"), npy_rows),
        "png": (lambda pixels: encode(pixels, ".png"), lambda data: decode(data, ".png")),
        "webp": (lambda pixels: encode(pixels, ".webp"), lambda data: decode(data, ".webp")),
        "qoi": (imagecodecs.qoi_encode, imagecodecs.qoi_decode),
        "jpeg-xl, effort 1": (
            lambda p: imagecodecs.jpegxl_encode(p, lossless=True, effort=1, numthreads=1),
            lambda data: imagecodecs.jpegxl_decode(data, numthreads=1),
        ),
        "jpeg-ls": (imagecodecs.jpegls_encode, imagecodecs.jpegls_decode),
        "tiff, zstd + predictor": (tiff, lambda data: decode(data, ".tif")),
        "npy in zstd": (lambda pixels: imagecodecs.zstd_encode(encode(pixels, ".npy"), 3), imagecodecs.zstd_decode),
    }
    for kind, images in (("8-bit RGB", tiles), ("16-bit grey", grey)):
        for name, (encoder, decoder) in codecs.items():
            try:
                coded = [bytes(encoder(pixels)) for pixels in images]
            except (UserError, ValueError):
                continue  # this encoding holds no 16-bit images
            times = [_seconds(decoder, encoded) for encoded in coded for _ in range(3)]
            share = sum(map(len, coded)) / sum(pixels.nbytes for pixels in images)
            speed = images[0].nbytes / statistics.median(times) / 1e6
            yield Figure(f"{kind}, {name}, size", [100 * share], "%", "of the bytes")
            yield Figure(f"{kind}, {name}, decoding", [speed], "MB/s")


def _reduced(values: np.ndarray) -> np.ndarray:
    """Return the means of 2x2 values."""
    height, width = values.shape
    return values.reshape(height // 2, 2, width // 2, 2).mean((1, 3))


def _seconds(decoder: Callable[[bytes], object], encoded: bytes) -> float:
    start = time.process_time()
    decoder(encoded)
    return time.process_time() - start
