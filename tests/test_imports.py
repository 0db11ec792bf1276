"""Importing the package changes nothing in the program that imports it."""

import ast
import subprocess
import sys
from pathlib import Path

from support.processes import ROOT

PROBE = """
import importlib, os, signal, sys, warnings

def state():
    import PIL.Image, logging, multiprocessing, numpy, random, tifffile, torch
    return {
        "PIL.Image.MAX_IMAGE_PIXELS": PIL.Image.MAX_IMAGE_PIXELS,
        "PIL's plugins": list(PIL.Image.ID),
        "warnings.filters": list(warnings.filters),
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "os.environ": dict(os.environ),
        "sys.path": list(sys.path),
        "sys.excepthook": sys.excepthook,
        "standard streams": (sys.stdin, sys.stdout, sys.stderr),
        "working folder": os.getcwd(),
        "log handlers": list(logging.root.handlers),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "random state": (random.getstate(), torch.initial_seed(), numpy.random.get_state()[1].tolist()),
        "numpy's errors": numpy.geterr(),
        "torch's threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch's dtype and device": (torch.get_default_dtype(), torch.get_default_device()),
        "gradients": torch.is_grad_enabled(),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "TF32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "cuDNN": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "sharing of tensors": torch.multiprocessing.get_sharing_strategy(),
    }

others, own = (names.split() for names in sys.argv[1:])
for name in others:
    importlib.import_module(name)
before = state()
for name in own:
    importlib.import_module(name)
after = state()
for name, value in before.items():
    if after[name] != value:
        new = [item for item in after[name] if item not in value] if isinstance(value, list) else after[name]
        print(f"{name}: {new}")
"""


def test_importing_all_modules_changes_no_setting_of_the_program() -> None:
    files = sorted((ROOT / "n2n_dist").rglob("*.py"))
    others = {name for path in files for name in imported(path) if not name.startswith("n2n_dist")}
    own = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in files
        if path.name != "__main__.py"
    ]
    command = [sys.executable, "-c", PROBE, " ".join(sorted(others)), " ".join(own)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports at its top."""
    statements = ast.parse(path.read_text()).body
    names = {alias.name for s in statements if isinstance(s, ast.Import) for alias in s.names}
    return names | {s.module for s in statements if isinstance(s, ast.ImportFrom) and s.module and not s.level}
