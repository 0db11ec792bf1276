"""Put images side by side for people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

GAP = 4


def join_panels(rows: Sequence[Sequence[torch.Tensor]]) -> np.ndarray:
    """Join rows of images [C, H, W] in [0, 1] to a uint8 picture [H, W, 3] with white gaps; rows may differ in size."""
    pictures = [[_to_rgb(image) for image in row] for row in rows]
    height = sum(row[0].shape[0] for row in pictures) + GAP * (len(rows) - 1)
    width = max(sum(image.shape[1] for image in row) + GAP * (len(row) - 1) for row in pictures)
    canvas = np.full((height, width, 3), 255, np.uint8)
    top = 0
    for row in pictures:
        left = 0
        for image in row:
            canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
            left += image.shape[1] + GAP
        top += row[0].shape[0] + GAP
    return canvas


def _to_rgb(image: torch.Tensor) -> np.ndarray:
    colour = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    return (colour.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
