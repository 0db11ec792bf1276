import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.images import random_pixels
from support.processes import ROOT

from n2n_dist.images.image import write_image
from n2n_dist.shards.index import Index


def run_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "shards" / "build.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["index", "verify"])
def test_folder_of_images_called_like_a_command(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / name / "a.png", random_pixels((20, 20, 3)))
    refused = run_in(tmp_path, name, "out")
    assert refused.returncode == 2
    assert f"{name}: a folder here, and a command; build from the folder with ./{name}" in refused.stderr
    assert not (tmp_path / "out").exists()
    assert run_in(tmp_path, f"./{name}", "out").returncode == 0
    assert len(Index([tmp_path / "out"])) == 1
