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
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import processes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from n2n_dist.data.build import build
from n2n_dist.data.image import write_image
from n2n_dist.data.order import Order
from n2n_dist.data.plan import Options
from n2n_dist.data.shard import Index
from n2n_dist.interrupt import ECHO_SECONDS, MARKER, SIGNALS
from n2n_dist.training.owner import OWNER, STALE_SECONDS

STEPS, EVERY = 40, 8
SETTINGS = (
    *processes.TINY,
    "data.batch=6",  # for one, two and three processes
    "data.workers=1",
    "data.validation=shards/demo/validation",
    f"train.steps={STEPS}",
    f"checkpoint.every={EVERY}",
    f"validate.every={2 * EVERY}",
    "validate.images=2",
    "validate.strips=1",
    "loss.pixel=l2",
)
PATIENCE = 120.0
"""Seconds after which a start counts as hanging."""


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
    environment = os.environ | processes.WITHOUT_GPU | signal_variables()
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

    def pids() -> list[int]:
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
        found = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        return found if len(found) == world else []

    try:
        yield Start(pids, join, log.read_text)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()


def signal_variables() -> dict[str, str]:
    """The variables that README.md names."""
    line = next(line for line in (processes.ROOT / "README.md").read_text().splitlines() if "PET_SIGNALS" in line)
    return dict(setting.split("=") for setting in line.removeprefix("export ").split())


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

    def committed(self) -> list[Path]:
        """The finished checkpoints, oldest first."""
        return sorted(path.parent for path in self.run_dir.glob("checkpoints/step-????????/manifest.json"))

    def again(self, step: int | None = None) -> str:
        """Start it until its end, from the newest checkpoint or that of `step`; return what it says."""
        newest = int(self.committed()[-1].name[5:]) if self.committed() else 0
        expected, done = newest if step is None else step, max(logged(self.run_dir), default=0)
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
        expect(logged(self.run_dir) == list(range(1, STEPS + 1)), f"steps in TensorBoard: {logged(self.run_dir)}")
        left = [path.name for path in self.run_dir.rglob("*") if ".tmp" in path.name or path.name.startswith(OWNER)]
        expect(not left, f"left behind: {left}")
        expect(not (self.run_dir / MARKER).exists(), "the marker is still there")


def logged(run_dir: Path) -> list[int]:
    """The steps of the curve of the loss, as TensorBoard shows them."""
    if not (run_dir / "tensorboard").is_dir():
        return []
    events = EventAccumulator(str(run_dir / "tensorboard"), {"scalars": 0}).Reload()
    return [event.step for event in events.Scalars("train/total")] if "train/total" in events.Tags()["scalars"] else []


