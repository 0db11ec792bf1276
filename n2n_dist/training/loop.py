"""The training run, from the configuration to the trained weights, in one function that reads top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from n2n_dist.data.dataset import RankOrder, is_tolerated, open_data
from n2n_dist.data.loader import make_loader
from n2n_dist.data.prefetch import Prefetcher
from n2n_dist.data.remote import Unavailable
from n2n_dist.devices import autocast
from n2n_dist.errors import Refusal, write_error_file
from n2n_dist.model.resunet import ResUNet
from n2n_dist.model.weights import BEST, LAST, load_model, save_model
from n2n_dist.objective import losses, noisy_pair
from n2n_dist.training import report
from n2n_dist.training.backend import Backend, plan_batch
from n2n_dist.training.checkpoint import Checkpoints, Progress, describe_differences
from n2n_dist.training.optim import learning_rate, make_optimizer, update_ema
from n2n_dist.training.precision import arrange, autocast_type, memory_format
from n2n_dist.training.tracking import Tracker, Window, memory_bytes
from n2n_dist.training.validation import Validation, mean_psnr

if TYPE_CHECKING:
    from n2n_dist.config import Config

DRY_RUN_STEPS = 4
AGREE_EVERY = 20
"""Most steps that other ranks go on after one has lost its data."""


@dataclass
class RunSettings:
    """Where the run lives and how it starts."""

    dir: str = "runs/default"
    """Folder of the run: configuration, checkpoints, curves, weights. The same command continues it."""
    seed: int = 0
    """Chooses the initial weights, the order of samples, the crops and the noise."""
    init: str | None = None
    """Weights to start from: a .safetensors file or another run's folder."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise Refusal(f"run.seed {self.seed}: must be 0 or more and below 2**63")


def train(config: Config, dry_run: bool = False) -> None:
    """Train a denoiser, or continue the run in `run.dir`.

    Args:
        config: the run's settings.
        dry_run: print the plan with the measured time of a step, write nothing, and stop.

    Raises:
        Refusal: data, settings or checkpoint cannot be worked with; also left in RUN/error.txt.

    """
    run_dir = Path(config.run.dir)
    try:
        _train(config, run_dir, dry_run)
    except Exception as error:
        if not dry_run:
            write_error_file(run_dir, error)
        raise


