from collections.abc import Iterator
from pathlib import Path

import processes
import pytest
import torch

from n2n_dist.distributed.backend import Backend, plan_batch


@pytest.fixture(scope="session")
def backend() -> Iterator[Backend]:
    """One process, float32; it gives the test process its threads back."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
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
