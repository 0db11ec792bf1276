"""Break training runs from the outside and check that the same command brings them to the same weights.

    python tests/faults.py --rounds 40                                  # faults drawn at random
    python tests/faults.py --rounds 200 --seed 2 --faults kill damage --launcher accelerate

Every round starts a tiny run in one, two or three processes on the CPU, does one thing to it, starts it again by the
same command until it ends, and compares it with a run that nothing happened to. The seed chooses what happens when;
what it meets also depends on the machine. A round that fails leaves its folder. With `--launcher accelerate` the
processes are started as a user does; by default they are forked from one that has imported torch, which saves ten
seconds a start.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from support.fault_kinds import FAULTS
from support.fault_rounds import SETTINGS, Failed, Round, Skipped, forked, launched

from n2n_dist.building.build import build
from n2n_dist.building.plan import Options
from n2n_dist.images.image import write_image

LAUNCHERS = {"fork": forked, "accelerate": launched}


@dataclass
class Result:
    """What one round came to."""

    fault: str
    world: int
    outcome: str
    """`bit-equal`, `skipped` or `failed`."""
    what: str
    """Which of several things happened, or why it is skipped or fails."""
    resumed: bool
    lost: int
    """Most steps that were done a second time."""
    seconds: float


def draw(faults: list[str], chance: random.Random) -> Iterator[tuple[str, int]]:
    """Yield faults and numbers of processes at random; no fault comes a second time before all came once."""
    while True:
        for fault in chance.sample(faults, len(faults)):
            yield fault, chance.choice(FAULTS[fault][1])


def play(round_: Round, fault: str) -> Result:
    """Play one round; what it leaves is kept only if it fails."""
    start = time.monotonic()
    round_.folder.mkdir()
    try:
        FAULTS[fault][0](round_)
        outcome, what = "bit-equal", round_.what
    except Skipped as reason:
        outcome, what = "skipped", str(reason)
    except Exception as error:
        outcome, what = "failed", str(error)
        if not isinstance(error, Failed):
            traceback.print_exc()
        print(f"  folder:  {round_.folder}\n  command: launch/train.py {' '.join(round_.arguments)}", flush=True)
    else:
        shutil.rmtree(round_.folder)
    return Result(fault, round_.world, outcome, what, round_.resumed, round_.lost, time.monotonic() - start)


def build_float_shards(folder: Path) -> None:
    """Build the shards of float images that one of the faults damages."""
    for number in range(16):
        pixels = np.random.default_rng(number).uniform(0, 1, (40, 40, 3)).astype(np.float32)
        write_image(folder / f"images/{number}.tiff", pixels)
    build(folder / "images", folder / "float32", Options(black=0.0, white=1.0), warn=lambda message: None)


def campaign(folder: Path, rounds: int, seed: int, faults: list[str], launcher: str) -> list[Result]:
    """Play so many rounds and print each."""
    launch = LAUNCHERS[launcher]
    wholes: dict[int, tuple[Path, float]] = {}
    build_float_shards(folder)
    results = []
    drawn = draw(faults, random.Random(seed))
    for number in range(rounds):
        fault, world = next(drawn)
        if world not in wholes:
            whole, begun = folder / f"whole-{world}", time.monotonic()
            with launch(world, [*SETTINGS, f"run.dir={whole}"], folder / f"whole-{world}.log") as run:
                if any(run.finish()):
                    raise SystemExit(f"the uninterrupted run fails:\n{run.text()}")
            wholes[world] = whole, time.monotonic() - begun
        chance = random.Random(f"{seed}/{number}")
        result = play(Round(folder / f"{number}-{fault}", world, chance, *wholes[world], launch), fault)
        results.append(result)
        details = f"{fault}, {world} process(es), {result.seconds:.0f} s: {result.outcome}"
        print(f"{number + 1} of {rounds}: {details}{result.what and f' ({result.what})'}", flush=True)
    return results


def print_table(results: list[Result]) -> None:
    """Print what became of every fault."""
    rows: list[tuple[str, ...]] = [
        ("fault", "rounds", "bit-equal", "failed", "skipped", "resumed", "lost steps", "s a round", "of which")
    ]
    for fault in sorted({result.fault for result in results}):
        own = [result for result in results if result.fault == fault]
        outcomes = Counter(result.outcome for result in own)
        kinds = Counter(f"{result.world}p {result.what}".strip() for result in own)
        rows.append(
            (
                fault,
                *map(str, (len(own), outcomes["bit-equal"], outcomes["failed"], outcomes["skipped"])),
                str(sum(result.resumed for result in own)),
                str(max(result.lost for result in own)),
                f"{sum(result.seconds for result in own) / len(own):.1f}",
                ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())
    print("lost steps: most that were done twice; every start went on from the newest good checkpoint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=len(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--faults", nargs="+", default=list(FAULTS), choices=FAULTS, metavar="NAME", help=", ".join(FAULTS)
    )
    parser.add_argument("--launcher", choices=LAUNCHERS, default="fork")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    results = campaign(folder, arguments.rounds, arguments.seed, arguments.faults, arguments.launcher)
    print_table(results)
    good = all(result.outcome != "failed" for result in results)
    if good:
        shutil.rmtree(folder)
    sys.exit(not good)


if __name__ == "__main__":
    main()
