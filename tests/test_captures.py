"""From a folder of noisy captures to denoised files, with nothing clean anywhere: the commands of the README.

The captures are photographs of the demo shards seen through a simulated sensor; only the test knows these.
"""

import json
import math
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from support.processes import ROOT, TINY, curves, run

from n2n_dist.images.image import read_image
from n2n_dist.shards.index import Index
from n2n_dist.shards.reading import read_pixels

BLACK, WHITE, FULL_WELL, READ_NOISE = 2048, 16383, 100.0, 2.0
"""A camera of 14 bits: its range, photons at white, and the read noise in photons."""
TILES = (1, 3, 4, 33, 41, 54)
"""Of the demo shards, one a scene: with detail from edge to edge."""
RANGE = ("--black", BLACK, "--white", WHITE)


def photograph(folder: Path, scene: int, captures: int) -> np.ndarray:
    """Write captures of a scene, 16-bit TIFF, through a simulated sensor; return the clean scene in linear light."""
    rng = np.random.default_rng(scene)
    tar, tile = Index([ROOT / "shards/demo/train"]).sample(TILES[scene])
    clean = read_pixels(tar, tile, tile.captures[0], (0, 0, 160, 192))[..., 1] ** 2.2
    folder.mkdir(parents=True)
    for capture in range(captures):
        photons = rng.poisson(clean * FULL_WELL) + rng.normal(0, READ_NOISE, clean.shape)
        values = np.rint(BLACK + photons / FULL_WELL * (WHITE - BLACK))
        tifffile.imwrite(folder / f"{capture}.tif", values.clip(0, 65535).astype(np.uint16), photometric="minisblack")
    return clean


@pytest.mark.parametrize(("captures", "target"), [(2, "one"), (8, "mean")])
def test_captures_to_denoised_files(tmp_path: Path, captures: int, target: str) -> None:
    for scene in range(len(TILES)):
        photograph(tmp_path / f"scenes/{scene}", scene, captures)
    shards, run_dir = tmp_path / "shards", tmp_path / "run"
    run("shards/build.py", tmp_path / "scenes", shards, "--captures", "folder", "--holdout", 2, *RANGE).checked()
    audit = run("shards/audit.py", shards).checked().out[0]
    shot, read = map(float, re.search(r"noise variance +([0-9.e-]+) x \+ ([0-9.e-]+),", audit).groups())
    assert shot == pytest.approx(1 / FULL_WELL, rel=0.05)
    assert read == pytest.approx((READ_NOISE / FULL_WELL) ** 2, rel=0.2)
    assert "harms" not in audit

    settings = (
        f"data.shards={shards}",
        f"data.validation={shards / 'validation'}",
        "data.batch=4",
        "pairs.name=captures",
        "model.channels=1",
        "loss.pixel=l2",
    )
    learn = (
        f"run.dir={run_dir}",
        f"pairs.target={target}",
        "optim.lr=2e-3",
        "train.steps=120",
        "optim.warmup=20",
        "train.log_every=40",
    )
    run("launch/train.py", *TINY, *settings, *learn, "validate.every=40").checked()
    found = {name.rsplit("/", 1)[-1]: values for name, values in curves(run_dir).items() if "upsnr" in name}
    assert list(found["upsnr"]) == [40, 80, 120]
    assert found["upsnr"][120] > found["noisy_upsnr"][120] + 1
    assert found["upsnr_low"][120] < found["upsnr"][120] < found["upsnr_high"][120]

    fit = ("noise.name=poisson-gaussian", f"noise.lam={1 / shot}", f"noise.read={math.sqrt(read) / shot}")
    matched = ("loss.perceptual=0.01", "loss.form=matched", "train.steps=1", f"run.dir={tmp_path / 'matched'}")
    said = run("launch/train.py", *TINY, *settings, *fit, *matched).checked().out[0]
    assert "learns   the mean of noisy targets (noise poisson-gaussian): the clean image" in said

    # only this test knows the clean scenes: those held out
    with tarfile.open(shards / "validation/shard-000000.tar") as tar:
        members = [member for member in tar if member.name.endswith(".json")]
        scenes = {json.load(tar.extractfile(member))["scene"] for member in members}
    errors = []
    for scene in sorted(scenes):
        out = tmp_path / "denoised" / scene
        run("launch/denoise.py", "--run", run_dir, tmp_path / "scenes" / scene, out, *RANGE).checked()
        clean = photograph(tmp_path / "again" / scene, int(scene), captures)
        for capture in range(2):
            values = read_image(out / f"{capture}.tif").pixels[..., 0]
            errors.append(np.square((values.astype(float) - BLACK) / (WHITE - BLACK) - clean).mean())
    assert len(errors) == 4
    assert found["upsnr_low"][120] < -10 * math.log10(np.mean(errors)) < found["upsnr_high"][120]
