"""Run the project's scripts in one or several processes.

A fork server imports torch and the package once, so that a rank starts at once instead of after ten seconds. Every rank
is a process of its own that runs the real script, with the variables that `accelerate launch` would give it.
"""

import contextlib
import hashlib
import importlib
import math
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--config=configs/demo.yaml",
    "model.width=8",
    "model.depths=[1,1]",
    "data.crop=32",
    "data.batch=8",
    "data.workers=0",
    "data.validation=null",
    "loss.perceptual=0",
    "optim.lr=5e-4",  # Adam's first steps go by the sign of a gradient: at 2e-3 rounding shows in the fifth digit
    "train.threads=1",
    "train.precision=fp32",
    "train.log_every=1",
)
"""A run of a network of 10,000 parameters on the demo's shards; the last setting of a key counts."""

WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""Several processes on one GPU are no world; these tests are about processes."""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "n2n_dist.train",
        "n2n_dist.building.build",
        "n2n_dist.inference.denoise",
        "n2n_dist.inference.evaluate",
        "torch._dynamo",  # what torch imports with the first network
        "torchvision",
        "torchmetrics",
        "accelerate",
        "deepspeed",
        "tensorboard.backend.event_processing.event_accumulator",
    ]
)
"""Imported once. Not all of these are imported by every script: seconds that no rank has to spend."""


@dataclass
class Finished:
    """What the ranks left, by rank."""

    codes: list[int | None]
    """Exit codes; -N: killed by signal N."""
    out: list[str]
    err: list[str]
    seconds: float

    def checked(self) -> "Finished":
        """Fail, with what was printed, unless every rank ended well."""
        assert not any(self.codes), f"exit codes {self.codes}\n" + "\n".join(self.out + self.err)
        return self


SEAMS = {
    "data": "n2n_dist.train.open_data",
    "step": "n2n_dist.train.train_step",
    "save": "n2n_dist.checkpoint.format.commit",
    "validation": "n2n_dist.training.validation.denoise_tiled",
}
"""Functions at which tests may hold a run: before its first step, before a step, before a checkpoint gets its name
(rank 0 alone does that), before a sample of a validation."""


@dataclass
class Hold:
    """A moment at which every rank waits until the test lets it go on."""

    seam: str
    """Key of `SEAMS`."""
    call: int
    """The call of that function, counted from 1, on each rank."""
    folder: Path
    """Where the ranks count their calls."""
    rank: int | None = None
    """The rank that waits; None: all."""
    seconds: float = 0.0
    """What reading a batch takes longer, on these ranks."""

    def calls(self, rank: int) -> int:
        path = self.folder / str(rank)
        return path.stat().st_size if path.exists() else 0

    def release(self) -> None:
        time.sleep(0.2)  # a signal that was just sent has arrived then
        (self.folder / "go").touch()


@dataclass
class Running:
    """The ranks of a script, by rank."""

    ranks: list[Any]
    outputs: list[Path]
    start: float

    def signal(self, number: int, *ranks: int) -> None:
        for rank in ranks:
            os.kill(self.ranks[rank].pid, number)

    def wait(self, reached: Callable[[], bool], timeout: float = 60) -> None:
        """Wait until something is the case; fail if a rank ends before that."""
        end = time.monotonic() + timeout
        while not reached():
            assert all(process.is_alive() for process in self.ranks), "".join(self.texts(".out") + self.texts(".err"))
            assert time.monotonic() < end, "".join(self.texts(".out") + self.texts(".err"))
            time.sleep(0.01)

    def wait_at(self, hold: Hold) -> None:
        ranks = range(len(self.ranks)) if hold.rank is None else [hold.rank]
        self.wait(lambda: all(hold.calls(rank) >= hold.call for rank in ranks))

    def texts(self, suffix: str) -> list[str]:
        return [path.read_text() for output in self.outputs if (path := output.with_suffix(suffix)).exists()]

    def finish(self, timeout: float = 150) -> Finished:
        for process in self.ranks:
            process.join(max(0.0, timeout - (time.monotonic() - self.start)))
        late = [rank for rank, process in enumerate(self.ranks) if process.is_alive()]
        out, err = self.texts(".out"), self.texts(".err")
        assert not late, f"ranks {late} still ran after {timeout} s\n" + "\n".join(out + err)
        return Finished([process.exitcode for process in self.ranks], out, err, time.monotonic() - self.start)


def run(script: str, *arguments: object, timeout: float = 150, **options: Any) -> Finished:
    """Run a script of the repository and wait for it, at most `timeout` seconds; see `started`."""
    with started(script, *arguments, **options) as running:
        return running.finish(timeout)


@contextlib.contextmanager
def started(
    script: str,
    *arguments: object,
    world: int = 0,
    zero: int = 0,
    pairs: Path | None = None,
    kill_at: int | None = None,
    break_at: int | None = None,
    hold: Hold | None = None,
    variables: dict[str, str] | None = None,
    machines: Sequence[dict[str, str]] | None = None,
    folder: Path = ROOT,
) -> Iterator[Running]:
    """Start a script of the repository; what still runs at the end is killed.

    Args:
        script: path below the root.
        arguments: its command line.
        world: processes; 0: one that no launcher started.
        zero: stage of DeepSpeed's ZeRO; 0: none.
        pairs: folder for the digests of all pairs that a training run sees.
        kill_at: position in the run at which every rank is killed, when its last checkpoint is written.
        break_at: position in the run at which the gradient, but not the loss, is not finite.
        hold: where the ranks wait for the test.
        variables: of the environment, on top of a launcher's.
        machines: of the environment of each rank, which is then the only one of its machine.
        folder: from which it is started, the repository's root or one that looks like it.

    """
    port, start = free_port(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        outputs = [Path(name) / str(rank) for rank in range(max(world, 1))]
        ranks = []
        for rank, output in enumerate(outputs):
            launched = _launched(rank, world, port, zero) if world else {}
            given = launched | (variables or {})
            given |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", **machines[rank]} if machines else {}
            arguments_ = (script, [str(a) for a in arguments], given, folder, output, pairs, kill_at, break_at, hold)
            ranks.append(_server.Process(target=_rank, args=arguments_))
        try:
            with mock.patch.dict(os.environ, WITHOUT_GPU):
                for process in ranks:
                    process.start()
            yield Running(ranks, outputs, start)
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
                    process.join()


def train(*settings: object, **options: Any) -> Finished:
    """Train a tiny network, see `run`."""
    return run("launch/train.py", *TINY, *settings, **options)


def training(*settings: object, **options: Any) -> contextlib.AbstractContextManager[Running]:
    """Start the training of a tiny network, see `started`."""
    return started("launch/train.py", *TINY, *settings, **options)


def accelerate_launch(
    backend: str, *arguments: object, timeout: float = 150, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `accelerate launch` with a file of `launch/backends`, in a process group that ends with it."""
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--config_file=launch/backends/{backend}.yaml"]
    command += [f"--main_process_port={free_port()}", *map(str, arguments)]
    pipe = subprocess.PIPE
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    environment = inherited | WITHOUT_GPU | (variables or {})
    options: dict[str, Any] = {"cwd": ROOT, "env": environment, "start_new_session": True}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def pairs_by_position(folder: Path) -> dict[int, tuple[str, ...]]:
    """Gather what the ranks recorded: position -> (sample, digest of the input, digest of the target)."""
    lines = [line.split() for file in folder.iterdir() for line in file.read_text().splitlines()]
    found = {int(position): tuple(rest) for position, *rest in lines}
    assert len(found) == len(lines), "a position was seen twice"
    return dict(sorted(found.items()))


