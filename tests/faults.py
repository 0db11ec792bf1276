"""Break training runs from the outside and check that the same command brings them to the same weights.

    python tests/faults.py --rounds 3 --seed 1                          # every fault
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
from pathlib import Path
from typing import Any

import numpy as np
from support.fault_kinds import FAULTS
from support.fault_rounds import SETTINGS, Failed, Round, Skipped, forked, launched

from n2n_dist.building.build import build
from n2n_dist.building.plan import Options
from n2n_dist.images.image import write_image


def campaign(folder: Path, rounds: int, seed: int, faults: list[str], launcher: str) -> bool:
    """Print what happened as a table; return whether every round went well."""
    launch = {"fork": forked, "accelerate": launched}[launcher]
    wholes: dict[int, tuple[Path, float]] = {}
    images = folder / "images"
    for number in range(16):
        pixels = np.random.default_rng(number).uniform(0, 1, (40, 40, 3)).astype(np.float32)
        write_image(images / f"{number}.tiff", pixels)
    build(images, folder / "float32", Options(black=0.0, white=1.0), warn=lambda message: None)
    rows, good = [], True
    for fault in faults:
        act, worlds = FAULTS[fault]
        done: list[Round] = []
        failed, skipped, start = 0, "", time.monotonic()
        for number in range(rounds):
            chance = random.Random(f"{seed}/{fault}/{number}")
            world = worlds[(number + seed) % len(worlds)]
            if world not in wholes:
                whole, begun = folder / f"whole-{world}", time.monotonic()
                with launch(world, [*SETTINGS, f"run.dir={whole}"], folder / f"whole-{world}.log") as run:
                    if any(run.finish()):
                        raise SystemExit(f"the uninterrupted run fails:\n{run.text()}")
                wholes[world] = whole, time.monotonic() - begun
            round_ = Round(folder / f"{fault}-{number}", world, chance, *wholes[world], launch)
            round_.folder.mkdir()
            try:
                act(round_)
                done.append(round_)
            except Skipped as reason:
                skipped = str(reason)
                break
            except Exception as error:
                failed += 1
                print(f"FAILED {fault}, round {number}, {world} process(es): {error}")
                if not isinstance(error, Failed):
                    traceback.print_exc()
                print(f"  folder:  {round_.folder}")
                print(f"  command: launch/train.py {' '.join(round_.arguments)}", flush=True)
            else:
                shutil.rmtree(round_.folder)
        resumed, lost = sum(round_.resumed for round_ in done), max((round_.lost for round_ in done), default=0)
        seconds = (time.monotonic() - start) / max(len(done) + failed, 1)
        counts = Counter(round_.what for round_ in done if round_.what).most_common()
        what = skipped or ", ".join(f"{count} {what}" for what, count in counts)
        rows.append((fault, len(done) + failed, resumed, len(done), failed, lost, f"{seconds:.1f}", what))
        good = good and not failed
        print(f"{fault}: {len(done)} of {len(done) + failed} went well {skipped}", flush=True)
    heads = ("fault", "rounds", "resumed", "bit-equal", "failed", "lost steps", "s a round", "of which")
    widths = [max(len(str(row[i])) for row in [heads, *rows]) for i in range(len(heads))]
    print()
    for row in [heads, *rows]:
        print("  ".join(str(value).ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())
    print("lost steps: most that were done twice; every start went on from the newest good checkpoint")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="of each fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--faults", nargs="+", default=list(FAULTS), choices=FAULTS, metavar="NAME", help=", ".join(FAULTS)
    )
    parser.add_argument("--launcher", choices=("fork", "accelerate"), default="fork")
    arguments: Any = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    good = campaign(folder, arguments.rounds, arguments.seed, arguments.faults, arguments.launcher)
    if good:
        shutil.rmtree(folder)
    sys.exit(not good)


if __name__ == "__main__":
    main()
