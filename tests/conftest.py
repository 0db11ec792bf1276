import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Processes that tests start share the cores, so each takes one thread; this one takes two.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
import torch
from support import processes
from support.images import random_pixels

from n2n_dist.building.build import build
from n2n_dist.building.plan import Options
from n2n_dist.distributed.backend import Backend
from n2n_dist.distributed.batch import plan_batch
from n2n_dist.images.image import write_image
from n2n_dist.models.resunet import ResUNet, ResUNetSettings
from n2n_dist.models.weights import save_model

torch.set_num_threads(2)

# A first call into torch is slow, which a deadline would report as a failure.
hypothesis.settings.register_profile("n2n_dist", deadline=None, derandomize=True)
hypothesis.settings.load_profile("n2n_dist")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference images and weights beside the repository."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("needs ../shared, which is not part of the project")
    return path


@pytest.fixture(autouse=True)
def _skip_gpu_tests_without_cuda(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


@pytest.fixture
def write_images(tmp_path: Path) -> Callable[..., Path]:
    """Write random image files below the test's folder."""

    def write(*names: str, size: tuple[int, ...] = (40, 36, 3), dtype: type = np.uint8, folder: str = "images") -> Path:
        for seed, name in enumerate(names):
            write_image(tmp_path / folder / name, random_pixels(size, dtype, seed))
        return tmp_path / folder

    return write


@pytest.fixture
def make_shards(tmp_path: Path, write_images: Callable[..., Path]) -> Callable[..., Path]:
    """Build shards of random images; `options` are those of `n2n_dist.building.build`."""

    def make(count: int = 6, name: str = "shards", size: tuple[int, ...] = (40, 36, 3), **options: object) -> Path:
        source = write_images(*(f"{number}.png" for number in range(count)), size=size, folder=f"{name}-images")
        build(source, tmp_path / name, Options(**options), warn=lambda message: None)
        return tmp_path / name

    return make


@pytest.fixture
def make_weights(tmp_path: Path) -> Callable[..., Path]:
    """Save a network that subtracts `offset` from every pixel; an untrained one subtracts nothing."""

    def make(channels: int = 3, offset: float = 0.0) -> Path:
        model = ResUNet(ResUNetSettings(channels=channels, width=8, depths=[1, 1]))
        torch.nn.init.constant_(model.head.bias, offset)
        save_model(tmp_path / f"{channels}-{offset}.safetensors", model)
        return tmp_path / f"{channels}-{offset}.safetensors"

    return make


@pytest.fixture(scope="session")
def astronaut_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Clean and noisy, [1, 3, 512, 512] in [0, 1]: the pair of the reference values for VGG-16 and LPIPS."""
    data = pytest.importorskip("skimage.data")
    clean = data.astronaut().transpose(2, 0, 1)[None].astype(np.float32) / 255
    field = np.random.default_rng(0).standard_normal((1, 3, 512, 512)).astype(np.float32)
    noisy = np.rint(np.clip(clean + field * np.float32(25 / 255), 0, 1) * 255) / 255
    return torch.from_numpy(clean), torch.from_numpy(noisy.astype(np.float32))


@pytest.fixture(scope="session")
def backend() -> Iterator[Backend]:
    """One process, float32; it gives the test process its threads back."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:  # not for the processes that other tests start
        patch.setenv("ACCELERATE_USE_CPU", "true")
        made = Backend(plan_batch(8, None), clip=1.0, dtype=None, threads=threads)
    yield made
    made.close()


@pytest.fixture(scope="session")
def interrupted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a perceptual loss and two validation sets, killed in its fifth step and continued to its end."""
    run_dir = tmp_path_factory.mktemp("interrupted") / "run"
    settings = (
        f"run.dir={run_dir}",
        "train.steps=6",
        "checkpoint.every=3",
        "validate.every=2",
        "validate.images=2",
        "loss.perceptual=0.01",
        "data.validation={demo: shards/demo/validation, again: shards/demo/validation}",
    )
    processes.train(*settings, kill_at=4 * 8)
    processes.train(*settings).checked()
    return run_dir