def curves(run_dir: Path) -> dict[str, dict[int, float]]:
    """Read a run's curves as TensorBoard shows them: {name: {step: value}}."""
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


def signal_variables() -> dict[str, str]:
    """Return the variables that make the launcher pass signals on, as docs/operations.md gives them."""
    lines = (ROOT / "docs/operations.md").read_text().splitlines()
    line = next(line for line in lines if line.startswith("export PET_SIGNALS_TO_HANDLE="))
    return dict(setting.split("=") for setting in line.removeprefix("export ").split())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _launched(rank: int, world: int, port: int, zero: int) -> dict[str, str]:
    variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if zero:
        variables |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(zero)}
    return variables


def _rank(
    script: str,
    arguments: list[str],
    variables: dict[str, str],
    folder: Path,
    output: Path,
    pairs: Path | None,
    kill_at: int | None,
    break_at: int | None,
    hold: Hold | None,
) -> None:
    for number, suffix in ((1, ".out"), (2, ".err")):
        with output.with_suffix(suffix).open("w") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1, closefd=False), os.fdopen(2, "w", 1, closefd=False)
    multiprocessing.set_start_method("fork", force=True)  # for the loader's workers, as in a process of one's own
    os.chdir(folder)
    os.environ.update(variables)
    late = hold.seconds if hold is not None and hold.rank in (None, int(variables.get("RANK", "0"))) else 0.0
    if (pairs, kill_at, break_at, late) != (None, None, None, 0.0):
        _watch_steps(pairs, kill_at, break_at, late)
    if hold is not None:
        _wait_at(hold)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


