"""FITS: every image extension is an array, its planes are images."""

from __future__ import annotations

import math
from typing import Any, BinaryIO

import numpy as np

from n2n_dist.images.axes import Region
from n2n_dist.images.format import Format, StoredArray, import_extra

INTEGERS = {8: "uint8", 16: "int16", 32: "int32", 64: "int64"}
"""Types by BITPIX; a negative one is a float of as many bits."""


def open_fits(file: BinaryIO) -> list[StoredArray]:
    """Open a FITS file, compressed images included."""
    fits = import_extra("astropy.io.fits", "astropy")
    images = [hdu for hdu in fits.open(file, memmap=False) if hdu.is_image and len(hdu.shape) >= 2]
    return [_array(hdu) for hdu in images if math.prod(hdu.shape)]


def _array(hdu: Any) -> StoredArray:
    dtype = _dtype(hdu.header)

    def load(region: Region) -> np.ndarray:
        return hdu.section[region].astype(dtype, copy=False)

    axes = "I" * (len(hdu.shape) - 2) + "YX"
    return StoredArray(tuple(hdu.shape), dtype, load, axes, metadata={"name": hdu.name})


def _dtype(header: Any) -> np.dtype:
    """Return the type of the values: with BZERO half the range unsigned, with another scale a float."""
    bits, scale, zero = header["BITPIX"], header.get("BSCALE", 1), header.get("BZERO", 0)
    if bits < 0:
        return np.dtype(f"float{-bits}")
    if (scale, zero) == (1, 0):
        return np.dtype(INTEGERS[bits])
    if scale == 1 and bits == 8 and zero == -128:
        return np.dtype(np.int8)
    if scale == 1 and bits > 8 and zero == 1 << (bits - 1):
        return np.dtype(f"uint{bits}")
    return np.dtype(np.float32 if bits <= 16 else np.float64)


FITS = Format("FITS", (".fits", ".fit", ".fts"), open_fits, written_as=".tif")
