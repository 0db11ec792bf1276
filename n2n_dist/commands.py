"""The commands that messages print, and the files that come with the package.

In the folder of a checkout a message names its scripts, everywhere else the installed command.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from n2n_dist.errors import UserError

PACKAGE = Path(__file__).parent
"""Holds `configs/`, `backends/` and `shards/demo/`: links in a checkout, files in an installed package."""
CONFIGS = PACKAGE / "configs"
SCRIPTS = {
    "train": "accelerate launch launch/train.py",
    "denoise": "python launch/denoise.py",
    "evaluate": "python launch/evaluate.py",
    "build": "python shards/build.py",
    "index": "python shards/build.py index",
    "verify": "python shards/build.py verify",
    "audit": "python shards/audit.py",
    "checkpoints": "python -m n2n_dist.checkpoint",
}
"""The command lines of a checkout, by the sub-command of `n2n-dist`."""


def command(name: str, *arguments: object) -> str:
    """Return the command line of a sub-command and its arguments, as it works in the current folder."""
    if _in_checkout():
        start = SCRIPTS[name]
    elif name == "train":
        start = "accelerate launch -m n2n_dist train"  # `-m n2n_dist.train` imports torch before signals are noted
    else:
        start = f"n2n-dist {name}"
    return " ".join([start, *(shlex.quote(str(argument)) for argument in arguments)])


def backend_file(name: str) -> str:
    """Return the path of a launch file, such as `cpu`, from the current folder."""
    return f"launch/backends/{name}.yaml" if _in_checkout() else str(PACKAGE / "backends" / f"{name}.yaml")


def config_names() -> list[str]:
    """Return the names of the configurations that come with the package."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def find_config(name: str | Path) -> Path:
    """Return the path of a configuration, given its path or the name of one that comes with the package.

    Raises:
        UserError: there is neither.

    """
    if not Path(name).is_file() and str(name) in config_names():
        return CONFIGS / f"{name}.yaml"
    if not Path(name).exists():
        raise UserError(
            f"{name}: no such file; give a YAML file, or a configuration of the package by its name: "
            + ", ".join(config_names())
        )
    return Path(name)


def _in_checkout() -> bool:
    """Whether the current folder is the checkout that this package is imported from."""
    root = PACKAGE.resolve().parent
    return (root / "launch" / "train.py").is_file() and root == Path.cwd()
