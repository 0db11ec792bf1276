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


def test_every_encoding_is_measured_on_the_tiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(4):
        grey = np.rint(255 * smooth_scene((256, 256), seed)).astype(np.uint8)
        write_image(tmp_path / f"images/{seed}.png", np.repeat(grey[..., None], 3, axis=2))
    build(tmp_path / "images", tmp_path / "shards", Options(), warn=lambda message: None)
    index = Index([tmp_path / "shards"])
    assert [tile.shape for tile in tiles_of(index)] == [(256, 256, 3)] * 4
    encodings(index)
    rows = re.findall(r"^  (8-bit RGB|16-bit grey) +(.+?) +(\d+) % of the bytes", capsys.readouterr().out, re.MULTILINE)
    shares = {(kind, name): int(share) for kind, name, share in rows}
    assert shares["8-bit RGB", "npy, half of the rows"] == shares["16-bit grey", "npy, half of the rows"] == 100
    assert {name for kind, name in shares if kind == "8-bit RGB"} >= {"png", "webp", "qoi", "tiff, zstd + predictor"}
    assert ("16-bit grey", "webp") not in shares, "it holds 8 bits"
    assert shares["8-bit RGB", "webp"] < shares["8-bit RGB", "png"] < 50
