"""Cost of checkpoints: how long a save holds the training, and how much slower it is while a thread writes.

Every way to run is a launch of its own, which trains on one fixed batch and prints what it measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from n2n_dist.checkpoint import format
from n2n_dist.checkpoint.format import TrainState
from n2n_dist.checkpoint.manager import Checkpoints, CheckpointSettings
from n2n_dist.distributed.backend import Backend
from n2n_dist.distributed.batch import plan_batch
from n2n_dist.errors import UserError, run_command
from n2n_dist.models.resunet import ResUNet, ResUNetSettings
from n2n_dist.training.optim import OptimSettings, make_optimizer, update_ema

LAUNCHES = (("cpu", 1), ("cpu", 2), ("zero1", 2), ("zero2", 2))
"""Launch file and number of processes."""
NETWORKS = {
    "demo": ResUNetSettings(width=32, depths=[1, 1, 1]),
    "large": ResUNetSettings(width=152),
}
"""The network of configs/demo.yaml, and one of 99 M parameters."""
CROP = 64
STEPS = 5
"""Steps of one measurement without a save."""


def checkpoint(rounds: int) -> None:
    """Measure saves and loads of two networks on the CPU: alone, with DDP, ZeRO-1 and ZeRO-2, one thread a process."""
    for network in NETWORKS:
        for file, processes in LAUNCHES:
            with tempfile.TemporaryDirectory() as folder:
                command = ["accelerate", "launch", "--config_file", f"launch/backends/{file}.yaml"]
                command += ["--num_processes", str(processes), "--main_process_port", "0"]
                command += ["-m", "benchmarks.checkpoint", network, folder, "--rounds", str(rounds)]
                done = subprocess.run(
                    command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
                )
                if done.returncode:
                    raise UserError(f"accelerate launch of {file}.yaml failed:\n{done.stderr}")
            print(done.stdout[done.stdout.index("checkpoint: ") :], end="", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            start(network, Path(folder), rounds)


def start(name: str, folder: Path, rounds: int) -> None:
    """Time whole runs of one step, from the command to its end, new ones and continued ones in turns."""
    settings = NETWORKS[name]
    command = [sys.executable, "launch/train.py", "--config", "configs/demo.yaml", "data.validation=null"]
    command += ["data.batch=1", f"data.crop={CROP}", "data.workers=0", "loss.perceptual=0", "train.threads=1"]
    command += [f"model.width={settings.width}", f"model.depths={settings.depths}"]
    # by train.steps: the first step of a new run, and the second one, for which it is continued
    times: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for steps, seconds in times.items():
            run = [*command, f"run.dir={folder / str(number)}", f"train.steps={steps}"]
            begun = time.perf_counter()
            done = subprocess.run(run, capture_output=True, text=True, check=False)
            seconds.append(time.perf_counter() - begun)
            if done.returncode:
                raise UserError(f"launch/train.py failed:\n{done.stderr}")
        shutil.rmtree(folder / str(number))
    more = [continued - new for new, continued in zip(times[1], times[2], strict=True)]
    print(f"checkpoint: {name} network, runs of one step from start to end")
    print(f"  {'a new one takes':28} {_spread(times[1])}")
    print(f"  {'a continued one takes':28} {_spread(times[2])}")
    print(f"  {'that is, more':28} {_spread(more)}, wanted at most 2")


def measure(name: str, run_dir: Path, rounds: int) -> None:
    """Train, save and load in this launch, and print the figures on rank 0."""
    settings = NETWORKS[name]
    backend = Backend(plan_batch(int(os.environ.get("WORLD_SIZE", 1)), None), 1.0, None, threads=1)
    torch.manual_seed(0)
    network, ema = (ResUNet(settings, CROP) for _ in range(2))
    ema.requires_grad_(False)
    optimizer = make_optimizer(network, OptimSettings())
    images = torch.rand(1, 3, CROP, CROP)
    model, stepper = backend.wrap(network, optimizer, images)
    checkpoints = Checkpoints(run_dir, CheckpointSettings(), backend)
    identity = {f"model.{key}": value for key, value in asdict(settings).items()}
    identity |= {"data.crop": CROP, "pairs.name": "synthetic"}
    progress = TrainState(step=0, samples_seen=0, best=None, steps=1, data="", identity=identity)

    def step() -> None:
        with backend.accumulate(model):
            backend.backward((model(images) - 0.5).abs().mean())
        backend.step(network, stepper)
        update_ema(ema, network, 0.999, progress.step)
        progress.step += 1

    def save() -> None:
        checkpoints.save(network, ema, stepper, progress)

    kinds = ("step", "held", "beside", "blocking", "verify", "load", "digest")
    times: dict[str, list[float]] = {key: [] for key in kinds}
    step()  # warm
    save()  # takes its buffers
    checkpoints.finish()
    for _ in range(rounds):
        times["step"] += [_seconds(step) for _ in range(STEPS)]
        times["held"].append(_seconds(save))
        written = False
        while not written:  # the last step is partly beside it; all ranks must agree when to stop
            times["beside"].append(_seconds(step))
            written = all(backend.all_gather_or_raise(None, not checkpoints.busy))
        checkpoints.finish()
        progress.step += 1
        times["blocking"].append(_seconds(save) + _seconds(checkpoints.finish))
    for _ in range(rounds):
        start = time.perf_counter()
        found = checkpoints.newest(warn=print)
        times["verify"].append(time.perf_counter() - start)
        assert found
        path, there = found
        again = make_optimizer(network, OptimSettings())  # as before a start
        start = time.perf_counter()
        checkpoints.load(path, network, ema, again, there)
        times["load"].append(time.perf_counter() - start)
        file = next(path.glob(f"__{backend.rank}_*"))
        times["digest"].append(_seconds(lambda file=file: format.sha256(file)))  # type: ignore[misc]
    size = file.stat().st_size
    sizes = backend.all_gather_or_raise(None, (size, checkpoints.staged_bytes))
    if backend.is_main:
        parameters = sum(parameter.numel() for parameter in network.parameters())
        middle = {key: statistics.median(values) for key, values in times.items()}
        share = 16 * parameters / backend.world_size
        held, beside = middle["held"] / middle["step"], middle["beside"] / middle["step"]
        extra = middle["verify"] + middle["load"]
        way = f"{backend.name} x {backend.world_size}"
        print(f"checkpoint: {name} network, {parameters / 1e6:.1f} M parameters, {way}")
        for key, what, result in (
            ("step", "a step takes", ""),
            ("held", "a save holds the loop for", f": {held:.2f} steps, wanted 1"),
            ("beside", "a step beside its writing", f": {beside:.2f} x a step"),
            ("blocking", "a save that is waited for", ""),
            ("verify", "a continuation verifies in", ""),
            ("load", "and loads in", f": together {extra:.2f} s, where a new run draws its weights"),
            ("digest", "a digest of one rank's file", f": {size / middle['digest'] / 1e9:.2f} GB/s, wanted 1"),
        ):
            print(f"  {what:28} {_spread(times[key])}{result}")
        for rank, (written_bytes, staged_bytes) in enumerate(sizes):
            print(
                f"  rank {rank} writes {written_bytes / 1e6:.1f} MB, {written_bytes / share:.3f} of an even share, "
                f"and stages {staged_bytes / 1e6:.1f} MB"
            )
    backend.close()


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):7.3f} s (median of {len(values)}, {min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Parse the command line of one launch and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    measure(arguments.network, arguments.run_dir, arguments.rounds)


if __name__ == "__main__":
    run_command(main)
