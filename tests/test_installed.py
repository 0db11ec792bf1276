"""The wheel, installed into an environment of its own and used in an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.images import random_pixels
from support.processes import ROOT, WITHOUT_GPU, free_port

from n2n_dist.images.image import read_image, write_image

SOURCES = ("n2n_dist", "configs", "launch", "shards", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
SHORT = ("train.steps=2", "model.width=8", "model.depths=[1,1]", "data.workers=0", "validate.images=1")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | WITHOUT_GPU


def call(*command: object, folder: Path) -> str:
    """Run a command that must succeed, and return what it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, and from nothing else the wheel."""
    folder = tmp_path_factory.mktemp("distributions")
    for name in SOURCES:
        source, target = ROOT / name, folder / "checkout" / name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    build = "import setuptools.build_meta as backend, sys; backend.build_sdist(sys.argv[1])"
    call(sys.executable, "-c", build, folder, folder=folder / "checkout")
    (packed,) = folder.glob("*.tar.gz")
    with tarfile.open(packed) as tar:
        tar.extractall(folder, filter="data")
    build = build.replace("build_sdist", "build_wheel")
    call(sys.executable, "-c", build, folder, folder=packed.with_name(packed.name.removesuffix(".tar.gz")))
    return folder


@pytest.fixture(scope="module")
def programs(distributions: Path) -> Path:
    """Install the wheel, with the libraries of this environment."""
    folder = distributions / "venv"
    call(sys.executable, "-m", "venv", "--without-pip", folder, folder=distributions)
    (wheel,) = distributions.glob("*.whl")
    python = folder / "bin" / "python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, folder=distributions)
    (installed,) = folder.glob("lib/*/site-packages")
    (installed / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its editable n2n_dist stays hidden
    return folder / "bin"


@pytest.mark.slow
def test_the_wheel_holds_the_data_of_the_package(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for pattern, package in (
        ("configs/*.yaml", "n2n_dist/configs"),
        ("launch/backends/*.yaml", "n2n_dist/backends"),
        ("shards/demo/train/*", "n2n_dist/shards/demo/train"),
        ("n2n_dist/weights/*.safetensors", "n2n_dist/weights"),
    ):
        wanted = {f"{package}/{path.name}" for path in ROOT.glob(pattern)}
        assert wanted
        assert wanted <= set(names)
    assert "n2n_dist/py.typed" in names
    assert not [name for name in names if name.startswith(("benchmarks", "tests", "launch", "shards"))]


@pytest.mark.slow
def test_an_empty_folder_is_enough(programs: Path, tmp_path: Path) -> None:
    where = call(programs / "python", "-c", "import n2n_dist; print(n2n_dist.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(programs.parent)
    program = programs / "n2n-dist"
    trained = call(program, "train", "--config", "demo", *SHORT, folder=tmp_path)
    assert "next: n2n-dist denoise --run runs/demo NOISY_FOLDER DENOISED_FOLDER\n" in trained
    pixels = random_pixels((40, 36, 3))
    write_image(tmp_path / "photos" / "a.png", pixels)
    call(program, "denoise", "--run", "runs/demo", "photos", "denoised", folder=tmp_path)
    assert read_image(tmp_path / "denoised" / "a.png").pixels.shape == pixels.shape
    built = call(program, "build", "photos", "shards/mine", folder=tmp_path)
    assert "next: accelerate launch -m n2n_dist train --config gaussian25 data.shards=shards/mine\n" in built
    assert "every tar is as it was indexed" in call(program, "verify", "shards/mine", folder=tmp_path)
    assert "good" in call(program, "checkpoints", "runs/demo", folder=tmp_path)
    assert np.array_equal(read_image(tmp_path / "photos" / "a.png").pixels, pixels)


@pytest.mark.slow
def test_accelerate_launches_the_installed_package(programs: Path, tmp_path: Path) -> None:
    find = "from n2n_dist.commands import backend_file; print(backend_file('cpu'))"
    backend = call(programs / "python", "-c", find, folder=tmp_path).strip()
    launch = [programs / "python", "-m", "accelerate.commands.launch", "--config_file", backend, "--num_processes=2"]
    train = [f"--main_process_port={free_port()}", "-m", "n2n_dist", "train", "--config", "demo", *SHORT]
    assert "next: n2n-dist denoise" in call(*launch, *train, "data.validation=null", folder=tmp_path)
