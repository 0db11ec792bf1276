"""Audits written by hand."""

from typing import Any

import numpy as np

from n2n_dist.audit.results import Audit, Noise, Pair


def pair(scene: str = "a", **values: Any) -> Pair:
    """Two captures of a scene that lie on each other and are equally bright."""
    same = {"first": 0, "second": 1, "shift": [0.02, 0.01], "shift_error": 0.01, "gain": 1.0, "offset": 0.0}
    return Pair(**{"scene": scene, "difference": 0.0, "difference_error": 1e-4, **same, **values})


def audit(**values: Any) -> Audit:
    """A data set of two captures a scene, 12 bit in 16-bit files, with nothing wrong."""
    brightness = [0.1, 0.3, 0.5, 0.7, 0.9]
    good: dict[str, Any] = {
        "tars": 2,
        "differing": [],
        "samples": 8,
        "scenes": 4,
        "captures": [2, 2],
        "channels": [1],
        "types": ["uint16"],
        "ranges": [[100.0, 4095.0]],
        "measured": 8,
        "lowest": 0.01,
        "highest": 0.9,
        "noise": Noise(12.0, 0.003, 0.0007, 0.02, brightness, [0.003 * x + 0.0007 for x in brightness]),
        "pairs": [pair("a"), pair("b")],
        "gain": 1.0,
        "offset": 0.0,
        "fixed": 0.0,
        "fixed_error": 0.01,
        "shared": 0.01,
        "autocorrelation": [[0.0, 0.01, 1.0, 0.01, 0.0], [0.0] * 5, [0.0] * 5],
        "histogram": [10] * 32,
        "pictures": [np.full((32, 32, 1), 0.5, np.float32)] * 2,
    }
    return Audit("shards/mine", **{**good, **values})
