import pytest
from support import processes


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks use the repository's scripts and configurations."""
    monkeypatch.chdir(processes.ROOT)
