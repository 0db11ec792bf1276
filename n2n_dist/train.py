"""The training run, from the configuration to the trained weights, in one function that reads top to bottom."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path

import torch

from n2n_dist import report, signals
from n2n_dist.checkpoint.format import TrainState, describe_differences
from n2n_dist.checkpoint.manager import Checkpoints
from n2n_dist.checkpoint.run_folder import RunLock
from n2n_dist.config import Config, RunSettings
from n2n_dist.data.dataset import RankOrder, open_data
from n2n_dist.data.loader import make_loader
from n2n_dist.data.prefetch import Prefetcher
from n2n_dist.devices import autocast
from n2n_dist.distributed.backend import Backend
from n2n_dist.distributed.batch import plan_batch
from n2n_dist.distributed.watchdog import Watchdog, peer_lost
from n2n_dist.errors import UserError, write_error_file
from n2n_dist.models.resunet import ResUNet
from n2n_dist.models.weights import LAST, load_model, save_model
from n2n_dist.objective import images_to_read, losses
from n2n_dist.pairs import noisy_pair
from n2n_dist.shards.cache import SourceUnavailableError
from n2n_dist.training.checks import check_continuation, check_damage, check_finite, check_machines
from n2n_dist.training.curves import OwnTime, Stragglers, Tracker, Window, memory_bytes
from n2n_dist.training.optim import learning_rate, make_optimizer, update_ema
from n2n_dist.training.precision import autocast_type, memory_format, prepare_models
from n2n_dist.training.validation import Validation, selection_score

DRY_RUN_STEPS = 4
AGREE_EVERY = 20
"""Most steps that other ranks go on after one has lost its data or got a signal."""
AGREE_SECONDS = 2.0
"""Seconds after which they agree where steps are slow; the slowest rank's time of a step counts."""


def train(config: Config, dry_run: bool = False) -> None:
    """Train a denoiser, or continue the run in `run.dir`.

    A signal (see `interrupt`) to any rank ends the step, or a validation, and saves; RUN/PREEMPTED then says that the
    same command continues the run.

    Args:
        config: the run's settings.
        dry_run: print the plan with the measured time of a step, write nothing, and stop.

    Raises:
        UserError: data, settings or checkpoint cannot be worked with; also left in RUN/error.txt.
        StorageError: the last checkpoint or the weights cannot be written; likewise.
        PeerLostError: another process of the run has died.

    """
    run_dir = Path(config.run.dir)
    if not dry_run:
        signals.remove_marker(run_dir)
    lock = RunLock(run_dir)

    def leave_error(error: BaseException) -> None:
        if not (dry_run or lock.taken_over):
            write_error_file(run_dir, error)

    with contextlib.ExitStack() as at_end:
        at_end.callback(lock.release)
        try:
            _train(config, run_dir, dry_run, lock, Watchdog(config.train.timeout, leave_error), at_end)
        except Exception as error:
            lost = peer_lost(error)
            leave_error(lost or error)
            if lost:
                raise lost from None
            raise


