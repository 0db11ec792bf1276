"""Images that tests make up."""

import numpy as np


def random_pixels(shape: tuple[int, ...], dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """Noise over the whole range of an integer type; float32 goes below 0 and above 1."""
    rng = np.random.default_rng(seed)
    if dtype is np.float32:
        return rng.normal(0.5, 1, shape).astype(np.float32)
    return rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)