def _train(config: Config, run_dir: Path, dry_run: bool) -> None:
    # processes, data and batch arithmetic: refused before anything large is allocated
    plan = plan_batch(config.data.batch, config.train.micro_batch)
    dtype = autocast_type(config.train.precision)
    backend = Backend(plan, config.optim.clip, dtype, config.train.threads)
    channels, crops = config.model.channels, config.pairs.crops
    index, order, dataset = backend.on_all(
        lambda: open_data(config.data, config.run.seed, channels, crops, backend.machine_slots)
    )

    # networks, validation, optimiser
    torch.manual_seed(config.run.seed)
    network = ResUNet(config.model, config.data.crop).to(backend.device)
    ema = ResUNet(config.model, config.data.crop).to(backend.device).to(memory_format=memory_format(config.train))
    ema.eval().requires_grad_(False)
    features = config.loss.extractor(channels)
    features = features.to(backend.device) if features is not None else None
    arrange(network, features, config.train, backend)
    sets, source = config.validation_sets(), config.pairs.source
    validation = backend.on_all(
        lambda: Validation(sets, config.noise, source, config.validate, channels, backend.device, config.data)
    )
    optimizer = make_optimizer(network, config.optim)

    # continue where the newest good checkpoint stands
    progress = Progress(
        step=0, samples_seen=0, best=None, steps=config.train.steps, data=index.fingerprint, identity=config.identity()
    )
    checkpoints = Checkpoints(run_dir / "checkpoints", config.checkpoint, backend)
    found = None
    if not dry_run:
        backend.on_main(lambda: config.check_run_dir(run_dir))
        found = checkpoints.newest(warn=print)
        backend.on_main(lambda: _check_continuation(run_dir, backend, found, progress))
    if found:
        path, progress = found
        checkpoints.load(path, network, ema, optimizer)
        if progress.best_step == progress.step:  # the run may have ended between the checkpoint and its best weights
            backend.on_main(lambda: save_model(run_dir / BEST, ema))
    else:
        if config.run.init:
            _start_from(network, config.run.init)
        ema.load_state_dict(network.state_dict())
    example = torch.zeros(plan.micro_batch, channels, config.data.crop, config.data.crop)
    example = example.to(backend.device, memory_format=memory_format(config.train))
    model, stepper = backend.wrap(network, optimizer, example)
    places = RankOrder(order, progress.samples_seen, backend.rank, backend.world_size, plan.micro_batch)
    loader = make_loader(dataset, places, config.data.workers, backend.device)
    prefetcher = Prefetcher(index, order, progress.samples_seen, backend.machine_slots)
    if index.remote and backend.local_rank == 0 and not dry_run:
        prefetcher.start()  # after the loader: its workers are forked, and a fork should copy no lock that is held
    gone: list[Refusal] = []
    """Why this rank's crops are zeros; the other ranks do not know yet."""

    def optimise(step: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, float, list[Refusal]]:
        """Make one step: parts of the loss, gradient norm, seconds spent waiting for data, replaced samples."""
        for group in stepper.param_groups:
            group["lr"] = learning_rate(config.optim, step, config.train.steps)
        parts: dict[str, torch.Tensor] = {}
        waited, bad = 0.0, []
        for _ in range(plan.accumulation):
            start = time.perf_counter()
            batch = next(loader)
            waited += time.perf_counter() - start
            bad += batch.bad
            gone.extend(message for message in batch.bad if isinstance(message, Unavailable))
            inputs, targets = noisy_pair(batch, config.noise, config.pairs, config.run.seed)
            inputs = inputs.contiguous(memory_format=memory_format(config.train))
            with backend.accumulate(model):
                with autocast(backend.device, dtype):
                    terms = losses(model, features, config.loss, inputs, targets)
                backend.backward(terms["total"])
            for name, value in terms.items():
                parts[name] = parts.get(name, 0) + value.detach() / plan.accumulation
        gradient_norm = backend.step(network, stepper)
        update_ema(ema, network, config.optim.ema, step)
        return parts, gradient_norm, waited, bad

    if dry_run:
        times = [_timed(optimise, step) for step in range(DRY_RUN_STEPS)]
        backend.agree(next(iter(gone), None))
        if backend.main:
            print(report.plan(config, backend, dtype, index, order, network, seconds_per_step=min(times[1:])))
        backend.close()
        return

    backend.on_main(lambda: config.write(run_dir))
    tracker = Tracker(run_dir, progress.step, config.train.steps, backend.main)
    tracker.text("configuration", config.to_yaml())
    tracker.say(report.start(config, backend, dtype, index, order, network))
    if found:
        tracker.say(report.continuing(progress, config.train.steps))
        progress.steps = config.train.steps
    if backend.zero:
        tracker.say(f"{backend.name}: writes its weights, but no checkpoint: this run cannot be continued")
    saved_at = time.monotonic()
    window = Window()

    for step in range(progress.step, config.train.steps):
        parts, gradient_norm, waited, bad = optimise(step)
        progress.step, progress.samples_seen = step + 1, progress.samples_seen + plan.batch
        window.add(parts, gradient_norm, waited, len(bad))
        tracker.bar.update()
        prefetcher.reached = progress.samples_seen
        for message in bad if not gone else []:
            print(f"replaced an unreadable sample: {message}", flush=True)

        last = progress.step == config.train.steps
        validating = bool(validation.sets) and (last or progress.step % config.validate.every == 0)
        saving = last or validating or progress.step % config.checkpoint.every == 0
        logging = saving or progress.step % config.train.log_every == 0
        if logging or progress.step % AGREE_EVERY == 0:
            backend.agree(next(iter(gone), None))  # before anything is logged or saved
        if logging:
            # one vector holds all that the ranks must agree on, rank 0's clock too
            means = window.means()
            minutes = (time.monotonic() - saved_at) / 60 if backend.main else 0.0
            measured = torch.tensor([window.waited / window.seconds(), window.bad_samples, minutes]).double()
            *sums, waiting, bad_samples, minutes = backend.sum(torch.cat([means, measured])).tolist()
            saving = saving or minutes > config.checkpoint.minutes
            progress.bad_samples += int(bad_samples)
            logged = {f"train/{name}": value / backend.world_size for name, value in zip(parts, sums, strict=True)}
            logged["train/gradient_norm"] = window.gradient_norm.item()
            logged["train/learning_rate"] = learning_rate(config.optim, step, config.train.steps)
            logged["speed/images_per_second"] = window.steps * plan.batch / window.seconds()
            logged["speed/waiting_for_data"] = waiting / backend.world_size
            logged["memory/peak_gib"] = memory_bytes(backend.device) / 2**30
            tracker.point(progress.step, logged)
            _check_finite(logged, progress)
            _check_damage(progress, config.data.max_bad)

            improved = False
            if validating:
                scores, strips = validation.run(ema, backend)
                tracker.scalars(progress.step, {f"validation/{name}": value for name, value in scores.items()})
                tracker.strips(progress.step, strips)
                tracker.say(report.scores(progress.step, scores))
                improved = progress.best is None or mean_psnr(scores) > progress.best
                if improved:
                    progress.best, progress.best_step = mean_psnr(scores), progress.step
            if saving and not backend.zero:
                checkpoints.save(network, ema, optimizer, progress)
                saved_at = time.monotonic()
            if improved:
                backend.on_main(lambda: save_model(run_dir / BEST, ema))
            window = Window()

    prefetcher.stopped.set()
    backend.on_main(lambda: save_model(run_dir / LAST, ema))
    tracker.close()
    if backend.main:
        print(report.end(run_dir, progress, validation))
    backend.close()