def _train(
    config: Config, run_dir: Path, dry_run: bool, lock: RunLock, watchdog: Watchdog, at_end: contextlib.ExitStack
) -> None:
    # processes, data and batch arithmetic: refused before anything large is allocated
    plan = plan_batch(config.data.batch, config.train.micro_batch)
    dtype = autocast_type(config.train.precision)
    backend = Backend(plan, config.optim.clip, dtype, config.train.threads, watchdog)
    channels, source = config.model.channels, images_to_read(config.pairs, config.noise, config.loss)
    index, order, dataset = backend.run_on_all_ranks(
        lambda: open_data(config.data, config.run.seed, channels, source, backend.machine_slots)
    )

    # networks, validation, optimiser
    crop = config.pairs.network_crop(config.data.crop)
    network, ema = (ResUNet.empty(config.model, crop, backend.device) for _ in range(2))
    ema.to(memory_format=memory_format(config.train)).eval().requires_grad_(False)
    features = config.loss.extractor(channels)
    features = features.to(backend.device) if features is not None else None
    prepare_models(network, features, config.train, backend)
    sets, pairs = config.validation_sets(), config.pairs.name
    validation = backend.run_on_all_ranks(
        lambda: Validation(sets, config.noise, pairs, config.validate, channels, backend.device, config.data)
    )
    optimizer = make_optimizer(network, config.optim)

    # continue where the newest good checkpoint stands
    progress = TrainState(
        step=0, samples_seen=0, best=None, steps=config.train.steps, data=index.fingerprint, identity=config.identity()
    )
    checkpoints = Checkpoints(run_dir, config.checkpoint, backend, lock.lost_error)
    at_end.callback(checkpoints.close)
    found = None
    if not dry_run:
        backend.run_on_rank0(lambda: config.check_run_dir(run_dir))
        backend.run_on_rank0(lambda: lock.acquire(lambda line: print(line, flush=True)))
        check_machines(run_dir, backend)
        found = checkpoints.newest(warn=print)
        backend.run_on_rank0(lambda: check_continuation(run_dir, found, progress))
    if found:
        path, progress = found
        checkpoints.load(path, network, ema, optimizer, progress)
    else:
        _initialise(network, config.run)
        ema.load_state_dict(network.state_dict())
    example = torch.zeros(plan.micro_batch, channels, crop, crop)
    example = example.to(backend.device, memory_format=memory_format(config.train))
    model, stepper = backend.wrap(network, optimizer, example)
    places = RankOrder(order, progress.samples_seen, backend.rank, backend.world_size, plan.micro_batch)
    loader = make_loader(dataset, places, config.data.workers, backend.device)
    prefetcher = Prefetcher(index, order, progress.samples_seen, backend.machine_slots)
    at_end.callback(prefetcher.stopped.set)
    if index.remote and backend.local_rank == 0 and not dry_run:
        prefetcher.start()  # after the loader: its workers are forked, and a fork should copy no lock that is held
    own_time, stragglers = OwnTime(backend.device), Stragglers(backend.hosts)
    gone: list[UserError] = []
    """Why this rank's crops are zeros; the other ranks do not know yet."""

    def optimise(step: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, float, list[UserError]]:
        """Make one step: parts of the loss, gradient norm, seconds spent waiting for data, replaced samples."""
        for group in stepper.param_groups:
            group["lr"] = learning_rate(config.optim, step, config.train.steps)
        parts: dict[str, torch.Tensor] = {}
        waited, bad = 0.0, []
        for _ in range(plan.accumulation):
            own_time.mark()
            start = time.perf_counter()
            batch = next(loader)
            waited += time.perf_counter() - start
            bad += batch.bad
            gone.extend(message for message in batch.bad if isinstance(message, SourceUnavailableError))
            pair = noisy_pair(batch, config.noise, config.pairs, config.run.seed)
            pair.inputs = pair.inputs.contiguous(memory_format=memory_format(config.train))
            with backend.accumulate(model):
                with autocast(backend.device, dtype):
                    terms = losses(model, features, config.loss, pair, fraction=step / config.train.steps)
                own_time.mark()
                backend.backward(terms["total"])
            for name, value in terms.items():
                parts[name] = parts.get(name, 0) + value.detach() / plan.accumulation
        gradient_norm = backend.step(network, stepper)
        update_ema(ema, network, config.optim.ema, step)
        return parts, gradient_norm, waited, bad

    if dry_run:
        times = [_timed(optimise, step) for step in range(DRY_RUN_STEPS)]
        backend.all_gather_or_raise(next(iter(gone), None))
        if backend.is_main:
            print(report.plan(config, backend, dtype, index, order, network, seconds_per_step=min(times[1:])))
        backend.close()
        return

    backend.run_on_rank0(lambda: config.write(run_dir))
    tracker = Tracker(run_dir, progress.step, config.train.steps, backend.is_main)
    tracker.text("configuration", config.to_yaml())
    tracker.say(report.start(config, backend, dtype, index, order, network))
    if found:
        tracker.say(report.continuing(progress, config.train.steps))
        progress.steps = config.train.steps

    def validate() -> bool:
        """Measure the moving average and show the result; return whether a signal cut it short, and nothing counts."""
        checkpoints.wait()  # what is best depends on what could be saved
        measured = validation.run(ema, backend)
        if measured is None:
            return True
        scores, panels = measured
        curves = {f"validation/{name.removeprefix('validation/')}": value for name, value in scores.items()}
        tracker.scalars(progress.step, curves)
        tracker.settings(config.identity(), [name for name in curves if "noisy" not in name])
        tracker.panels(progress.step, panels)
        tracker.say(report.scores(progress.step, scores))
        score = selection_score(scores)
        if progress.best is None or score > progress.best:
            progress.best, progress.best_step = score, progress.step
        return False

    stopping = any(backend.all_gather_or_raise(None, signals.received()))
    progress.owes_validation = progress.owes_validation and bool(validation.sets)
    if progress.owes_validation and not stopping:
        progress.owes_validation = validate()
        if not progress.owes_validation:
            checkpoints.save(network, ema, stepper, progress)
        stopping = any(backend.all_gather_or_raise(None, signals.received()))
    saved_at = time.monotonic()
    agree_at, pace = progress.step + 1, math.inf  # the first step may take long, so the others are not left alone
    window = Window()

    for step in range(progress.step, config.train.steps):
        if stopping:
            break
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
        if logging or progress.step >= agree_at:  # before anything is logged or saved
            refusal = next(iter(gone), None) or lock.lost_error()
            requests, paces = zip(*backend.all_gather_or_raise(refusal, (signals.received(), pace)), strict=True)
            stopping = any(requests)
            agree_at = progress.step + max(1, min(AGREE_EVERY, int(AGREE_SECONDS / max(paces))))
            pace = window.seconds() / window.steps  # now that this rank has waited for its device
        if logging or stopping:
            # one vector holds all that the ranks must agree on, rank 0's clock too
            means = window.means()
            minutes = (time.monotonic() - saved_at) / 60 if backend.is_main else 0.0
            measured = torch.tensor([window.waited / window.seconds(), window.bad_samples, minutes]).double()
            own_times = torch.zeros(backend.world_size).double()
            own_times[backend.rank] = own_time.seconds()
            summed, own_times = backend.sum(torch.cat([means, measured, own_times])).split(
                [len(means) + len(measured), backend.world_size]
            )
            *sums, waiting, bad_samples, minutes = summed.tolist()
            saving = saving or stopping or minutes > config.checkpoint.minutes
            progress.bad_samples += int(bad_samples)
            logged = {f"train/{name}": value / backend.world_size for name, value in zip(parts, sums, strict=True)}
            logged["train/gradient_norm"] = window.gradient_norm()
            logged["train/learning_rate"] = learning_rate(config.optim, step, config.train.steps)
            logged["speed/images_per_second"] = window.steps * plan.batch / window.seconds()
            logged["speed/minutes_per_epoch"] = window.seconds() / window.steps * order.batches_per_epoch / 60
            logged["speed/waiting_for_data"] = waiting / backend.world_size
            logged["memory/peak_gib"] = memory_bytes(backend.device) / 2**30
            if backend.world_size > 1:
                logged["speed/slowest_rank"] = (own_times.max() / own_times.median()).item()
                for warning in stragglers.add(own_times.tolist()):
                    tracker.say(warning)
            tracker.point(progress.step, logged)
            check_finite(logged, progress, window, backend, dataset, places)
            check_damage(progress, config.data.max_bad)

            if validating:
                progress.owes_validation = stopping or validate()
            if saving:
                checkpoints.save(network, ema, stepper, progress)
                saved_at = time.monotonic()
                stopping = any(
                    backend.all_gather_or_raise(None, signals.received())
                )  # a signal meanwhile needs no other save
            window = Window()

    checkpoints.finish()
    stopped = stopping and (progress.step < config.train.steps or progress.owes_validation)
    if not stopped:
        backend.run_on_rank0(lambda: save_model(run_dir / LAST, ema, progress.step))
    tracker.close()
    if stopped:
        first = max(filter(None, backend.all_gather_or_raise(None, signals.received())), key=itemgetter(1))
        text = report.stopped(progress, first)
        backend.run_on_rank0(lambda: signals.leave_marker(run_dir, text))
    else:
        text = report.end(run_dir, progress, validation)
    if backend.is_main:
        print(text, flush=True)
    backend.close()


def _initialise(network: ResUNet, settings: RunSettings) -> None:
    """Fill the network with the weights of `run.init`, or with those that the seed draws."""
    torch.manual_seed(settings.seed)
    start = load_model(settings.init) if settings.init else ResUNet(network.settings, network.crop)
    if start.settings != network.settings:
        differences = describe_differences(asdict(start.settings), asdict(network.settings))
        raise UserError(
            f"run.init {settings.init}: weights of another network ({differences}); give the model.* settings it was "
            "trained with"
        )
    network.load_state_dict(start.state_dict())


def _timed(optimise: Callable[[int], object], step: int) -> float:
    start = time.perf_counter()
    optimise(step)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
