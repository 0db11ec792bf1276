import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.images import random_pixels

import n2n_dist
from n2n_dist.errors import UserError


def test_importing_the_package_is_cheap() -> None:
    program = "import sys, n2n_dist; n2n_dist.__version__; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_no_module_takes_the_name_of_a_function() -> None:
    program = (
        "import importlib, pkgutil, n2n_dist\n"
        "for module in pkgutil.walk_packages(n2n_dist.__path__, 'n2n_dist.'):\n"
        "    importlib.import_module(module.name)\n"
        "assert all(callable(getattr(n2n_dist, name)) for name in ('denoise', 'fit', 'build', 'audit_folder'))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_fit_trains_and_returns_the_run_folder(tmp_path: Path) -> None:
    sections: dict[str, dict[str, Any]] = {
        "run": {"dir": tmp_path / "run = 1"},
        "data": {"validation": None, "crop": 32, "workers": 0},
        "model": {"width": 8, "depths": [1, 1]},
        "loss": {"perceptual": 0},
        "optim": {"lr": 1e-5},
        "train": {"steps": 1, "precision": "fp32"},
    }
    run_dir = n2n_dist.fit("demo", **sections)
    assert run_dir == tmp_path / "run = 1"
    pixels = random_pixels((20, 20, 3))
    assert n2n_dist.denoise(pixels, run_dir).shape == pixels.shape
    with pytest.raises(UserError, match=r"trian: unknown section"):
        n2n_dist.fit("demo", trian={"steps": 1})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(21, 30), (21, 30, 1), (1, 1)])
def test_result_has_the_shape_and_type_of_the_array(
    make_weights: Callable[..., Path], shape: tuple[int, ...], dtype: type
) -> None:
    pixels = random_pixels(shape, dtype)
    before = pixels.copy()
    result = n2n_dist.denoise(pixels, make_weights(channels=1))  # an untrained network returns its input
    assert (result.shape, result.dtype) == (shape, dtype)
    np.testing.assert_array_equal(result, pixels)
    np.testing.assert_array_equal(pixels, before)


def test_noise_is_taken_off_in_the_range_of_the_image(make_weights: Callable[..., Path]) -> None:
    weights = make_weights(channels=1, offset=0.1)  # takes a tenth of the range off every pixel
    eight_bit = np.array([[0, 20, 100, 255]], np.uint8)
    np.testing.assert_array_equal(n2n_dist.denoise(eight_bit, weights), [[0, 0, 74, 230]])  # rounded and clipped
    sixteen_bit = np.array([[100, 1000, 65535]], np.uint16)
    ranged = n2n_dist.denoise(sixteen_bit, weights, black=100, white=1100)
    np.testing.assert_array_equal(ranged, [[0, 900, 65435]])
    floats = np.array([[0.0, 0.5, 3.0]], np.float32)
    np.testing.assert_allclose(n2n_dist.denoise(floats, weights), [[-0.1, 0.4, 2.9]], atol=1e-6)
    np.testing.assert_allclose(n2n_dist.denoise(floats, weights, white=10), [[-1, -0.5, 2]], atol=1e-6)


def test_what_does_not_fit_is_refused(make_weights: Callable[..., Path], tmp_path: Path) -> None:
    pixels = random_pixels((16, 16, 3))
    with pytest.raises(UserError, match=r"3 channels.*1"):
        n2n_dist.denoise(pixels, make_weights(channels=1))
    with pytest.raises(UserError, match="no weights"):
        n2n_dist.denoise(pixels, tmp_path / "none")
    with pytest.raises(UserError, match="float64"):
        n2n_dist.denoise(pixels / 255, make_weights())
    with pytest.raises(UserError, match="not above black"):
        n2n_dist.denoise(pixels, make_weights(), black=5, white=5)


def test_shards_are_built_and_audited(write_images: Callable[..., Path], tmp_path: Path) -> None:
    report = n2n_dist.build(str(write_images("a/0.png", "a/1.png")), tmp_path / "out", captures="folder", tile=32)
    audit = n2n_dist.audit_folder(tmp_path / "out")
    assert (report.scenes, report.tiles, audit.samples, audit.captures) == (1, audit.samples, report.tiles, [2, 2])
    with pytest.raises(UserError, match="--tile 1"):
        n2n_dist.build(tmp_path, tmp_path / "other", tile=1)
