"""n2n_dist: train image denoisers from noisy images alone (Noise2Noise), on a laptop or a cluster.

Importing the package is cheap: torch is loaded on the first call of `denoise`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__version__ = "0.1.0"


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
