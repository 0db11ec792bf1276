from collections.abc import Iterator
from pathlib import Path

import cluster as slurm
import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = slurm.missing()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def cluster() -> Iterator[slurm.Cluster]:
    """Two nodes."""
    cluster = slurm.Cluster()
    try:
        cluster.start()
        yield cluster
        print(cluster.completed())
    finally:
        cluster.stop()
