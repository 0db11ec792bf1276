"""Denoise image files and folders."""

from __future__ import annotations

from pathlib import Path

from n2n_dist.errors import UserError
from n2n_dist.images.image import find_images, read_frames, write_frames
from n2n_dist.inference.tile import denoise_image
from n2n_dist.models.weights import load_model

SUFFIX = {
    ".jpg": ".png",  # a lossy result would add new artefacts
    ".jpeg": ".png",
    ".npz": ".npy",
    ".fits": ".tif",
    ".fit": ".tif",
    ".fts": ".tif",
    ".dcm": ".tif",
}
"""Format of a result, if it is not that of the source."""


def denoise_files(
    weights: Path,
    source: Path,
    destination: Path,
    black: float | None,
    white: float | None,
) -> None:
    """Denoise a file, or every image below a folder, keeping names, bit depth and type; every frame of a stack.

    A destination without suffix is a folder. Nothing is written over.

    Raises:
        UserError: no weights, no images, an output that exists already, or, after all other files are done,
            images that could not be read or have another number of channels than the network.

    """
    model = load_model(weights)
    if source.is_dir():
        outputs = {path: _output(destination / path.relative_to(source)) for path in find_images(source)}
    elif source.is_file():
        folder = destination.is_dir() or not destination.suffix
        outputs = {source: _output(destination / source.name if folder else destination)}
    else:
        raise UserError(f"{source}: no such file or folder")
    for output in outputs.values():
        if output.exists():
            raise UserError(f"{output}: exists already; remove it or choose another destination")
    if len(set(outputs.values())) < len(outputs):
        raise UserError(f"{source}: two images would be written under one name; rename one (JPEG becomes .png)")
    failed = []
    for path, output in outputs.items():
        try:
            frames = read_frames(path, black, white)
            write_frames(output, [denoise_image(model, frame).pixels for frame in frames])
            print(f"{path} -> {output}")
        except UserError as refusal:
            failed.append(str(refusal) if str(path) in str(refusal) else f"{path}: {refusal}")
            print(f"skipped: {failed[-1]}")
    if failed:
        raise UserError(f"{len(failed)} of {len(outputs)} images were not denoised, the first: {failed[0]}")


def _output(path: Path) -> Path:
    return path.with_suffix(SUFFIX.get(path.suffix.lower(), path.suffix))
