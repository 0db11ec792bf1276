"""From a folder of noisy captures to denoised files, with nothing clean anywhere: the commands of the README."""

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from images import smooth_scene
from processes import TINY, curves, run

from n2n_dist.data.image import read_image

BLACK, WHITE, FULL_WELL, READ_NOISE = 512, 16383, 400.0, 4.0
"""A camera of 14 bits: its range, photons at white, and the read noise in photons."""
RANGE = ("--black", BLACK, "--white", WHITE)


def photograph(folder: Path, scene: int, captures: int) -> np.ndarray:
    """Write captures of a scene, 16-bit TIFF, through a simulated sensor; return the clean scene in linear light."""
    rng = np.random.default_rng(scene)
    clean = smooth_scene((160, 192), seed=scene) ** 2.2
    folder.mkdir(parents=True)
    for capture in range(captures):
        photons = rng.poisson(clean * FULL_WELL) + rng.normal(0, READ_NOISE, clean.shape)
        values = np.rint(BLACK + photons / FULL_WELL * (WHITE - BLACK))
        tifffile.imwrite(folder / f"{capture}.tif", values.clip(0, 65535).astype(np.uint16), photometric="minisblack")
    return clean


@pytest.mark.parametrize("captures", [2, 8])
def test_captures_to_denoised_files(tmp_path: Path, captures: int) -> None:
    for scene in range(5):
        photograph(tmp_path / f"scenes/{scene}", scene, captures)
    shards, run_dir = tmp_path / "shards", tmp_path / "run"
    run("shards/build.py", tmp_path / "scenes", shards, "--captures", "folder", "--holdout", 1, *RANGE).checked()
    audit = run("shards/audit.py", shards).checked().out[0]
    shot, read = map(float, re.search(r"noise variance +([0-9.e-]+) x \+ ([0-9.e-]+),", audit).groups())
    assert shot == pytest.approx(1 / FULL_WELL, rel=0.05)
    assert read == pytest.approx((READ_NOISE / FULL_WELL) ** 2, rel=0.2)
    assert audit.count("nothing found that breaks training") == 2

    settings = (f"data.shards={shards}", f"data.validation={shards / 'validation'}", f"run.dir={run_dir}")
    learn = (
        "data.batch=4",
        "pairs.source=captures",
        "loss.pixel=l2",
        "optim.lr=2e-3",
        "train.steps=120",
        "optim.warmup=20",
        "train.log_every=40",
    )
    run("launch/train.py", *TINY, *settings, *learn, "model.channels=1", "validate.every=40").checked()
    found = {name.rsplit("/", 1)[-1]: values for name, values in curves(run_dir).items() if "upsnr" in name}
    assert list(found["upsnr"]) == [40, 80, 120]
    assert found["upsnr"][120] > found["noisy_upsnr"][120] + 1
    assert found["upsnr_low"][120] < found["upsnr"][120] < found["upsnr_high"][120]

    # only this test knows the clean scene: the one held out
    with tarfile.open(shards / "validation/shard-000000.tar") as tar:
        first = next(member for member in tar if member.name.endswith(".json"))
        scene = json.load(tar.extractfile(first))["scene"]
    run("launch/denoise.py", "--run", run_dir, tmp_path / "scenes" / scene, tmp_path / "denoised", *RANGE).checked()
    clean = photograph(tmp_path / "again", int(scene), captures)
    errors = []
    for capture in range(2):
        values = read_image(tmp_path / f"denoised/{capture}.tif").pixels[..., 0]
        errors.append(np.square((values.astype(float) - BLACK) / (WHITE - BLACK) - clean).mean())
    true = -10 * np.log10(np.mean(errors))
    assert found["upsnr"][120] == pytest.approx(true, abs=0.3)
