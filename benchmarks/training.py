"""Cost of the training loop, of more ranks, number formats and large images."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.figures import ROOT, Figure
from n2n_dist.config import load
from n2n_dist.devices import autocast, set_threads, use_gpu
from n2n_dist.errors import UserError
from n2n_dist.images.image import write_image
from n2n_dist.models import MODELS
from n2n_dist.models.network import NetworkSettings
from n2n_dist.models.weights import save_model
from n2n_dist.objective import LossSettings, loss_terms
from n2n_dist.pairs import Pair
from n2n_dist.train import train
from n2n_dist.training.optim import OptimSettings, make_optimizer
from n2n_dist.training.precision import TrainSettings, autocast_type, compile_blocks, memory_format

STEPS = 20
"""Steps of one measurement."""


def loop(source: str, settings: Sequence[str], rounds: int) -> Iterator[Figure]:
    """Compare the training loop with a bare forward, backward and optimiser step on a fixed batch."""
    config = load(source, ["data.validation=null", *settings])
    set_threads(config.train.threads)
    bare = _Bare(config.model, config.loss, config.data.crop, config.data.batch, config.train)
    ratios, waits = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            arguments = [f"run.dir={folder}", f"train.steps={2 * STEPS}", f"train.log_every={STEPS}"]
            before = _seconds(bare.step, STEPS)
            train(load(source, ["data.validation=null", *settings, *arguments]))
            after = _seconds(bare.step, STEPS)
            curves = _curves(Path(folder))
            looped = config.data.batch / curves["speed/images_per_second"]
            ratios.append(looped / ((before + after) / 2))
            waits.append(curves["speed/waiting_for_data"])
    yield Figure("time of a step / bare step", ratios)
    yield Figure("share of time waiting for data", waits)


def scaling(source: str, settings: Sequence[str], rounds: int) -> Iterator[Figure]:
    """Weak scaling of DDP on this machine: images a second of 2 ranks over twice those of 1 rank, one thread each."""
    ratios = []
    for _ in range(rounds):
        one = _launched(source, 1, ["data.batch=8", *settings])
        two = _launched(source, 2, ["data.batch=16", *settings])
        again = _launched(source, 1, ["data.batch=8", *settings])
        ratios.append(two / (one + again))
    yield Figure("2 ranks / (2 x 1 rank)", ratios)


def precision(source: str, settings: Sequence[str], rounds: int) -> Iterator[Figure]:
    """Time a training step with each of bf16, channels_last and compile on and off, against all off."""
    config = load(source, settings)
    set_threads()
    combinations = list(itertools.product(("fp32", "bf16"), (False, True), ("off", "on")))
    times: dict[tuple[str, bool, str], list[float]] = {key: [] for key in combinations}
    for _ in range(rounds):
        for key in combinations:
            number_format, channels_last, compiled = key
            chosen = TrainSettings(precision=number_format, channels_last=channels_last, compile=compiled)
            torch.compiler.reset()  # the graphs of all combinations together are more than dynamo keeps
            bare = _Bare(config.model, config.loss, config.data.crop, config.data.batch, chosen)
            bare.step()
            times[key].append(_seconds(bare.step, 2))
    reference = times["fp32", False, "off"]
    for (number_format, channels_last, compiled), seconds in times.items():
        layout = "channels_last" if channels_last else "contiguous"
        name = f"{number_format} {layout} compile {compiled}"
        yield Figure(f"{name}, a step", seconds, "s")
        ratios = [a / b for a, b in zip(reference, seconds, strict=True)]
        yield Figure(f"{name}, speed / fp32 contiguous compile off", ratios)


def denoise(source: str, settings: Sequence[str], megapixels: float) -> Iterator[Figure]:
    """Peak memory and time of denoising one large 8-bit RGB image, file to file, in a process of its own."""
    model = load(source, settings).model
    side = round((megapixels * 1e6) ** 0.5)
    with tempfile.TemporaryDirectory() as folder:
        weights, noisy, target = (Path(folder) / name for name in ("last.safetensors", "noisy.png", "denoised.png"))
        network = MODELS[model.name](model, 128)
        save_model(weights, network)
        write_image(noisy, np.random.default_rng(0).integers(0, 256, (side, side, model.channels), np.uint8))
        start = time.perf_counter()
        command = [sys.executable, str(ROOT / "launch/denoise.py"), "--run", str(weights), str(noisy), str(target)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        if process.returncode:
            raise UserError(f"launch/denoise.py ended with {process.returncode}; its message is above")
    peak = usage.ru_maxrss / 2**20
    name = f"{megapixels:g} megapixels, {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters"
    yield Figure(f"{name}, memory", [peak], "GiB", "at most")
    yield Figure(f"{name}, time", [seconds], "s")


class _Bare:
    """A network, its loss and one fixed batch: what a step costs with nothing around it."""

    def __init__(
        self, model: NetworkSettings, loss: LossSettings, crop: int, batch: int, settings: TrainSettings
    ) -> None:
        self.device = torch.device("cuda" if use_gpu() else "cpu")
        layout = memory_format(settings)
        self.network = MODELS[model.name](model, crop).to(self.device).to(memory_format=layout)
        features = loss.extractor(model.channels)
        self.features = None if features is None else features.to(self.device).to(memory_format=layout)
        compile_blocks(self.network, self.features, settings, self.device)
        self.loss = loss
        self.dtype = autocast_type(settings.precision)
        self.optimizer = make_optimizer(self.network, OptimSettings())
        shape = (batch, model.channels, crop, crop)
        inputs = torch.rand(shape, device=self.device).contiguous(memory_format=layout)
        self.pair = Pair(inputs, torch.rand(shape, device=self.device))

    def step(self) -> None:
        with autocast(self.device, self.dtype):
            parts = loss_terms(self.network, self.features, self.loss, self.pair)
        parts["total"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _seconds(action: Callable[[], None], repetitions: int) -> float:
    start = time.perf_counter()
    for _ in range(repetitions):
        action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repetitions


def _launched(source: str, processes: int, settings: Sequence[str]) -> float:
    """Train for two windows in a launch of its own; return the images a second of the second one."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["accelerate", "launch", "--config_file", str(ROOT / "launch/backends/cpu.yaml")]
        command += ["--num_processes", str(processes), "--main_process_port", "0", str(ROOT / "launch/train.py")]
        command += ["--config", source, f"run.dir={folder}", "data.validation=null", "train.threads=1"]
        command += ["data.workers=0", f"train.steps={2 * STEPS}", f"train.log_every={STEPS}", *settings]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return _curves(Path(folder))["speed/images_per_second"]


def _curves(run_dir: Path) -> dict[str, float]:
    """Return the last value of each curve of a run."""
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"]}
