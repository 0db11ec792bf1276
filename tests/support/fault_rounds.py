"""A tiny run that tests/faults.py breaks, starts again and compares with one that nothing happened to."""

import contextlib
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from n2n_dist.checkpoint.run_folder import MARKER, OWNER
from support import processes

STEPS, EVERY = 24, 6
SETTINGS = (
    *processes.TINY,
    "data.batch=6",  # for one, two and three processes
    "data.workers=1",
    "data.validation=shards/demo/validation",
    f"train.steps={STEPS}",
    f"checkpoint.every={EVERY}",
    f"validate.every={2 * EVERY}",
    "validate.images=2",
    "validate.panels=1",
    "loss.pixel=l2",
)
PATIENCE = 120.0
"""Seconds after which a start counts as hanging."""

logging.getLogger("tensorboard").setLevel(logging.ERROR)  # points that a killed run wrote disappear, as they should


class Failed(Exception):
    """A run did something else than it promises."""


class Skipped(Exception):
    """This machine cannot do that to a run."""


def expect(condition: object, text: str) -> None:
    if not condition:
        raise Failed(text)


@dataclass
class Start:
    """One start of a run; what still runs when it is left is killed."""

    pids: Callable[[], list[int]]
    """The ranks', by rank; empty before they are there."""
    join: Callable[[float], list[int | None] | None]
    """Wait so many seconds; the exit codes, or None if it still runs."""
    text: Callable[[], str]
    """What was printed."""

    def kill(self, number: int, ranks: list[int]) -> None:
        pids = self.pids()
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(pids[rank], number)

    def wait(self, reached: Callable[[], bool], pause: float = 0.0) -> bool:
        """Wait until something is the case; False if the run ends before."""
        end = time.monotonic() + PATIENCE
        while not reached():
            if self.join(pause) is not None:
                return False
            expect(time.monotonic() < end, "nothing happens for so long")
        return True

    def die(self, ranks: list[int]) -> None:
        """Kill ranks; the others must see it and end, unless they have not met yet: their launcher ends those."""
        self.kill(signal.SIGKILL, ranks)
        if len(ranks) == len(self.pids()) or "world    " not in self.text():
            self.join(5)
        else:
            self.finish(60)

    def finish(self, patience: float = PATIENCE) -> list[int | None]:
        codes = self.join(patience)
        expect(codes is not None, f"hangs: it still runs {patience:.0f} s later")
        assert codes is not None
        return codes


@contextlib.contextmanager
def forked(world: int, arguments: list[str], log: Path) -> Iterator[Start]:
    with processes.started("launch/train.py", *arguments, world=world) as running:

        def text() -> str:
            return "".join(running.texts(".out") + running.texts(".err"))

        def join(seconds: float) -> list[int | None] | None:
            end = time.monotonic() + seconds
            for rank in running.ranks:
                rank.join(max(0.0, end - time.monotonic()))
            codes = [rank.exitcode for rank in running.ranks]
            return None if None in codes else codes

        try:
            yield Start(lambda: [rank.pid for rank in running.ranks], join, text)
        finally:
            for rank in running.ranks:
                rank.kill()
                rank.join()
            log.write_text(text())


@contextlib.contextmanager
def launched(world: int, arguments: list[str], log: Path) -> Iterator[Start]:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file=launch/backends/cpu.yaml"]
    command += [f"--num_processes={world}", f"--main_process_port={processes.free_port()}", "launch/train.py"]
    environment = os.environ | processes.WITHOUT_GPU | processes.signal_variables()
    with log.open("w") as file:
        launcher = subprocess.Popen(
            [*command, *arguments],
            cwd=processes.ROOT,
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )

    def join(seconds: float) -> list[int | None] | None:
        try:
            return [launcher.wait(seconds)]
        except subprocess.TimeoutExpired:
            return None

    known: list[int] = []

    def pids() -> list[int]:
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
        found = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        if len(found) == world and not known:
            known.extend(found)
        return known

    try:
        yield Start(pids, join, log.read_text)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()


@dataclass
class Round:
    """A run to which something happens."""

    folder: Path
    world: int
    random: random.Random
    whole: Path
    """The same run, to which nothing happened."""
    life: float
    """Seconds that that one took."""
    launch: Callable[..., contextlib.AbstractContextManager[Start]]
    settings: list[str] = field(default_factory=list)
    starts: int = 0
    resumed: bool = False
    lost: int = 0
    """Most steps that were done a second time."""
    what: str = ""
    """Which of several things happened."""

    def __post_init__(self) -> None:
        self.run_dir = self.folder / "run"

    @property
    def arguments(self) -> list[str]:
        return [*SETTINGS, *self.settings, f"run.dir={self.run_dir}"]

    def start(self) -> contextlib.AbstractContextManager[Start]:
        self.starts += 1
        return self.launch(self.world, self.arguments, self.folder / f"{self.starts}.log")

    def some_ranks(self) -> list[int]:
        every = list(range(self.world))
        return every if self.random.random() < 0.5 else [self.random.choice(every)]

    def list_checkpoints(self) -> list[Path]:
        """The checkpoints that are whole, oldest first; one that was killed before its rename has another name."""
        folder = self.run_dir / "checkpoints"
        return sorted(path.parent for end in ("", ".tmp") for path in folder.glob(f"step-????????{end}/manifest.json"))

    def again(self, step: int | None = None) -> str:
        """Start it until its end, from the newest checkpoint or that of `step`; return what it says."""
        newest = int(self.list_checkpoints()[-1].name[5:13]) if self.list_checkpoints() else 0
        expected, done = newest if step is None else step, max(curve(self.run_dir, "train/total"), default=(0, 0))[0]
        with self.start() as run:
            codes = run.finish()
            text = run.text()
        expect(not any(codes), f"the next start ends with {codes}")
        found = re.search(r"continuing after step ([\d,]+) of", text)
        here = int(found[1].replace(",", "")) if found else 0
        expect(here == expected, f"goes on after step {here}, not after {expected}")
        self.resumed = self.resumed or here > 0
        self.lost = max(self.lost, done - here)
        self.check()
        return text

    def check(self) -> None:
        """Compare the finished run with the one to which nothing happened."""
        for name in ("last.safetensors", "best.safetensors"):
            same = (self.run_dir / name).read_bytes() == (self.whole / name).read_bytes()
            expect(same, f"{name} differs from that of an uninterrupted run")
        for name, every in (("train/total", 1), ("validation/psnr", 2 * EVERY)):
            points = curve(self.run_dir, name)
            steps = [step for step, _ in points]
            expect(steps == sorted({*range(every, STEPS + 1, every), STEPS}), f"steps of {name}: {steps}")
            expect(points == curve(self.whole, name), f"the values of {name} differ")
        left = [path.name for path in self.run_dir.rglob("*") if ".tmp" in path.name or path.name.startswith(OWNER)]
        expect(not left, f"left behind: {left}")
        expect(not (self.run_dir / MARKER).exists(), "the marker is still there")


def curve(run_dir: Path, name: str) -> list[tuple[int, float]]:
    """The points of a curve, step and value, as TensorBoard shows them."""
    if not (run_dir / "tensorboard").is_dir():
        return []
    events = EventAccumulator(str(run_dir / "tensorboard"), {"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)] if name in events.Tags()["scalars"] else []
