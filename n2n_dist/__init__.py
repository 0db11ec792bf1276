"""n2n_dist: train image denoisers from noisy images alone (Noise2Noise), on a laptop or a cluster.

Importing the package is cheap: each function loads what it needs on its first call.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from n2n_dist.version import __version__ as __version__

if TYPE_CHECKING:
    import numpy as np

    from n2n_dist.audit.results import Audit
    from n2n_dist.building.plan import Report


def denoise(
    array: np.ndarray,
    weights: str | Path,
    *,
    black: float | None = None,
    white: float | None = None,
) -> np.ndarray:
    """Denoise one image with the weights of a run, on the GPU if there is one.

    The weights are read anew on every call.

    Args:
        array: image of shape [H, W] or [H, W, C], uint8, uint16 or float32.
        weights: a run folder, or one of its `.safetensors` files.
        black: the value that means no light; default 0.
        white: the value that means full light; default the largest value of an integer type, 1 for float.

    Returns:
        The denoised image with the shape and type of `array`; integer types are rounded and clipped
        to the type's range, float32 is not clipped.

    Raises:
        n2n_dist.errors.UserError: the weights are missing or of another version, or for another number of channels.

    """
    from n2n_dist.images.image import Image
    from n2n_dist.inference.tile import denoise_image
    from n2n_dist.models.weights import load_model

    image = Image.from_array(array, black=black, white=white)
    return denoise_image(load_model(weights), image).pixels.reshape(array.shape)


def fit(config: str | Path | None, **sections: Mapping[str, Any]) -> Path:
    """Train a denoiser, or continue the run in `run.dir`, as `n2n-dist train` does.

        n2n_dist.fit("demo", train={"steps": 100}, run={"dir": "runs/mine"})

    Args:
        config: a YAML file, or the name of a configuration that comes with the package; None for the defaults.
        **sections: settings that go over those of the file, by section.

    Returns:
        The run folder, which `denoise` takes.

    Raises:
        n2n_dist.errors.UserError: data, settings or checkpoint cannot be used.

    """
    import json

    from n2n_dist.config import load
    from n2n_dist.train import train

    settings = [
        f"{section}.{key}={json.dumps(value, default=str)}"
        for section, values in sections.items()
        for key, value in values.items()
    ]
    loaded = load(config, settings)
    train(loaded)
    return Path(loaded.run.dir)


def build(source_folder: str | Path, destination: str | Path, *, jobs: int = 1, **options: Any) -> Report:
    """Cut the images of a folder into tiles and write them as shards, as `n2n-dist build` does.

    Args:
        source_folder: holds the image files.
        destination: new folder.
        jobs: images that are read and cut at a time.
        **options: fields of `n2n_dist.building.plan.Options`, such as `tile`, and of `n2n_dist.scenes.Grouping`, such
            as `captures`.

    Returns:
        Counts of scenes and tiles, and a message for each scene that was skipped.

    Raises:
        n2n_dist.errors.UserError: no image, an option cannot be used, too many unreadable scenes, or `destination`
            exists.

    """
    from dataclasses import fields

    from n2n_dist.building.build import build
    from n2n_dist.building.plan import Options
    from n2n_dist.scenes import Grouping

    grouping = {field.name: options.pop(field.name) for field in fields(Grouping) if field.name in options}
    return build(Path(source_folder), Path(destination), Options(Grouping(**grouping), **options), jobs=jobs)


def audit_folder(folder: str | Path) -> Audit:
    """Measure the noise and damage of one folder of shards, as `n2n-dist audit` does.

    Args:
        folder: holds `index.json` and the tars.

    Returns:
        The measurements, and the findings that they give.

    Raises:
        n2n_dist.errors.UserError: no index, or a tar that is missing or of another size.

    """
    from n2n_dist.audit.audit import audit_folder

    return audit_folder(Path(folder))
