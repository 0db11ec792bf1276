"""Random strings, drawn on the CPU."""

from __future__ import annotations

import functools
import random
import string

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

CHARACTERS = string.ascii_letters + string.digits
LONGEST = 20
SIZES = (10, 40)
"""Smallest and largest font in pixels."""


def draw_strings(channels: int, height: int, width: int, coverage: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay random strings over each other until they cover a share of the pixels.

    Args:
        channels: of the colours.
        height: in pixels.
        width: in pixels.
        coverage: share of the pixels to cover, below 1.
        seed: chooses strings, positions, sizes and colours.

    Returns:
        which pixels are covered, bool [1, H, W], and with what colour, float32 [C, H, W] in [0, 1], 0 elsewhere.

    """
    draws = random.Random(seed)
    canvas = PIL.Image.new("I", (width, height))  # the number of the uppermost string at every pixel
    pen = PIL.ImageDraw.Draw(canvas)
    pen.fontmode = "1"  # a pixel is covered or not
    colours = [[0.0] * channels]
    covered = 0
    while covered < coverage * height * width:
        text = "".join(draws.choices(CHARACTERS, k=draws.randint(1, LONGEST)))
        position, font = (draws.randrange(width), draws.randrange(height)), _font(draws.randint(*SIZES))
        left, top, right, bottom = pen.textbbox(position, text, font, anchor="mm")
        box = max(0, int(left) - 1), max(0, int(top) - 1), min(width, int(right) + 2), min(height, int(bottom) + 2)
        # counted in the string's box alone: a large image takes many strings
        covered -= int(np.count_nonzero(np.asarray(canvas.crop(box))))
        pen.text(position, text, len(colours), font, anchor="mm")
        covered += int(np.count_nonzero(np.asarray(canvas.crop(box))))
        colours.append([draws.random() for _ in range(channels)])
    numbers = np.asarray(canvas)
    return (numbers > 0)[None], np.array(colours, np.float32)[numbers].transpose(2, 0, 1)


@functools.cache
def _font(size: int) -> PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont:
    return PIL.ImageFont.load_default(size)
