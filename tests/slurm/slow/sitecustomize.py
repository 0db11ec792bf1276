"""On PYTHONPATH: what would be over before a test could meet it waits for a file `go` in its working directory.

Until then a training run takes a second a step, and a build finishes one group of tars; a launcher does not start
while there is a file `wait`.
"""

import os
import sys
import time
from pathlib import Path

import tqdm

_update, _replace = tqdm.tqdm.update, os.replace
_groups = 0


def update(bar: tqdm.tqdm, steps: float = 1) -> bool | None:
    if not Path("go").exists():
        time.sleep(1)
    return _update(bar, steps)


def replace(source: Path, target: Path) -> None:
    global _groups
    if Path(target).name.startswith("group-"):
        _groups += 1
        while _groups > 1 and not Path("go").exists():
            time.sleep(0.1)
    _replace(source, target)


tqdm.tqdm.update, os.replace = update, replace
while "launch" in sys.orig_argv and Path("wait").exists():
    time.sleep(0.1)
