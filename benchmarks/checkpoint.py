"""Cost of checkpoints: how long a save holds the training, and how much slower it is while a thread writes.

Every way to run is a launch of its own, which trains on one fixed batch and writes figures.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.figures import ROOT, Figure
from n2n_dist.checkpoint.format import TrainState
from n2n_dist.checkpoint.manager import Checkpoints, CheckpointSettings
from n2n_dist.config import load
from n2n_dist.distributed.backend import Backend
from n2n_dist.distributed.batch import plan_batch
from n2n_dist.errors import UserError, run_command
from n2n_dist.files import sha256
from n2n_dist.models import MODELS
from n2n_dist.models.network import NetworkSettings
from n2n_dist.training.optim import OptimSettings, make_optimizer, update_ema

LAUNCHES = (("cpu", 1), ("cpu", 2), ("zero1", 2), ("zero2", 2))
"""Launch file and number of processes."""
NETWORKS: dict[str, tuple[str, ...]] = {
    "network of the configuration": (),
    "network of 99 M parameters": ("model.width=152", "model.depths=[2,2,2,2]"),
}
"""Settings over those of the configuration."""
FIGURES = "figures.json"
CROP = 64
STEPS = 5
"""Steps of one measurement without a save."""


def checkpoint(source: str, settings: Sequence[str], rounds: int) -> Iterator[Figure]:
    """Measure saves and loads of two networks on the CPU: alone, with DDP, ZeRO-1 and ZeRO-2, one thread a process."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    for network, its_settings in NETWORKS.items():
        given = [*settings, *its_settings]
        for file, processes in LAUNCHES:
            with tempfile.TemporaryDirectory() as folder:
                command = ["accelerate", "launch", "--config_file", str(ROOT / f"launch/backends/{file}.yaml")]
                command += [
                    "--num_processes",
                    str(processes),
                    "--main_process_port",
                    "0",
                    "-m",
                    "benchmarks.checkpoint",
                ]
                command += [folder, "--rounds", str(rounds), "--config", source, *given]
                done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
                if done.returncode:
                    raise UserError(f"accelerate launch of {file}.yaml failed:\n{done.stderr}")
                for figure in json.loads((Path(folder) / FIGURES).read_text()):
                    yield Figure(f"{network}, {file} x {processes}, {figure.pop('name')}", **figure)
        with tempfile.TemporaryDirectory() as folder:
            for figure in start(source, given, Path(folder), rounds):
                yield replace(figure, name=f"{network}, {figure.name}")


def start(source: str, settings: Sequence[str], folder: Path, rounds: int) -> list[Figure]:
    """Time whole runs of one step, from the command to its end, new ones and continued ones in turns."""
    command = [sys.executable, str(ROOT / "launch/train.py"), "--config", source, "data.validation=null", *settings]
    command += ["data.batch=1", f"data.crop={CROP}", "data.workers=0", "loss.perceptual=0", "train.threads=1"]
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
    return [
        Figure("a new run of one step", times[1], "s"),
        Figure("a continued run of one step", times[2], "s"),
        Figure("that is, more", more, "s", "wanted at most 2"),
    ]


def measure(settings: NetworkSettings, run_dir: Path, rounds: int) -> None:
    """Train, save and load in this launch, and write the figures on rank 0."""
    backend = Backend(plan_batch(int(os.environ.get("WORLD_SIZE", 1)), None), 1.0, None, threads=1)
    torch.manual_seed(0)
    network, ema = (MODELS[settings.name](settings, CROP) for _ in range(2))
    ema.requires_grad_(False)
    optimizer = make_optimizer(network, OptimSettings())
    images = torch.rand(1, settings.channels, CROP, CROP)
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
        file = next(path.glob(f"rank-{backend.rank:04d}.*"))
        times["digest"].append(_seconds(lambda file=file: sha256(file)))  # type: ignore[misc]
    size = file.stat().st_size
    sizes = backend.all_gather_or_raise(None, (size, checkpoints.staged_bytes))
    if backend.is_main:
        even_share = 16 * sum(parameter.numel() for parameter in network.parameters()) / backend.world_size
        figures = [asdict(figure) for figure in _figures(times, sizes, even_share)]
        (run_dir / FIGURES).write_text(json.dumps(figures))
    backend.close()


def _figures(times: dict[str, list[float]], sizes: Sequence[tuple[int, int]], even_share: float) -> list[Figure]:
    step, gigabytes = statistics.median(times["step"]), sizes[0][0] / 1e9
    figures = [
        Figure("a step", times["step"], "s"),
        Figure("a save holds the loop for", [seconds / step for seconds in times["held"]], "steps", "wanted 1"),
        Figure("a step beside its writing", [seconds / step for seconds in times["beside"]], "steps"),
        Figure("a save that is waited for", times["blocking"], "s"),
        Figure("a continuation verifies in", times["verify"], "s"),
        Figure("a continuation loads in", times["load"], "s"),
        Figure("digest of a file of one rank", [gigabytes / s for s in times["digest"]], "GB/s", "wanted 1"),
    ]
    for rank, (written_bytes, staged_bytes) in enumerate(sizes):
        note = f"{written_bytes / even_share:.3f} of an even share"
        figures.append(Figure(f"written by rank {rank}", [written_bytes / 1e6], "MB", note))
        figures.append(Figure(f"staged by rank {rank}", [staged_bytes / 1e6], "MB"))
    return figures


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    """Parse the command line of one launch and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--config", default="demo")
    parser.add_argument("settings", nargs="*")
    arguments = parser.parse_intermixed_args()
    measure(load(arguments.config, arguments.settings).model, arguments.run_dir, arguments.rounds)


if __name__ == "__main__":
    run_command(main)