def moment_of_a_save(round_: Round, run: Start) -> bool:
    """Wait for some moment of some save; False if the run ends before."""
    folder = round_.run_dir / "checkpoints"
    step = EVERY * round_.random.randint(1, STEPS // EVERY)
    name = f"step-{step:08d}"
    moments = {
        "begun": lambda: (folder / f"{name}.tmp").exists(),
        "written": lambda: any(folder.glob(f"{name}.tmp/*.distcp")),
        "described": lambda: (folder / f"{name}.tmp" / "manifest.json").exists(),
        "named": lambda: (folder / name).exists(),
        "pruned": lambda: step > 2 * EVERY and not (folder / f"step-{step - 2 * EVERY:08d}" / "manifest.json").exists(),
    }
    before = folder / f"step-{step - EVERY:08d}"
    if step > EVERY and not run.wait(before.exists):
        return False
    moment = round_.random.choice(list(moments)[: 5 if step > 2 * EVERY else 4])
    reached = run.wait(lambda: moments[moment]() or (folder / name).exists())
    time.sleep(round_.random.choice([0, 0, round_.random.uniform(0, 0.01)]))
    return reached


def kill(round_: Round) -> None:
    """All ranks or one of them are killed at any moment, once or twice."""
    for _ in range(round_.random.randint(1, 2)):
        with round_.start() as run:
            run.join(round_.random.uniform(0, round_.life))
            run.kill(signal.SIGKILL, round_.some_ranks())
            run.finish(30)
    round_.again()


def kill_in_save(round_: Round) -> None:
    """All ranks or one of them are killed while a checkpoint is written, named, or an older one removed."""
    with round_.start() as run:
        moment_of_a_save(round_, run)
        run.kill(signal.SIGKILL, round_.some_ranks())
        run.finish(30)
    round_.again()


def damage(round_: Round) -> None:
    """The newest checkpoint is damaged between two starts."""
    with round_.start() as run:
        run.wait(lambda: len(round_.committed()) > 1, 0.01)
        run.kill(signal.SIGKILL, list(range(round_.world)))
        run.finish(30)
    older, newest = round_.committed()[-2:]
    path = round_.random.choice(sorted(path for path in newest.iterdir() if path.stat().st_size))
    kind = round_.random.choice(["flip", "truncate", "remove", "remove the manifest"])
    if kind == "flip":
        data = bytearray(path.read_bytes())
        data[round_.random.randrange(len(data))] ^= 1 << round_.random.randrange(8)
        path.write_bytes(data)
    elif kind == "truncate":
        os.truncate(path, round_.random.randrange(path.stat().st_size))
    else:
        path = path if kind == "remove" else newest / "manifest.json"
        path.unlink()
    said = round_.again(int(older.name[5:]))
    expect(f"{newest.name} is damaged" in said, f"{kind} {path.name}: nothing is said about {newest.name}")
    aside = newest.with_name(newest.name + ".damaged")
    expect(aside.is_dir(), f"{kind} {path.name}: {newest.name} is not set aside")


def send_signal(round_: Round) -> None:
    """SIGTERM, SIGUSR1 or SIGINT, sometimes two, in the start, the loop, a validation or a save."""
    phase = round_.random.choice(["start", "loop", "validation", "save"])
    number = round_.random.choice(SIGNALS)
    with round_.start() as run:
        if phase == "save":
            moment_of_a_save(round_, run)
        elif phase == "start":
            run.join(round_.random.uniform(0, round_.life / 4))
        else:
            # the validation stands before the save of its step
            first = round_.run_dir / "checkpoints" / f"step-{EVERY:08d}"
            run.wait(first.exists, 0.005)
            run.join(round_.random.uniform(0, round_.life / 4))
        ranks = round_.some_ranks()
        run.kill(number, ranks)
        second = round_.random.random() < 0.25
        if second:
            run.join(ECHO_SECONDS + 0.3)
            run.kill(number, ranks)
        codes = run.finish(60)
        heard = "a second signal stops without saving" in run.text()
    marker, ended = (round_.run_dir / MARKER).exists(), (round_.run_dir / "last.safetensors").exists()
    if marker:
        expect(not any(codes) or codes == [1], f"a marker, and exit codes {codes}")
        expect(not ended, "a marker, and the weights of the end")
    elif not second and (heard or phase != "start"):
        expect(ended and not any(codes), f"{number.name} in the {phase}: no marker and no end, exit codes {codes}")
    round_.again()


def stop(round_: Round) -> None:
    """One rank is stopped, as by a machine that hangs; the others give up, and it does too when it wakes."""
    round_.settings.append("train.timeout=3")
    rank = round_.random.randrange(round_.world)
    with round_.start() as run:
        run.wait(lambda: bool(round_.committed()), 0.01)
        run.join(round_.random.uniform(0, round_.life / 4))
        run.kill(signal.SIGSTOP, [rank])
        run.join(20)
        run.kill(signal.SIGCONT, [rank])
        codes = run.finish(30)
        text = run.text()
    if not (round_.run_dir / "last.safetensors").exists():
        expect(0 not in codes, f"exit codes {codes}")
        expect("Traceback" not in text, "a traceback is printed")
        expect(f"rank {rank} on " in text or "another process of this run is gone" in text, "no word of the rank")
        expect((round_.run_dir / "error.txt").is_file(), "no error.txt")
    round_.again()


def take_over(round_: Round) -> None:
    """All ranks are stopped for long, and another start takes the folder over; they wake up and leave it alone."""
    with round_.start() as run:
        run.wait(lambda: bool(round_.committed()), 0.01)
        run.kill(signal.SIGSTOP, list(range(round_.world)))
        said = round_.again()
        expect("taken over from process" in said, "takes the folder of a run that may live")
        before = (round_.run_dir / "last.safetensors").stat().st_mtime_ns
        run.kill(signal.SIGCONT, list(range(round_.world)))
        codes = run.finish(30)
        text = run.text()
    expect(set(codes) == {2}, f"the run that was stopped ends with {codes}")
    expect("removed during the run" in text or "took the folder over" in text, "does not say why it stops")
    expect((round_.run_dir / "last.safetensors").stat().st_mtime_ns == before, "writes into a folder that it lost")
    round_.check()


def second_run(round_: Round) -> None:
    """Another start on the folder of a run that is alive."""
    with round_.start() as run:
        run.wait((round_.run_dir / OWNER).exists, 0.005)
        run.join(round_.random.uniform(0, round_.life / 3))
        with round_.start() as other:
            codes = other.finish(STALE_SECONDS + 15)
            text = other.text()
        running = run.join(0) is None
        expect(not any(run.finish()), "the first run ends badly")
    if running:
        expect(set(codes) == {2}, f"the second run ends with {codes}")
        expect("in use by process" in text, "does not name the owner")
        expect(not (round_.run_dir / "error.txt").exists(), "leaves an error in the other's folder")
    round_.check()


def not_finite(round_: Round) -> None:
    """A float32 sample with the largest number that there is, as some formats mark no data, comes to one rank."""
    shards = Path(shutil.copytree(round_.whole.parent / "float32", round_.folder / "float32"))
    round_.settings += [f"data.shards={shards}", "data.validation=null", "train.log_every=50"]
    whole = round_.whole.parent / f"float32-{round_.world}"
    if not whole.exists():  # a first round makes it
        with round_.launch(round_.world, [*round_.arguments, f"run.dir={whole}"], round_.folder / "whole.log") as run:
            expect(not any(run.finish()), "the uninterrupted run fails")
    index = Index([shards])
    number = round_.random.randrange(len(index))
    tar, sample = index.sample(number)
    (member,) = sample.captures
    original = Path(str(tar)).read_bytes()
    size = int(np.prod(sample.shape)) * 4
    data = bytearray(original)
    data[member.offset + member.size - size : member.offset + member.size] = (
        np.full(size // 4, np.finfo(np.float32).max).astype("<f4").tobytes()
    )
    Path(str(tar)).write_bytes(data)
    order = Order(index.sizes, 0, 6)
    batches = [order.batch(seen).tolist() for seen in range(0, STEPS * 6, 6)]
    step = next(i for i, batch in enumerate(batches) if number in batch)
    with round_.start() as run:
        codes = run.finish()
        text = run.text()
    expect(set(codes) <= {1, 2} and 0 not in codes, f"exit codes {codes}")
    position = step * 6 + batches[step].index(number)
    message = re.search(r"error: step (\d+): .*not finite, with the samples at positions (\d+) to (\d+)", text)
    expect(message, "no message")
    assert message is not None
    expect(int(message[1]) == step + 1, f"names step {message[1]}, not {step + 1}")
    expect(int(message[2]) <= position <= int(message[3]), f"names {message[0]}, not {position}")
    expect(f"sample {sample.key}" in text, f"does not name sample {sample.key}")
    expect(all(int(path.name[5:]) <= step for path in round_.committed()), "has saved what is not finite")
    Path(str(tar)).write_bytes(original)
    with round_.start() as run:
        expect(not any(run.finish()), "does not go on with sound data")
    round_.resumed = bool(step // EVERY)
    same = (round_.run_dir / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()
    expect(same, "the weights differ from those of a run on sound data")


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own at `folder`."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0:
        raise Skipped("only root may mount a file system")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Skipped(done.stderr.strip())
    try:
        yield
    finally:
        shutil.copytree(folder, folder.with_name("run-left"), dirs_exist_ok=True)
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def full_disk(round_: Round) -> None:
    """The disk fills up, mostly during a save; the run goes on when there is room."""
    needed = sum(path.stat().st_size for path in round_.whole.rglob("*") if path.is_file())
    size = int(needed * round_.random.uniform(0.3, 1.1))
    with mounted(round_.run_dir, f"size={size}"):
        with round_.start() as run:
            codes = run.finish()
            text = run.text()
        if any(codes):
            expect(set(codes) <= {1, 2} and re.search(r"^error: .*", text, re.MULTILINE), f"exit codes {codes}")
            expect("Traceback" not in text.partition("error: ")[0], "a traceback comes before the message")
            expect("o space" in text or "make room" in text, "does not say that there is no room")
        subprocess.run(["mount", "-o", "remount,size=64m", str(round_.run_dir)], check=True)
        round_.again()


def read_only(round_: Round) -> None:
    """The folder cannot be written, from the start or from some step on."""
    with mounted(round_.run_dir, "size=64m"):
        with round_.start() as run:
            if round_.random.random() < 0.5:
                run.kill(signal.SIGKILL, list(range(round_.world)))
            else:
                run.wait(lambda: bool(round_.committed()), 0.01)
                run.kill(signal.SIGKILL, list(range(round_.world)))
            run.finish(30)
        subprocess.run(["mount", "-o", "remount,ro", str(round_.run_dir)], check=True)
        with round_.start() as run:
            codes = run.finish(40)
            text = run.text()
        expect(set(codes) <= {1, 2} and 0 not in codes, f"exit codes {codes}")
        expect("error: " in text and "cannot be written" in text, "does not say that nothing can be written")
        subprocess.run(["mount", "-o", "remount,rw", str(round_.run_dir)], check=True)
        round_.again()


FAULTS: dict[str, tuple[Callable[[Round], None], tuple[int, ...]]] = {
    "kill": (kill, (1, 2, 3)),
    "kill-in-save": (kill_in_save, (1, 2, 3)),
    "damage": (damage, (1, 2, 3)),
    "signal": (send_signal, (1, 2, 3)),
    "stop": (stop, (2, 3)),
    "take-over": (take_over, (1, 2)),
    "second-run": (second_run, (1, 2)),
    "not-finite": (not_finite, (2, 3)),
    "full-disk": (full_disk, (1, 2)),
    "read-only": (read_only, (1, 2)),
}
"""What can be done to a run, and in how many processes."""


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
        rows.append((fault, len(done) + failed, resumed, len(done), failed, lost, f"{seconds:.1f}", skipped))
        good = good and not failed
        print(f"{fault}: {len(done)} of {len(done) + failed} went well {skipped}", flush=True)
    heads = ("fault", "rounds", "resumed", "bit-equal", "failed", "lost steps", "s a round", "skipped")
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