class _Watched:
    """Batches that are shown to `look` when the step takes them."""

    def __init__(self, batches: Any, look: Callable[[Any], None]) -> None:
        self._batches = batches
        self._look = look

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._look(batch)
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)


def _watch_steps(folder: Path | None, kill_at: int | None, break_at: int | None, late: float) -> None:
    """Look at the batches of every step: note their pairs, die at one, make a gradient not finite, or take longer."""
    from n2n_dist import train
    from n2n_dist.pairs import noisy_pair

    make_step = train.train_step

    def train_step(nets: Any, optimizer: Any, batches: Any, config: Any, step: int, backend: Any) -> Any:
        hooks = []

        def look(batch: Any) -> None:
            time.sleep(late)
            if kill_at is not None and batch.positions.max() >= kill_at:
                _wait_for_checkpoint(config, step)
                os.kill(os.getpid(), signal.SIGKILL)
            if break_at is not None and break_at in batch.positions:
                parameter = next(nets.network.parameters())
                hooks.append(parameter.register_hook(lambda gradient: gradient * math.nan))
            if folder is not None:
                pair = noisy_pair(batch, config.noise, config.pairs, config.run.seed)
                _write_digests(folder, batch, pair.inputs, pair.targets)

        made = make_step(nets, optimizer, _Watched(batches, look), config, step, backend)
        for hook in hooks:
            hook.remove()
        return made

    train.train_step = train_step


def _wait_for_checkpoint(config: Any, steps: int) -> None:
    """Wait for the newest one that is due after so many steps: its thread may still write."""
    from n2n_dist.train import due_after

    newest = next((step for step in range(steps, 0, -1) if due_after(step, config).save), 0)
    end = time.monotonic() + 20
    while newest and not Path(config.run.dir, f"checkpoints/step-{newest:08d}").exists() and time.monotonic() < end:
        time.sleep(0.01)


def _write_digests(folder: Path, batch: Any, *sides: Any) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / str(os.getpid())).open("a") as file:
        for i, position in enumerate(batch.positions.tolist()):
            digests = [hashlib.sha256(side[i].numpy().tobytes()).hexdigest() for side in sides]
            print(position, batch.samples[i].item(), *digests, file=file)


def _wait_at(hold: Hold) -> None:
    """Let a function count its calls, and wait for the test in one of them."""
    module_name, _, name = SEAMS[hold.seam].rpartition(".")
    module = importlib.import_module(module_name)
    function, rank = getattr(module, name), int(os.environ.get("RANK", "0"))

    def waiting(*arguments: Any, **options: Any) -> Any:
        hold.folder.mkdir(parents=True, exist_ok=True)
        with (hold.folder / str(rank)).open("a") as file:
            file.write(".")
        held = hold.rank in (None, rank) and hold.calls(rank) == hold.call
        while held and not (hold.folder / "go").exists():
            time.sleep(0.01)
        return function(*arguments, **options)

    setattr(module, name, waiting)
