import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import n2n_dist.vision


def python(program: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([*map(str, folders), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)


def test_what_needs_no_pretrained_network_imports_no_torchvision() -> None:
    modules = ["train", "building.build", "audit.audit", "inference.denoise", "inference.evaluate", "models.weights"]
    imports = "; ".join(f"import n2n_dist.{module}" for module in modules)
    done = python(f"import sys; {imports}; sys.exit('torchvision' in sys.modules)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "use",
    [
        "from n2n_dist.losses.perceptual import VGGFeatures; run_command(lambda: VGGFeatures(['relu1_2']))",
        "from n2n_dist.metrics import LPIPS; run_command(LPIPS)",
        "from n2n_dist.metrics import ssim; run_command(lambda: ssim(None, None))",
    ],
)
def test_a_torchvision_that_does_not_fit_torch_ends_in_one_line(tmp_path: Path, use: str) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    done = python(f"from n2n_dist.errors import run_command; {use}", tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: torch {torch.__version__.partition('+')[0]}")
    assert "operator torchvision::nms does not exist" in done.stderr
    assert "pip install" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(n2n_dist.errors.UserError, match="torchvision"):
        n2n_dist.vision.import_torchvision()