def _check_continuation(run_dir: Path, backend: Backend, found: tuple[Path, Progress] | None, wanted: Progress) -> None:
    """Refuse to write over weights, and to continue a run as another one."""
    if backend.zero or not found:
        held = [name for name in (BEST, LAST) if (run_dir / name).exists()] + (["a checkpoint"] if found else [])
        if held:
            why = f"{backend.name} cannot continue it yet" if found else "it has no checkpoint"
            raise Refusal(
                f"run.dir {run_dir}: holds a run with {held[0]}, and {why}; choose another run.dir "
                f"(run.init={run_dir} starts from its weights)"
            )
        return
    path, progress = found
    if progress.data != wanted.data:
        raise Refusal(f"data.shards: {path} was trained on other samples; use the same shards, or a new run.dir")
    if differences := describe_differences(progress.identity, wanted.identity):
        raise Refusal(f"{path}: is of another run: {differences}. Choose another run.dir")
    if wanted.steps < progress.step:
        raise Refusal(f"train.steps {wanted.steps}: the run in {run_dir} has made {progress.step} already; give more")


def _start_from(network: ResUNet, weights: str) -> None:
    try:
        network.load_state_dict(load_model(weights).state_dict())
    except RuntimeError as error:
        raise Refusal(
            f"run.init {weights}: weights of another network ({error}); give the model.* settings it was trained with"
        ) from None


def _timed(optimise: Callable[[int], object], step: int) -> float:
    start = time.perf_counter()
    optimise(step)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _check_finite(logged: dict[str, float], progress: Progress) -> None:
    """Stop all ranks at the same step; nothing that is not finite has been saved."""
    broken = [name for name, value in logged.items() if not math.isfinite(value)]
    if broken:
        raise Refusal(
            f"step {progress.step}: {', '.join(broken)} is not finite; the last checkpoint is good. "
            "Lower optim.lr, set optim.clip, or look for broken values in the data"
        )


def _check_damage(progress: Progress, limit: float) -> None:
    """Stop all ranks past the tolerated share."""
    bad = progress.bad_samples
    if not is_tolerated(bad, progress.samples_seen, limit):
        raise Refusal(
            f"data.max_bad {limit:g}: {bad} of {progress.samples_seen} samples cannot be read, named above; check "
            "the shards with: python shards/build.py verify FOLDER"
        )
