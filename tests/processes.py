"""Run the project's scripts in one or several processes.

A fork server imports torch and the package once, so that a rank starts at once instead of after ten seconds. Every rank
is a process of its own that runs the real script, with the variables that `accelerate launch` would give it.
"""

import hashlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[1]
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
    ["n2n_dist.config", "n2n_dist.data.build", "n2n_dist.inference.files", "n2n_dist.inference.evaluate"]
)


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


def run(
    script: str,
    *arguments: object,
    world: int = 0,
    zero: int = 0,
    pairs: Path | None = None,
    kill_at: int | None = None,
    variables: dict[str, str] | None = None,
    timeout: float = 150,
) -> Finished:
    """Run a script of the repository, from its root, and wait for it.

    Args:
        script: path below the root.
        arguments: its command line.
        world: processes; 0: one that no launcher started.
        zero: stage of DeepSpeed's ZeRO; 0: none.
        pairs: folder for the digests of all pairs that a training run sees.
        kill_at: position in the run at which every rank is killed.
        variables: of the environment, on top of a launcher's.
        timeout: seconds after which the ranks are killed and the test fails.

    """
    port, start = free_port(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(rank) for rank in range(max(world, 1))]
        ranks = []
        for rank, output in enumerate(outputs):
            launched = _launched(rank, world, port, zero) if world else {}
            given = launched | (variables or {})
            arguments_ = (script, [str(a) for a in arguments], given, output, pairs, kill_at)
            ranks.append(_server.Process(target=_rank, args=arguments_))
        try:
            with mock.patch.dict(os.environ, WITHOUT_GPU):
                for process in ranks:
                    process.start()
            for process in ranks:
                process.join(max(0.0, timeout - (time.monotonic() - start)))
            late = [rank for rank, process in enumerate(ranks) if process.is_alive()]
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
                    process.join()
        out, err = ([output.with_suffix(s).read_text() for output in outputs] for s in (".out", ".err"))
    assert not late, f"ranks {late} still ran after {timeout} s\n" + "\n".join(out + err)
    return Finished([process.exitcode for process in ranks], out, err, time.monotonic() - start)


def train(*settings: object, **options: Any) -> Finished:
    """Train a tiny network, see `run`."""
    return run("launch/train.py", *TINY, *settings, **options)


def accelerate_launch(backend: str, *arguments: object, timeout: float = 150) -> subprocess.CompletedProcess[str]:
    """Run `accelerate launch` with a file of `launch/backends`, in a process group that ends with it."""
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--config_file=launch/backends/{backend}.yaml"]
    command += [f"--main_process_port={free_port()}", *map(str, arguments)]
    pipe = subprocess.PIPE
    options: dict[str, Any] = {"cwd": ROOT, "env": os.environ | WITHOUT_GPU, "start_new_session": True}
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
    script: str, arguments: list[str], variables: dict[str, str], output: Path, pairs: Path | None, kill_at: int | None
) -> None:
    for number, suffix in ((1, ".out"), (2, ".err")):
        with output.with_suffix(suffix).open("w") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1, closefd=False), os.fdopen(2, "w", 1, closefd=False)
    multiprocessing.set_start_method("fork", force=True)  # for the loader's workers, as in a process of one's own
    os.chdir(ROOT)
    os.environ.update(variables)
    if pairs is not None or kill_at is not None:
        _watch_pairs(pairs, kill_at)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def _watch_pairs(folder: Path | None, kill_at: int | None) -> None:
    """Look over the loop's shoulder: note every pair that it makes, or die at one."""
    from n2n_dist.training import loop

    make = loop.noisy_pair

    def noisy_pair(batch: Any, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = make(batch, *arguments)
        if kill_at is not None and batch.positions.max() >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if folder is not None:
            folder.mkdir(exist_ok=True)
            with (folder / str(os.getpid())).open("a") as file:
                for i, position in enumerate(batch.positions.tolist()):
                    digests = [hashlib.sha256(pair[i].numpy().tobytes()).hexdigest() for pair in (inputs, targets)]
                    print(position, batch.samples[i].item(), *digests, file=file)
        return inputs, targets

    loop.noisy_pair = noisy_pair
