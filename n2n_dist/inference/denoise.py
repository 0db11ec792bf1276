"""Denoise image files and folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from n2n_dist.errors import UserError
from n2n_dist.images.frames import Frame, open_frames, result_type
from n2n_dist.images.image import Image, find_images, find_range
from n2n_dist.images.readers import create_file, output_name
from n2n_dist.inference.tile import denoise_image
from n2n_dist.models.network import Network
from n2n_dist.models.weights import load_model


def denoise_files(
    weights: Path,
    source: Path,
    destination: Path,
    black: float | None,
    white: float | None,
) -> None:
    """Denoise a file, or every image below a folder, keeping names, shape, type and metadata; every frame of a stack.

    Weights for one channel denoise the channels of a microscope one by one.

    A destination without suffix is a folder. Nothing is written over.

    Raises:
        UserError: no weights, no images, an output that exists already, or, after all other files are done,
            images that could not be read or have another number of channels than the network.

    """
    model = load_model(weights)
    if source.is_dir():
        outputs = {path: output_name(destination / path.relative_to(source)) for path in find_images(source)}
    elif source.is_file():
        folder = destination.is_dir() or not destination.suffix
        outputs = {source: output_name(destination / source.name if folder else destination)}
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
            with open_frames(path, channels=model.settings.channels > 1) as frames:
                _denoise_frames(model, frames, output, black, white)
            print(f"{path} -> {output}")
        except UserError as refusal:
            failed.append(str(refusal) if str(path) in str(refusal) else f"{path}: {refusal}")
            print(f"skipped: {failed[-1]}")
    if failed:
        raise UserError(f"{len(failed)} of {len(outputs)} images were not denoised, the first: {failed[0]}")


def _denoise_frames(
    model: Network, frames: list[Frame], output: Path, black: float | None, white: float | None
) -> None:
    """Denoise the frames of a file one by one, so that memory holds one at a time."""
    black, white = find_range(frames, black, white)
    arrays = {frame.number: frame.array for frame in frames}
    numbers = {number: position for position, number in enumerate(arrays)}
    like = [dataclasses.replace(array, dtype=result_type(array.dtype)) for array in arrays.values()]
    with create_file(output, like) as file:
        for frame in frames:
            result = denoise_image(model, Image.from_array(frame.read(), black, white))
            file.write(numbers[frame.number], frame.region, frame.restored(result.pixels))
