"""What tests/faults.py does to a run. Each function takes a round and raises `Failed` where the run breaks its word."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from n2n_dist.checkpoint.format import read_manifest
from n2n_dist.checkpoint.run_folder import MARKER, OWNER, STALE_SECONDS
from n2n_dist.data.order import Order
from n2n_dist.shards.index import Index
from n2n_dist.signals import ECHO_SECONDS, SIGNALS
from support.fault_rounds import EVERY, STEPS, Round, Skipped, Start, expect


def moment_of_a_save(round_: Round, run: Start) -> bool:
    """Wait for some moment of some save; False if the run ends before."""
    folder = round_.run_dir / "checkpoints"
    step = EVERY * round_.random.randint(1, STEPS // EVERY)
    name = f"step-{step:08d}"
    moments = {
        "begun": lambda: (folder / f"{name}.tmp").exists(),
        "written": lambda: any(folder.glob(f"{name}.tmp/*")),
        "described": lambda: (folder / f"{name}.tmp" / "manifest.json").exists(),
        "named": lambda: (folder / name).exists(),
        "pruned": lambda: step > 2 * EVERY and not (folder / f"step-{step - 2 * EVERY:08d}" / "manifest.json").exists(),
    }
    before = folder / f"step-{step - EVERY:08d}"
    if step > EVERY and not run.wait(before.exists):
        return False
    moment = round_.what = round_.random.choice(list(moments)[: 5 if step > 2 * EVERY else 4])
    reached = run.wait(lambda: moments[moment]() or (folder / name).exists())
    time.sleep(round_.random.choice([0, 0, round_.random.uniform(0, 0.01)]))
    return reached


def kill(round_: Round) -> None:
    """All ranks or one of them are killed at any moment, once or twice."""
    for _ in range(round_.random.randint(1, 2)):
        with round_.start() as run:
            run.join(round_.random.uniform(0, round_.life))
            run.die(round_.some_ranks())
    round_.again()


def kill_in_save(round_: Round) -> None:
    """All ranks or one of them are killed while a checkpoint is written, named, or an older one removed."""
    with round_.start() as run:
        moment_of_a_save(round_, run)
        run.die(round_.some_ranks())
    round_.again()


def damage(round_: Round) -> None:
    """The newest checkpoint is damaged between two starts."""
    with round_.start() as run:
        run.wait(lambda: len(round_.list_checkpoints()) > 1, 0.01)
        run.die(list(range(round_.world)))
    older, newest = round_.list_checkpoints()[-2:]
    if newest.suffix == ".tmp":  # it died just before this, which the next start makes up for
        newest = newest.rename(newest.with_suffix(""))
    path = round_.random.choice(sorted(path for path in newest.iterdir() if path.stat().st_size))
    kind = round_.what = round_.random.choice(["flip", "truncate", "remove", "remove the manifest"])
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


def send_signal(round_: Round, arrive: Callable[[Round, Start], object]) -> None:
    """SIGTERM, SIGUSR1 or SIGINT, sometimes two, in a phase of the run, which `arrive` waits for.

    It leaves a marker, unless the program has not begun to listen, or the second one ends it at once.
    """
    number = round_.random.choice(SIGNALS)
    with round_.start() as run:
        arrive(round_, run)
        ranks = round_.some_ranks()
        run.kill(number, ranks)
        second = round_.random.random() < 0.25
        if second:
            run.join(ECHO_SECONDS + 0.3)
            run.kill(number, ranks)
        if run.join(30) is None and "world    " not in run.text():
            # it died of the signal before it listened, and the others wait for it: their launcher ends those
            run.die(list(range(round_.world)))
        codes = run.finish(60)
        text = run.text()
    heard = "a second signal stops without saving" in text
    marker, ended = (round_.run_dir / MARKER).exists(), (round_.run_dir / "last.safetensors").exists()
    if marker:
        late = second and set(codes) <= {0, 1}  # the second one ends ranks that have nothing left to do
        expect(not any(codes) or codes == [1] or late, f"a marker, and exit codes {codes}")
        expect(not ended, "a marker, and the weights of the end")
        at = re.search(r"saved after step|before the first step", (round_.run_dir / MARKER).read_text())
        expect(at, "the marker does not say what is saved")
        assert at is not None
        cut = round_.list_checkpoints() and read_manifest(round_.list_checkpoints()[-1]).state.owes_validation
        round_.what = f"marker, {'validation cut short' if cut else at[0]}"
    elif ended:
        expect(not any(codes), f"the weights of the end, and exit codes {codes}")
        round_.what = "was ending"
    else:
        expect(second or not heard, f"{number.name}: no marker and no end, exit codes {codes}")
        round_.what = "second signal" if heard else "did not listen yet"
    round_.again()


def in_start(round_: Round, run: Start) -> None:
    """Wait for some moment before the first step."""
    end = time.monotonic() + round_.random.uniform(0, round_.life / 4)
    while time.monotonic() < end and "world    " not in run.text():
        run.join(0.01)


def in_loop(round_: Round, run: Start) -> None:
    """Wait for the end of some step."""
    step = round_.random.randint(1, STEPS - 1)
    run.wait(lambda: points(round_.run_dir) >= step, 0.002)


def in_validation(round_: Round, run: Start) -> None:
    """Wait for some moment of some validation, which begins after the point of its step, and says when it ends."""
    step = round_.random.choice([2 * EVERY, 2 * EVERY, STEPS])  # after the last one there is nothing left to save
    run.wait(lambda: points(round_.run_dir) >= step, 0.002)
    run.join(round_.random.uniform(0, round_.life / 16))  # about half of what one takes


def points(run_dir: Path) -> int:
    """Count the points of the curves that a first start has written; quick enough to be asked all the time."""
    return sum(path.read_bytes().count(b"memory/peak_gib") for path in run_dir.glob("tensorboard/events.*"))


def stop(round_: Round) -> None:
    """One rank is stopped, as by a machine that hangs; the others give up, and it does too when it wakes."""
    timeout = max(3, int(round_.life))  # a machine that is busy with other things takes longer over a first step
    round_.settings.append(f"train.timeout={timeout}")
    rank = round_.random.randrange(round_.world)
    with round_.start() as run:
        run.wait(lambda: bool(round_.list_checkpoints()), 0.01)
        run.join(round_.random.uniform(0, round_.life / 4))
        run.kill(signal.SIGSTOP, [rank])
        run.join(timeout + 11)
        run.kill(signal.SIGCONT, [rank])
        codes = run.finish(30)
        text = run.text()
    if not (round_.run_dir / "last.safetensors").exists():
        expect(0 not in codes, f"exit codes {codes}")
        own = text.partition("torch/distributed/elastic/")[0]  # the launcher prints one of its own
        expect("Traceback" not in own, "a traceback is printed")
        expect(f"rank {rank} on " in text or "another process of this run was lost" in text, "no word of the rank")
        expect((round_.run_dir / "error.txt").is_file(), "no error.txt")
    round_.again()


def take_over(round_: Round) -> None:
    """All ranks are stopped for long, and another start takes the folder over; they wake up and leave it alone."""
    with round_.start() as run:
        run.wait(lambda: bool(round_.list_checkpoints()), 0.01)
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
    expect(all(int(path.name[5:13]) <= step for path in round_.list_checkpoints()), "has saved what is not finite")
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
            expect(set(codes) <= {1, 2} and "error: " in text, f"exit codes {codes}")
            expect("o space" in text or "make room" in text, "does not say that there is no room")
        subprocess.run(["mount", "-o", "remount,size=64m", str(round_.run_dir)], check=True)
        round_.again()


def read_only(round_: Round) -> None:
    """The folder cannot be written, from the start or from some step on."""
    with mounted(round_.run_dir, "size=64m"):
        with round_.start() as run:
            if round_.random.random() < 0.5:
                run.wait(lambda: bool(round_.list_checkpoints()), 0.01)
            run.die(list(range(round_.world)))
        command = ["mount", "-o", "remount,ro", str(round_.run_dir)]
        end = time.monotonic() + 20
        while subprocess.run(command, capture_output=True).returncode:  # loader workers of the killed run end soon
            expect(time.monotonic() < end, "processes of the killed run are still there")
            time.sleep(0.2)
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
    "signal-start": (partial(send_signal, arrive=in_start), (1, 2, 3)),
    "signal-loop": (partial(send_signal, arrive=in_loop), (1, 2, 3)),
    "signal-validation": (partial(send_signal, arrive=in_validation), (1, 2, 3)),
    "signal-save": (partial(send_signal, arrive=moment_of_a_save), (1, 2, 3)),
    "stop": (stop, (2, 3)),
    "take-over": (take_over, (1, 2)),
    "second-run": (second_run, (1, 2)),
    "not-finite": (not_finite, (2, 3)),
    "full-disk": (full_disk, (1, 2)),
    "read-only": (read_only, (1, 2)),
}
"""What can be done to a run, and in how many processes."""
