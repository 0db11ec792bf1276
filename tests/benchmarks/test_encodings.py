import re
from pathlib import Path

import numpy as np
import pytest
from support.images import smooth_scene

from benchmarks.encodings import encodings, tiles_of
from n2n_dist.building.build import build
from n2n_dist.building.plan import Options
from n2n_dist.images.image import write_image
from n2n_dist.shards.index import Index


def test_every_encoding_is_measured_on_the_tiles(tmp_path: Path) -> None:
    for seed in range(4):
        grey = np.rint(255 * smooth_scene((256, 256), seed)).astype(np.uint8)
        write_image(tmp_path / f"images/{seed}.png", np.repeat(grey[..., None], 3, axis=2))
    build(tmp_path / "images", tmp_path / "shards", Options(), warn=lambda message: None)
    index = Index([tmp_path / "shards"])
    assert [tile.shape for tile in tiles_of(index)] == [(256, 256, 3)] * 4
    shares = {}
    for figure in encodings(index):
        kind, name, quantity = re.fullmatch(r"(.*? \w+), (.*), (\w+)", figure.name).groups()
        if quantity == "size":
            shares[kind, name] = figure.median
    for kind in ("8-bit RGB", "16-bit grey"):
        assert shares[kind, "npy, half of the rows"] == pytest.approx(100, abs=0.5)
    assert {name for kind, name in shares if kind == "8-bit RGB"} >= {"png", "webp", "qoi", "tiff, zstd + predictor"}
    assert ("16-bit grey", "webp") not in shares, "it holds 8 bits"
    assert shares["8-bit RGB", "webp"] < shares["8-bit RGB", "png"] < 50
