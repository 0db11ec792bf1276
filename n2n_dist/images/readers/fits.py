"""FITS, compressed too: every image extension is an array, its planes are images."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from n2n_dist.errors import UserError
from n2n_dist.images.axes import Region
from n2n_dist.images.format import Format, StoredArray, WholeWriter, import_extra

INTEGERS = {8: "uint8", 16: "int16", 32: "int32", 64: "int64"}
"""Types by BITPIX; a negative one is a float of as many bits."""
DERIVED = ("BSCALE", "BZERO", "BLANK", "CHECKSUM", "DATASUM")
"""Keywords that follow from the values and their type."""


def open_fits(file: BinaryIO) -> list[StoredArray]:
    """Open a FITS file, compressed images included."""
    fits = import_extra("astropy.io.fits", "astropy")
    hdus = fits.open(file, memmap=False)
    images = [hdu for hdu in hdus if hdu.is_image and len(hdu.shape) >= 2 and math.prod(hdu.shape)]
    return [_array(hdu, hdus) for hdu in images]


def open_gzip(file: BinaryIO) -> list[StoredArray]:
    """Open a FITS file in gzip."""
    return open_fits(gzip.GzipFile(fileobj=file))  # type: ignore[arg-type]


def _array(hdu: Any, hdus: Any) -> StoredArray:
    dtype = _dtype(hdu.header)

    def load(region: Region) -> np.ndarray:
        return hdu.section[region].astype(dtype, copy=False)

    colour = len(hdu.shape) == 3 and hdu.shape[0] == 3 and "RGB" in str(hdu.header.get("CTYPE3", "")).upper()
    axes = "SYX" if colour else "I" * (len(hdu.shape) - 2) + "YX"
    metadata = {"name": hdu.name, "fits": {"hdus": hdus, "hdu": hdu}}
    return StoredArray(tuple(hdu.shape), dtype, load, axes, metadata=metadata)


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


def create_fits(path: Path, like: Sequence[StoredArray]) -> WholeWriter:
    """Begin a FITS file: of FITS, with its headers, and its tables and other extensions as they are."""
    fits = import_extra("astropy.io.fits", "astropy")
    for array in like:
        if array.dtype.kind not in "iuf" or (array.dtype.itemsize == 2 and array.dtype.kind == "f"):
            raise UserError(f"FITS cannot hold {array.dtype}; use TIFF or NPY")
        if not array.known_axes.endswith("YX"):
            raise UserError(f"FITS holds planes, not axes {array.known_axes}; use .tif")

    def save(values: list[np.ndarray]) -> None:
        written = [_hdu(fits, array, each) for array, each in zip(like, values, strict=True)]
        if all("fits" in array.metadata for array in like):
            own = [array.metadata["fits"] for array in like]
            replaced = {id(each["hdu"]): hdu for each, hdu in zip(own, written, strict=True)}
            written = [replaced.get(id(hdu), hdu) for hdu in own[0]["hdus"]]
        if not isinstance(written[0], fits.PrimaryHDU):
            written.insert(0, fits.PrimaryHDU())
        fits.HDUList(written).writeto(path, output_verify="fix+ignore")

    return WholeWriter.of(like, save)


def _hdu(fits: Any, array: StoredArray, values: np.ndarray) -> Any:
    """Make an HDU of the kind and with the header of the source; a compressed one without loss."""
    if "fits" not in array.metadata:
        return fits.ImageHDU(values)
    source = array.metadata["fits"]["hdu"]
    header = source.header.copy()
    for keyword in DERIVED:
        header.remove(keyword, ignore_missing=True)
    if isinstance(source, fits.CompImageHDU):
        whole = values.dtype.kind != "f"  # float would be rounded before it is compressed
        kind = source.compression_type if whole else "GZIP_2"
        return fits.CompImageHDU(values, header, compression_type=kind, quantize_level=16 if whole else 0)
    return (fits.PrimaryHDU if isinstance(source, fits.PrimaryHDU) else fits.ImageHDU)(values, header)


HEADERS = "headers, tables and other extensions"
FITS = Format("FITS", (".fits", ".fit", ".fts"), open_fits, create_fits, metadata=HEADERS)
FITS_FZ = Format("FITS.FZ", (".fz",), open_fits, create_fits, metadata=f"{HEADERS}; compression")
FITS_GZ = Format("FITS.GZ", (".fits.gz", ".fit.gz", ".fts.gz"), open_gzip, written_as=".fits", metadata=HEADERS)
