"""On PYTHONPATH, a training run takes a second a step, until there is a file `go` in its working directory."""

import time
from pathlib import Path

import tqdm

_update = tqdm.tqdm.update


def update(bar: tqdm.tqdm, steps: float = 1) -> bool | None:
    if not Path("go").exists():
        time.sleep(1)
    return _update(bar, steps)


tqdm.tqdm.update = update
