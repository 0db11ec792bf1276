"""Measure weights on a folder of clean images by a named protocol."""

from __future__ import annotations

import csv
import operator
import statistics
from dataclasses import dataclass
from pathlib import Path

import accelerate
import numpy as np
import PIL.Image
import torch
from accelerate.utils import gather_object

from n2n_dist import rng
from n2n_dist.devices import set_threads, use_gpu
from n2n_dist.distributed.environment import launched_world_size, remove_leftovers
from n2n_dist.errors import StorageError, UserError
from n2n_dist.files import write_atomically
from n2n_dist.images.image import find_images, read_image
from n2n_dist.images.panels import join_panels
from n2n_dist.inference.tile import denoise_tiled
from n2n_dist.metrics import METRICS, check_metrics, score, to_8_bit
from n2n_dist.models.weights import load_model
from n2n_dist.noise import Noise

TABLE = "scores.csv"
PICTURE = "comparison.png"
SMALLEST = 32
SHOWN = 4
SHOWN_SIZE = 256


@dataclass
class Scores:
    """Values of one image, or their mean over all."""

    image: str
    values: dict[str, float]
    """By the name of the metric, see `n2n_dist.metrics.METRICS`."""


@torch.inference_mode()
def evaluate(weights: Path, images: Path, output: Path, noise: Noise) -> list[Scores] | None:
    """Run the protocol `n2n2018` of Lehtinen et al. 2018: full-size images, noise in float.

    The noise is made on the CPU, seeded by the image's index in the sorted list, and not clipped. The output is
    clipped and rounded to 8 bit, PSNR is over all channels jointly, and the result is the mean over the images.
    Several processes share the images and give the same numbers.

    Args:
        weights: a run folder or a weights file.
        images: folder of clean images.
        output: folder for `scores.csv` and `comparison.png`.
        noise: what is put on the images, of one level.

    Returns:
        The scores of every image and, last, their mean; on other ranks than 0, None.

    Raises:
        UserError: no weights, no images, images of another number of channels, or a folder that cannot be written or
            holds scores already.
        StorageError: the results cannot be written, as on a full disk.

    """
    if (output / TABLE).exists():
        raise UserError(f"{output / TABLE}: exists already; remove it or choose another --output")
    launched_world_size()  # refuses variables that another program has left over
    remove_leftovers()
    state = accelerate.PartialState(cpu=not use_gpu())
    if state.device.type == "cpu":
        set_threads()
    model = load_model(weights, state.device)
    paths = find_images(images)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error}); choose another --output") from None
    check_metrics(model.settings.channels, state.device)
    rows: list[tuple[int, Scores]] = []
    panels: list[tuple[int, list[torch.Tensor]]] = []
    refusals: list[str] = []
    for number, path in list(enumerate(paths))[state.process_index :: state.num_processes]:
        try:
            clean = _read_clean(path, model.settings.channels)
        except UserError as refusal:
            refusals.append(str(refusal))
            break
        noisy = noise(clean, noise.level, rng.generator(0, number, "n2n2018", "cpu"))
        denoised = to_8_bit(denoise_tiled(model, noisy, state.device))
        measured = score(*(picture[None].to(state.device) for picture in (noisy, denoised, clean)))
        values = {name: value.item() for name, value in measured.items()}
        rows.append((number, Scores(str(path.relative_to(images)), values)))
        if number < SHOWN:
            panels.append((number, [picture[:, :SHOWN_SIZE, :SHOWN_SIZE] for picture in (noisy, denoised, clean)]))
    refusals = gather_object(refusals)
    if refusals:
        raise UserError(refusals[0])
    rows = sorted(gather_object(rows), key=operator.itemgetter(0))
    panels = sorted(gather_object(panels), key=operator.itemgetter(0))
    if not state.is_main_process:
        return None
    scored = [scores for _, scores in rows]
    scored.append(_mean(scored))
    try:
        _write(output, scored, join_panels([pictures for _, pictures in panels]))
    except OSError as error:
        raise StorageError(
            f"{error.filename or output}: cannot be written ({error.strerror or error}); make room, or choose another "
            "--output"
        ) from None
    return scored


def table(rows: list[Scores]) -> str:
    """Lay the scores out for a terminal."""
    width = max(len(row.image) for row in rows)
    names = list(rows[0].values)
    heads = [f"{name} {METRICS[name].unit}".rstrip() for name in names]
    lines = ["  ".join([f"{'image':{width}}", *heads])]
    for row in rows:
        numbers = [f"{row.values[name]:{len(head)}.4f}" for name, head in zip(names, heads, strict=True)]
        lines.append("  ".join([f"{row.image:{width}}", *numbers]))
    if lower := [name for name in names if not METRICS[name].higher_is_better]:
        lines.append(f"lower is better: {', '.join(lower)}")
    return "\n".join(lines)


def _write(output: Path, scored: list[Scores], picture: np.ndarray) -> None:
    """Write the picture, then the scores: where these are, both are whole."""
    with write_atomically(output / PICTURE) as temporary:
        PIL.Image.fromarray(picture).save(temporary, "PNG")
    with write_atomically(output / TABLE) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *scored[0].values])
        writer.writerows([row.image, *row.values.values()] for row in scored)


def _read_clean(path: Path, channels: int) -> torch.Tensor:
    image = read_image(path)
    if image.pixels.shape[2] != channels:
        raise UserError(
            f"{path}: has {image.pixels.shape[2]} channels, these weights are for {channels}; "
            "leave it out, or use other weights"
        )
    if min(image.pixels.shape[:2]) < SMALLEST:
        raise UserError(f"{path}: is below {SMALLEST} pixels, too small for LPIPS; leave it out")
    return torch.from_numpy(image.normalised()).permute(2, 0, 1)


def _mean(rows: list[Scores]) -> Scores:
    means = {name: statistics.fmean(row.values[name] for row in rows) for name in rows[0].values}
    return Scores(f"mean of {len(rows)}", means)
