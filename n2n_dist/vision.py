"""Import of torchvision, which only VGG-16, LPIPS and SSIM need; it breaks where it was built for another torch."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

from n2n_dist.errors import UserError, one_line


def import_torchvision(module: str = "torchvision") -> ModuleType:
    """Import torchvision, or a package that needs it.

    Raises:
        UserError: it cannot be imported with the installed torch; names both versions and the remedy.

    """
    try:
        importlib.import_module("torchvision")
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"torch {_version('torch')} and torchvision {_version('torchvision')} do not work together "
            f"({one_line(error)}); install both anew with one command: pip install --force-reinstall torch torchvision "
            "(without a GPU add --extra-index-url https://download.pytorch.org/whl/cpu)"
        ) from None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
