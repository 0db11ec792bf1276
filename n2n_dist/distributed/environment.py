"""Variables of a launcher, and those that another program has left over."""

from __future__ import annotations

import os

from n2n_dist.errors import UserError


def launched_world_size() -> int:
    """Return the number of processes that the launcher has started.

    Raises:
        UserError: variables of a launcher are incomplete or no numbers: they are left over from another program.

    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if os.environ.get("WORLD_SIZE", "1") in ("", "1") and os.environ.get("RANK", "0") in ("", "0"):
        return 1
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        if not os.environ.get(name, "0").isdecimal():
            raise UserError(f"{name}={os.environ[name]}: not a number; unset it, a launcher sets it itself")
    present = [name for name in names if os.environ.get(name)]
    if missing := [name for name in names if name not in present]:
        raise UserError(
            f"{present[0]}={os.environ[present[0]]}: set without {missing[0]}, so it is left over from another "
            f"program; unset {' '.join(present)}, or start with accelerate launch"
        )
    return int(os.environ["WORLD_SIZE"])


def remove_leftovers() -> None:
    """Remove variables that mean nothing without a launcher, or that would overrule settings.

    Accelerate takes a LOCAL_RANK alone for a launcher's, fails at an empty one, and compiles or chooses the device by
    variables of its own, which train.compile and the launch file decide.
    """
    if not os.environ.get("WORLD_SIZE"):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_TORCH_DEVICE"):
        os.environ.pop(name, None)
