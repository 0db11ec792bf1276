"""Denoise images of any size in overlapping tiles."""

from __future__ import annotations

import torch

from n2n_dist.errors import UserError
from n2n_dist.images.image import Image
from n2n_dist.models.network import Network

TILE = 512
HALO = 64


def denoise_image(model: Network, image: Image) -> Image:
    """Denoise an image of a file, keeping its type and range.

    Raises:
        UserError: the image has another number of channels than the network.

    """
    if image.pixels.shape[2] != model.settings.channels:
        raise UserError(
            f"an image with {image.pixels.shape[2]} channels, but these weights are for "
            f"{model.settings.channels}; convert it, or use weights trained on such images"
        )
    device = next(model.parameters()).device
    noisy = torch.from_numpy(image.normalised()).permute(2, 0, 1)
    return image.with_normalised(denoise_tiled(model, noisy, device).permute(1, 2, 0).numpy())


@torch.inference_mode()
def denoise_tiled(
    model: Network, noisy: torch.Tensor, device: torch.device, tile: int = TILE, halo: int = HALO
) -> torch.Tensor:
    """Denoise [C, H, W] piece by piece; the result lies where `noisy` lies.

    Args:
        model: the denoiser.
        noisy: float32, black 0 and white 1.
        device: where the model is.
        tile: height and width of the part of a piece that is kept, in pixels.
        halo: surroundings of it that the network sees as well, in pixels.

    """
    height, width = noisy.shape[-2:]
    output = torch.empty_like(noisy)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            # Where the image ends, the piece reaches back, so that it is no smaller than the others. All start on
            # the grid of the coarsest level: the network is not equivariant to other shifts.
            first_row = max(0, min(top - halo, height - tile - 2 * halo)) // model.divisor * model.divisor
            first_column = max(0, min(left - halo, width - tile - 2 * halo)) // model.divisor * model.divisor
            piece = noisy[:, first_row : top + tile + halo, first_column : left + tile + halo]
            result = model(piece[None].to(device))[0].to(noisy.device)
            output[:, top:bottom, left:right] = result[
                :, top - first_row : bottom - first_row, left - first_column : right - first_column
            ]
    return output
