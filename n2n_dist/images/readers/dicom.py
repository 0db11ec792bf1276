"""DICOM: grey and colour, in the units that its rescale gives."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np

from n2n_dist.errors import UserError
from n2n_dist.images.axes import Region
from n2n_dist.images.format import Format, Range, StoredArray, import_extra


def open_dicom(file: BinaryIO) -> list[StoredArray]:
    """Open a DICOM file; its frames are decoded one at a time."""
    pydicom = import_extra("pydicom", "pydicom")
    pixels = import_extra("pydicom.pixels", "pydicom")
    header = pydicom.dcmread(file, stop_before_pixels=True)
    kind = str(header.PhotometricInterpretation)
    if kind not in ("MONOCHROME1", "MONOCHROME2", "RGB") and not kind.startswith("YBR"):
        raise UserError(f"a DICOM of kind {kind}; save it as grey or RGB")
    frames, colours = int(header.get("NumberOfFrames") or 1), int(header.SamplesPerPixel)
    scales = [_rescale(header, number) for number in range(frames)]
    signed, bits = bool(header.PixelRepresentation), int(header.BitsStored)
    scaled = any(scale != (1.0, 0.0) for scale in scales)
    dtype = np.dtype(np.float32 if scaled else f"{'int' if signed else 'uint'}{max(8, header.BitsAllocated)}")
    shape = (int(header.Rows), int(header.Columns), *([colours] if colours > 1 else []))
    axes = "YXS"[: len(shape)]

    def load(region: Region) -> np.ndarray:
        numbers = range(*region[0].indices(frames)) if frames > 1 else range(1)
        within = region[1:] if frames > 1 else region
        values = [_frame(pixels, file, number, scales[number])[within] for number in numbers]
        return np.stack(values).astype(dtype) if frames > 1 else values[0].astype(dtype)

    return [
        StoredArray(
            (frames, *shape) if frames > 1 else shape,
            dtype,
            load,
            f"I{axes}" if frames > 1 else axes,
            _range(signed, bits, scales),
        )
    ]


def _frame(pixels: Any, file: BinaryIO, number: int, scale: tuple[float, float]) -> np.ndarray:
    stored = pixels.pixel_array(file, index=number)
    return stored if scale == (1.0, 0.0) else stored * scale[0] + scale[1]


def _range(signed: bool, bits: int, scales: list[tuple[float, float]]) -> Range | None:
    """Return the values that the bits in use hold, in the units of the rescale; 32 of them say nothing."""
    if bits > 16:
        return None
    stored = np.array([-(1 << bits - 1), (1 << bits - 1) - 1] if signed else [0, (1 << bits) - 1], np.float64)
    ends = np.array([slope * stored + intercept for slope, intercept in scales])
    return float(ends.min()), float(ends.max())


def _rescale(data: Any, frame: int) -> tuple[float, float]:
    """Return slope and intercept of a frame: of the file, of all frames, or of this one."""
    levels = [data]
    for groups, number in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        if len(data.get(groups) or []) > number:
            levels += data[groups].value[number].get("PixelValueTransformationSequence") or []
    level = next((each for each in reversed(levels) if "RescaleSlope" in each or "RescaleIntercept" in each), data)
    return float(level.get("RescaleSlope", 1)), float(level.get("RescaleIntercept", 0))


DICOM = Format("DICOM", (".dcm",), open_dicom, written_as=".tif")
