"""Texts of a run on the terminal: its plan, start, scores and end."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from n2n_dist import signals
from n2n_dist.checkpoint.format import TrainState
from n2n_dist.commands import command
from n2n_dist.config import Config
from n2n_dist.data.order import Order
from n2n_dist.devices import peak_memory_bytes
from n2n_dist.distributed.backend import Backend
from n2n_dist.estimand import expectation
from n2n_dist.models.weights import find_weights
from n2n_dist.shards.index import Index
from n2n_dist.training.curves import duration


def start(
    config: Config,
    backend: Backend,
    index: Index,
    order: Order,
    network: nn.Module,
) -> str:
    """Describe processes, batch, data, network and estimand, with warnings where that is not the clean image."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    precision = "fp32" if backend.dtype is None else "bf16 autocast"
    targets = " (clean targets)" if config.pairs.supervised else ""
    noise = "of the images, which are taken as they are" if config.noise.name == "none" else config.noise.name
    if not config.pairs.adds_noise:
        noise = "of the captures"
        if config.validation_sets():
            noise += "; PSNR is estimated from two of them (uPSNR), unless the shards hold clean references"
    shards, epoch = len(index.shards), order.batches_per_epoch
    learned, warnings = expectation(config.noise, config.pairs, config.loss)
    perceptual = f" + {config.loss.perceptual:g} * VGG-16" if config.loss.perceptual else ""
    if perceptual and config.loss.form != "plain":
        perceptual += f" ({config.loss.form})"
    return "\n".join(
        [
            f"world    {backend.name}: {backend.world_size} process(es) on {_machines(backend)}, {precision}",
            f"batch    {backend.plan}, {config.data.crop} x {config.data.crop} pixels",
            f"data     {len(index):,} samples in {shards:,} shards, {epoch:,} steps an epoch",
            f"noise    {noise}, pairs {config.pairs.name}{targets}",
            f"network  ResUNet of {parameters / 1e6:.2f} M parameters, loss {config.loss.pixel}{perceptual}",
            f"learns   {learned}",
            f"run      {config.run.dir}; watch it with: tensorboard --logdir {Path(config.run.dir).parent}",
            *(f"warning: {warning}" for warning in warnings),
        ]
    )


def plan(
    config: Config,
    backend: Backend,
    index: Index,
    order: Order,
    network: nn.Module,
    seconds_per_step: float,
) -> str:
    """Describe the run, with the memory and time of the steps that were tried."""
    return "\n".join(
        [
            start(config, backend, index, order, network),
            f"memory   {peak_memory_bytes(backend.device) / 2**30:.2f} GiB at most on rank 0",
            f"time     {seconds_per_step:.3f} s a step, {duration(seconds_per_step * order.batches_per_epoch)} an "
            f"epoch, {duration(seconds_per_step * config.train.steps)} for {config.train.steps:,} steps without "
            "validation",
            "dry run: nothing was written",
        ]
    )


def continuing(progress: TrainState, steps: int) -> str:
    """Describe a continuation, and the effect of another number of steps."""
    text = f"continuing after step {progress.step:,} of {steps:,}"
    if progress.steps != steps:
        text += f"\ntrain.steps was {progress.steps:,}: the cosine of the learning rate now ends at step {steps:,}"
    return text


def scores(step: int, values: dict[str, float]) -> str:
    """Format a validation on one line; a uPSNR that is only a bound is written with `>=`."""
    bounds = {name for name in values if values.get(f"{name}_low") == values[name] < values[f"{name}_high"]}
    return f"step {step:,}: " + ", ".join(
        f"{name} {'>= ' if name in bounds else ''}{value:.4g}" for name, value in values.items()
    )


def end(run_dir: Path, progress: TrainState, validated: bool) -> str:
    """Describe the result and the next command."""
    best = f", best validation score {progress.best:.2f} dB" if progress.best is not None else ""
    return "\n".join(
        [
            f"done: {progress.step:,} steps, {progress.samples_seen:,} samples{best}",
            f"weights: {find_weights(run_dir)}" + (f", pictures: {run_dir / 'samples'}" if validated else ""),
            f"next: {command('denoise', '--run', run_dir, 'NOISY_FOLDER', 'DENOISED_FOLDER')}",
        ]
    )


def stopped(progress: TrainState, received: tuple[str, float]) -> str:
    """Describe a stop by a signal, given its name and the seconds since then."""
    name, seconds = received
    done = f"saved after step {progress.step:,}" if progress.step else "before the first step, nothing to save"
    return (
        f"stopped by {name}: {done}, {seconds:.1f} s after the signal; "
        f"a grace period of {signals.GRACE_SECONDS} s leaves {signals.GRACE_SECONDS - seconds:.1f} s; "
        "the same command continues"
    )


def _machines(backend: Backend) -> str:
    """List the machines and their kind of device."""
    device = torch.cuda.get_device_name(backend.device) if backend.device.type == "cuda" else "cpu"
    hosts = list(dict.fromkeys(backend.hosts))
    named = ", ".join(hosts[:8]) + (f" and {len(hosts) - 8} more" if len(hosts) > 8 else "")
    return f"{named if len(hosts) == 1 else f'{len(hosts)} machines ({named})'}, {device}"
