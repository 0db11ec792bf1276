"""TIFF, of ImageJ and OME too: every series is an array."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from n2n_dist.errors import UserError
from n2n_dist.images.axes import MAX_CHANNELS, Region, guess_axes, region_shape
from n2n_dist.images.contiguous import read_region, write_region
from n2n_dist.images.format import Format, Range, StoredArray, WholeWriter, Writer

COPIED = (271, 272, 306, 315, 316, 700, 33432, 33550, 33723, 33922, 34264, 34735, 34736, 34737, 42112, 42113)
"""Tags that say nothing of the layout: camera, date, artist, host, XMP, copyright, IPTC and GeoTIFF."""
PHOTOMETRIC = ("MINISBLACK", "RGB")
ICC = 34675
LOSSLESS = (5, 8, 32773, 34925, 50000)
"""Compressions that results keep: LZW, deflate, PackBits, LZMA, Zstandard; others become deflate."""
INCH = 2
UNITS = {INCH: 1.0, 3: 2.54}
"""Factors to pixels an inch, of pixels an inch and a centimetre."""
IMAGEJ = {"Info", "LUTs", "Labels", "ROI", "finterval", "fps", "loop", "max", "min", "mode", "unit", "spacing"}
"""Entries of ImageJ that are copied; the others follow from the shape."""
BIG = (1 << 32) - (1 << 25)
"""Bytes of pixels beyond which offsets need 64 bits."""


def open_tiff(file: BinaryIO) -> list[StoredArray]:
    """Open a TIFF; of a set of files of which each names all, its own pages."""
    tiff = tifffile.TiffFile(file)
    if any(series.is_multifile for series in tiff.series):
        file.seek(0)
        tiff = tifffile.TiffFile(file, is_ome=False)
    return [_array(tiff, series, file) for series in tiff.series]


def _array(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, file: BinaryIO) -> StoredArray:
    page = series.keyframe
    kind = tifffile.PHOTOMETRIC(page.photometric).name
    jpeg = page.compression == tifffile.COMPRESSION.JPEG  # whose decoder makes RGB of YCbCr
    if kind not in PHOTOMETRIC and not (kind == "YCBCR" and jpeg):
        raise UserError(f"a TIFF of kind {kind}; save it as grey or RGB")
    shape, axes = tuple(series.shape), series.axes
    if set(axes) <= set("QYX") and shape[-1] <= MAX_CHANNELS < shape[-2]:  # of an array, whose last axis is channels
        axes = guess_axes(shape)
    dtype = np.dtype(series.dtype).newbyteorder(tiff.byteorder)
    paged = shape[len(shape) - len(page.shape) :] == tuple(page.shape)

    def load(region: Region) -> np.ndarray:
        if series.dataoffset is not None:
            return read_region(file, series.dataoffset, shape, dtype, region)
        return _read_pages(series, region) if paged else series.asarray()

    bits = page.bitspersample
    packed = series.dtype in (np.uint8, np.uint16) and isinstance(bits, int)  # such as 12 bit of 16
    range_: Range | None = (0.0, float((1 << bits) - 1)) if packed else None
    regions = paged or series.dataoffset is not None
    return StoredArray(shape, dtype, load, axes, range_, _metadata(tiff, series), regions)


def _read_pages(series: tifffile.TiffPageSeries, region: Region) -> np.ndarray:
    """Decode a region of a series, whose first axes count its pages; a page that the file lacks is zero."""
    shape, last = series.shape, len(series.keyframe.shape)
    first = shape[:-last]
    values = np.zeros(region_shape(region, shape), series.dtype)
    for index in np.ndindex(values.shape[:-last]):
        number = 0
        for position, part, length in zip(index, region, first, strict=False):
            number = number * length + part.indices(length)[0] + position
        if (page := series[number]) is not None:
            values[index] = _read_page(page, region[-last:])
    return values


def _read_page(page: Any, region: Region) -> np.ndarray:
    """Decode the strips or tiles that a region of a page touches."""
    keyframe = page.keyframe
    if region_shape(region, keyframe.shape) == keyframe.shape:
        return page.asarray()
    box = [slice(0, length) for length in keyframe.shaped]  # separate samples, depth, height, width, joint samples
    joint = keyframe.axes.endswith("S")
    for axis, part, length in zip(keyframe.axes, region, keyframe.shape, strict=True):
        box["-ZYXS".index(axis) if axis != "S" or joint else 0] = slice(*part.indices(length)[:2])
    values = np.zeros([part.stop - part.start for part in box], keyframe.dtype)
    touched = {}  # where the part of a segment that is wanted lies, by its number
    for number in range(len(page.dataoffsets)):
        _, (sample, *starts, _), lengths = keyframe.decode(None, number)
        here = [slice(sample, sample + 1)] + [slice(a, a + n) for a, n in zip((*starts, 0), lengths, strict=True)]
        common = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(here, box, strict=True)]
        if all(part.start < part.stop for part in common):
            touched[number] = _moved(common[1:], here[1:]), _moved(common, box)
    offsets, counts = ([numbers[n] for n in touched] for numbers in (page.dataoffsets, page.databytecounts))
    for data, number in page.parent.filehandle.read_segments(offsets, counts, list(touched)):
        segment, *_ = keyframe.decode(data, number, jpegtables=page.jpegtables, jpegheader=keyframe.jpegheader)
        if segment is not None:
            source, target = touched[number]
            values[target] = segment[source]
    return values.reshape(region_shape(region, keyframe.shape))


def _moved(parts: Sequence[slice], origin: Sequence[slice]) -> Region:
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(parts, origin, strict=True))


def _metadata(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> dict[str, Any]:
    """Return colour profile, resolution, and what only another TIFF can keep."""
    tags = series.keyframe.tags
    own: dict[str, Any] = {
        "kind": series.kind,
        "byteorder": tiff.byteorder,
        "bigtiff": tiff.is_bigtiff,
        "axes": series.axes,
        "encoding": _encoding(series.keyframe),
        "extratags": [(tag.code, tag.dtype, tag.count, tag.value, True) for tag in tags if tag.code in COPIED],
        "extrasamples": series.keyframe.extrasamples,
    }
    found: dict[str, Any] = {"tiff": own}
    if ICC in tags:
        found["icc"] = tags[ICC].value
    if "XResolution" in tags and "YResolution" in tags:
        unit = int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else INCH
        pair = tags["XResolution"].value, tags["YResolution"].value
        own["resolution"], own["resolutionunit"] = pair, unit
        if unit in UNITS and all(numerator and denominator for numerator, denominator in pair):
            found["dpi"] = tuple(numerator / denominator * UNITS[unit] for numerator, denominator in pair)
    if "Software" in tags:
        own["software"] = tags["Software"].value
    if tiff.is_imagej:
        own["description"] = {key: value for key, value in (tiff.imagej_metadata or {}).items() if key in IMAGEJ}
    elif tiff.is_ome:
        own["description"] = _ome(tiff.ome_metadata)
    elif series.kind != "shaped":
        own["description"] = series.keyframe.description
    return found


def _encoding(page: Any) -> dict[str, Any]:
    """Return compression, tiles and bits in use, as tifffile takes them; nothing for values that lie as in memory."""
    found: dict[str, Any] = {}
    if page.compression != 1:
        found["compression"] = int(page.compression) if page.compression in LOSSLESS else "zlib"
        found["predictor"] = page.predictor != 1 or None
        if page.is_tiled:
            found["tile"] = page.tile
    elif isinstance(page.bitspersample, int) and page.bitspersample not in (1, 8, 16, 32, 64):
        found["bitspersample"] = page.bitspersample
    return found


def _ome(xml: str | None) -> dict[str, Any]:
    """Return sizes of pixels, names of channels and times of an OME description, as tifffile writes them again."""
    pixels = tifffile.xml2dict(xml or "")["OME"]["Image"]
    pixels = (pixels[0] if isinstance(pixels, list) else pixels)["Pixels"]
    found = {key: value for key, value in pixels.items() if key.startswith(("PhysicalSize", "TimeIncrement"))}
    channels = pixels.get("Channel", [])
    names = [channel.get("Name") for channel in (channels if isinstance(channels, list) else [channels])]
    return found | ({"Channel": {"Name": names}} if names and all(names) else {})


def create_tiff(path: Path, like: Sequence[StoredArray]) -> Writer:
    """Begin a TIFF with one series for each of the arrays given, each in the encoding of its source."""
    if not any(array.metadata.get("tiff", {}).get("encoding") for array in like):
        return TiffWriter(path, like)

    def save(values: list[np.ndarray]) -> None:
        for array, each in zip(like, values, strict=True):
            if bits := array.metadata.get("tiff", {}).get("encoding", {}).get("bitspersample"):
                np.minimum(each, (1 << bits) - 1, out=each)
        _write(path, like, values)

    return WholeWriter.of(like, save)


def _write(path: Path, like: Sequence[StoredArray], values: Sequence[np.ndarray] | None = None) -> list[int]:
    """Write arrays, or reserve contiguous bytes for them; return where those of each begin."""
    own = like[0].metadata.get("tiff", {})
    imagej = own.get("kind") == "imagej" and len(like) == 1 and like[0].dtype in (np.uint8, np.uint16, np.float32)
    ome = own.get("kind") == "ome"
    big = own.get("bigtiff", False) or sum(math.prod(array.shape) * array.dtype.itemsize for array in like) >= BIG
    byteorder, offsets = own.get("byteorder", "<"), []
    with tifffile.TiffWriter(path, byteorder=byteorder, bigtiff=big and not imagej, imagej=imagej, ome=ome) as file:
        for number, array in enumerate(like):
            options = _layout(array) | _description(array, imagej or ome)
            if values is not None:
                options |= array.metadata.get("tiff", {}).get("encoding", {})
                options["data"] = values[number].reshape(options.pop("shape")).astype(options.pop("dtype"), copy=False)
            offset, _ = file.write(**options, returnoffset=True) or (0, 0)
            offsets.append(offset)
    return offsets


class TiffWriter:
    """A TIFF of which regions are written in place."""

    def __init__(self, path: Path, like: Sequence[StoredArray]) -> None:
        self._byteorder = like[0].metadata.get("tiff", {}).get("byteorder", "<")
        self._arrays = list(like)
        self._offsets = _write(path, like)
        self._file = path.open("r+b")

    def write(self, number: int, region: Region, values: np.ndarray) -> None:
        """Write a region."""
        array = self._arrays[number]
        values = values.astype(array.dtype.newbyteorder(self._byteorder), copy=False)
        write_region(self._file, self._offsets[number], array.shape, region, values)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def abort(self) -> None:
        """Close the file."""
        self._file.close()


def _layout(array: StoredArray) -> dict[str, Any]:
    """Return how tifffile is to lay out an array; the order of its values is that of the array."""
    if array.dtype.kind == "b":
        raise UserError("a TIFF of single bits cannot be written; give uint8")
    shape, axes = list(array.shape), array.known_axes
    samples = axes.find("S")
    if samples >= 0 and shape[samples] == 1:
        del shape[samples]
        samples = -1
    return {
        "shape": shape,
        "dtype": array.dtype.newbyteorder("="),
        "photometric": "rgb" if samples >= 0 and array.shape[samples] >= 3 else "minisblack",
        "planarconfig": None if samples < 0 else "contig" if samples == len(shape) - 1 else "separate",
    }


def _description(array: StoredArray, of_program: bool) -> dict[str, Any]:
    """Return the metadata of the array for tifffile; those of ImageJ or OME where `of_program`."""
    own = array.metadata.get("tiff", {})
    about: dict[str, Any] = {"software": own.get("software", False), "extratags": own.get("extratags", [])}
    if "icc" in array.metadata:
        about["iccprofile"] = array.metadata["icc"]
    if "resolution" in own:
        about |= {"resolution": own["resolution"], "resolutionunit": own["resolutionunit"]}
    elif "dpi" in array.metadata:
        about |= {"resolution": array.metadata["dpi"], "resolutionunit": INCH}
    named = {"axes": own["axes"]} if set(own.get("axes", "Q")) - set("QIYXS") else {}
    if of_program:
        return about | {"metadata": own["description"] | {"axes": own["axes"]}}
    if own.get("kind", "shaped") == "shaped":
        return about | {"metadata": named}
    text = own.get("description")
    return about | {"metadata": None} | ({"description": text} if isinstance(text, str) and text else {})


TIFF = Format(
    "TIFF",
    (".tif", ".tiff"),
    open_tiff,
    create_tiff,
    metadata="colour profile, resolution, description, camera, date, XMP, IPTC and GeoTIFF tags; axes, sizes and "
    "channels of ImageJ and OME",
)
