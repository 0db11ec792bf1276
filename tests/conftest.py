import os
from pathlib import Path

# Processes that tests start share the cores, so each takes one thread; this one takes two.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

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
