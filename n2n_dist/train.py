"""A training run, top to bottom: pair, losses, step, average; then what the ranks agree on."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from n2n_dist import report
from n2n_dist.checkpoint.format import TrainState
from n2n_dist.checkpoint.manager import Checkpoints
from n2n_dist.checkpoint.run_folder import RunLock
from n2n_dist.config import Config
from n2n_dist.data.dataset import open_data
from n2n_dist.data.loader import make_loader
from n2n_dist.data.order import Order
from n2n_dist.data.prefetch import Prefetcher
from n2n_dist.data.sampler import RankOrder
from n2n_dist.devices import DeviceTimer, autocast
from n2n_dist.distributed.backend import Backend
from n2n_dist.distributed.batch import plan_batch
from n2n_dist.distributed.stopping import StopAgreement
from n2n_dist.distributed.stragglers import Stragglers
from n2n_dist.distributed.watchdog import Watchdog, peer_lost
from n2n_dist.models.network import Network
from n2n_dist.models.weights import LAST, save_model
from n2n_dist.objective import loss_terms
from n2n_dist.pairs import noisy_pair
from n2n_dist.shards.index import Index
from n2n_dist.training.batches import Batches
from n2n_dist.training.checks import check_continuation, check_damage, check_finite, check_machines
from n2n_dist.training.curves import Curves
from n2n_dist.training.networks import Networks, build_networks, initialise
from n2n_dist.training.optim import learning_rate, make_optimizer, update_ema
from n2n_dist.training.precision import autocast_type
from n2n_dist.training.step_log import StepLog
from n2n_dist.training.validation import Validation, selection_score

DRY_RUN_STEPS = 4


def train(config: Config, dry_run: bool = False) -> None:
    """Train a denoiser, or continue the run in `run.dir`.

    A signal (see signals.py) to any rank ends the step, or a validation, and saves; RUN/PREEMPTED then says that the
    same command continues the run.

    Args:
        config: the run's settings.
        dry_run: print the plan with the measured time of a step, write nothing, and stop.

    Raises:
        UserError: data, settings or checkpoint cannot be worked with; also left in RUN/error.txt.
        StorageError: the last checkpoint or the weights cannot be written; likewise.
        PeerLostError: another process of the run has died.

    """
    lock = RunLock(Path(config.run.dir))

    def leave_error(error: BaseException) -> None:
        if not dry_run:
            lock.leave_error(error)

    with contextlib.ExitStack() as at_end:
        at_end.callback(lock.release)
        try:
            _train(config, dry_run, lock, Watchdog(config.train.timeout, leave_error), at_end)
        except Exception as error:
            lost = peer_lost(error)
            leave_error(lost or error)
            if lost:
                raise lost from None
            raise


def _train(config: Config, dry_run: bool, lock: RunLock, watchdog: Watchdog, at_end: contextlib.ExitStack) -> None:
    # processes, data and batch arithmetic: refused before anything large is allocated
    plan = plan_batch(config.data.batch, config.train.micro_batch)
    backend = Backend(plan, config.optim.clip, autocast_type(config.train.precision), config.train.threads, watchdog)
    seed, channels, averaged = config.run.seed, config.model.channels, config.loss.needs_average
    index, order, dataset = backend.run_on_all_ranks(
        lambda: open_data(config.data, seed, channels, config.pairs, averaged, backend.machine_slots)
    )
    crop = config.pairs.network_crop(config.data.crop)
    nets = build_networks(config.model, crop, config.loss, config.train, backend)
    sets = config.validation_sets()
    validation = backend.run_on_all_ranks(
        lambda: Validation(sets, config.noise, config.pairs, config.validate, channels, backend.device, config.data)
    )
    optimizer = make_optimizer(nets.network, config.optim)
    checkpoints = Checkpoints(Path(config.run.dir), config.checkpoint, backend, lock.lost_error)
    at_end.callback(checkpoints.close)

    # start, or continue after the newest good checkpoint
    state = TrainState.new(config.train.steps, index.fingerprint, config.identity())
    resumed = None if dry_run else claim_and_resume(config, lock, backend, checkpoints, nets, optimizer, state)
    if resumed is None:
        initialise(nets, config.run.seed, config.run.init)
    state = resumed or state
    nets.model, optimizer = backend.wrap(nets.network, optimizer, nets.example(plan.micro_batch))
    rank_order = RankOrder(order, state.samples_seen, backend.rank, backend.world_size, plan.micro_batch)
    batches = Batches(make_loader(dataset, rank_order, config.data.workers, backend.device), backend.device)
    if dry_run:
        print_plan(config, backend, index, order, nets, optimizer, batches)
        return
    prefetcher = Prefetcher(index, order, state.samples_seen, backend.machine_slots)
    at_end.callback(prefetcher.stopped.set)
    if index.remote and backend.local_rank == 0:
        prefetcher.start()  # after the loader: its workers are forked, and a fork should copy no lock that is held
    curves = open_curves(config, backend, index, order, nets, state, resumed is not None)
    stop = StopAgreement(backend)
    stop.ask(state.step)
    if state.owes_validation and not stop.requested:
        validate(validation, nets.ema, backend, checkpoints, curves, state)
        if not state.owes_validation:
            checkpoints.save(nets.network, nets.ema, optimizer, state)
        stop.ask(state.step)
    log, stragglers = StepLog(backend, order.batches_per_epoch), Stragglers(backend.hosts)

    for step in range(state.step, config.train.steps):
        if stop.requested:
            break
        losses, gradient_norm = train_step(nets, optimizer, batches, config, step, backend)
        state.advance(plan.batch)
        log.add(losses, gradient_norm, batches.since_last_step())
        curves.bar.update()
        prefetcher.reached = state.samples_seen
        due = due_after(state.step, config)
        if due.log or stop.is_due(state.step):  # before anything is logged or saved
            stop.ask(state.step, log.seconds_per_step, batches.source_error or lock.lost_error())
        if not (due.log or stop.requested):
            continue
        point = log.reduce(learning_rate(config.optim, step, config.train.steps), checkpoints.minutes_since_save)
        state.bad_samples += point.bad_samples
        curves.point(state.step, point.curves)
        for warning in stragglers.add(point.own_seconds):
            curves.say(warning)
        check_finite(point.curves, state, log, backend, dataset, rank_order)
        check_damage(state, config.data.max_bad)
        state.owes_validation = due.validate
        if due.validate and not stop.requested:
            validate(validation, nets.ema, backend, checkpoints, curves, state)
        if due.save or stop.requested or point.minutes_since_save > config.checkpoint.minutes:
            checkpoints.save(nets.network, nets.ema, optimizer, state)
            stop.ask(state.step)  # a signal meanwhile needs no other save
        log.restart()

    checkpoints.finish()
    finish(config, lock, nets.ema, backend, state, stop, curves)


def train_step(
    nets: Networks, optimizer: Any, batches: Batches, config: Config, step: int, backend: Backend
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Make optimiser step `step`, counted from 0.

    Returns:
        Each term of the loss, the mean over this rank's crops, and the global gradient norm before clipping.

    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config.optim, step, config.train.steps)
    means: dict[str, torch.Tensor] = {}
    for _ in range(backend.plan.accumulation):
        with batches.timer:
            pair = noisy_pair(next(batches), config.noise, config.pairs, config.run.seed)
            pair.inputs = pair.inputs.contiguous(memory_format=nets.layout)
        with backend.accumulate(nets.model):
            with batches.timer, autocast(backend.device, backend.dtype):
                terms = loss_terms(nets.model, nets.features, config.loss, pair, fraction=step / config.train.steps)
            backend.backward(terms["total"])
        for name, value in terms.items():
            means[name] = means.get(name, 0) + value.detach() / backend.plan.accumulation
    gradient_norm = backend.step(nets.network, optimizer)
    update_ema(nets.ema, nets.network, config.optim.ema, step)
    return means, gradient_norm


@dataclass(frozen=True)
class Due:
    """Work that follows a step."""

    log: bool
    """A point of the curves; always, where there is a validation or a save."""
    validate: bool
    save: bool


def due_after(step: int, config: Config) -> Due:
    """Return what the settings ask for after step `step`, counted from 1."""
    last = step == config.train.steps
    validate = bool(config.data.validation) and (last or step % config.validate.every == 0)
    save = last or validate or step % config.checkpoint.every == 0
    return Due(save or step % config.train.log_every == 0, validate, save)


def claim_and_resume(
    config: Config,
    lock: RunLock,
    backend: Backend,
    checkpoints: Checkpoints,
    nets: Networks,
    optimizer: torch.optim.Optimizer,
    wanted: TrainState,
) -> TrainState | None:
    """Take the run folder and load its newest good checkpoint. Collective.

    Returns:
        The state of that checkpoint, or None where there is none.

    Raises:
        UserError: the folder is in use, holds another run than `wanted`, or has only damaged checkpoints.

    """
    run_dir = Path(config.run.dir)
    backend.run_on_rank0(lambda: config.check_run_dir(run_dir))
    lock.join(backend.run_on_rank0(lambda: lock.acquire(lambda line: print(line, flush=True))))
    check_machines(run_dir, backend)
    found = checkpoints.newest(warn=print)
    backend.run_on_rank0(lambda: check_continuation(run_dir, found, wanted))
    if found is None:
        return None
    path, state = found
    checkpoints.load(path, nets.network, nets.ema, optimizer, state)
    return state


def open_curves(
    config: Config, backend: Backend, index: Index, order: Order, nets: Networks, state: TrainState, resumed: bool
) -> Curves:
    """Write RUN/config.yaml, and show what is about to start or to be continued."""
    run_dir = Path(config.run.dir)
    backend.run_on_rank0(lambda: config.write(run_dir))
    curves = Curves(run_dir, state.step, config.train.steps, backend.is_main)
    curves.text("configuration", config.to_yaml())
    curves.say(report.start(config, backend, index, order, nets.network))
    if resumed:
        curves.say(report.continuing(state, config.train.steps))
        state.steps = config.train.steps
    state.owes_validation = state.owes_validation and bool(config.validation_sets())
    return curves


def validate(
    validation: Validation, ema: Network, backend: Backend, checkpoints: Checkpoints, curves: Curves, state: TrainState
) -> None:
    """Measure the moving average and show the result. A signal cuts it short: `state.owes_validation` stays."""
    checkpoints.wait()  # what is best depends on what could be saved
    measured = validation.run(ema, backend)
    state.owes_validation = measured is None
    if measured is None:
        return
    scores, panels = measured
    curves.validation(state.step, scores, panels, state.identity)
    curves.say(report.scores(state.step, scores))
    score = selection_score(scores)
    if state.best is None or score > state.best:
        state.best, state.best_step = score, state.step


def finish(
    config: Config,
    lock: RunLock,
    ema: Network,
    backend: Backend,
    state: TrainState,
    stop: StopAgreement,
    curves: Curves,
) -> None:
    """Write the weights of a run that is done, or a marker that it can be continued, and say so."""
    run_dir = Path(config.run.dir)
    done = state.step == config.train.steps and not state.owes_validation
    if done:
        backend.run_on_rank0(lambda: save_model(run_dir / LAST, ema, state.step))
        text = report.end(run_dir, state, bool(config.validation_sets()))
    else:
        text = report.stopped(state, stop.first_signal())
        backend.run_on_rank0(lambda: lock.leave_marker(text))
    curves.close()
    if backend.is_main:
        print(text, flush=True)
    backend.close()


def print_plan(
    config: Config, backend: Backend, index: Index, order: Order, nets: Networks, optimizer: Any, batches: Batches
) -> None:
    """Make some steps, print the plan of the run with the time and memory that they took, and end."""
    timers = [DeviceTimer(backend.device) for _ in range(DRY_RUN_STEPS)]
    for step, timer in enumerate(timers):
        with timer:
            train_step(nets, optimizer, batches, config, step, backend)
    seconds = min(timer.seconds() for timer in timers[1:])
    backend.all_gather_or_raise(batches.source_error)
    if backend.is_main:
        print(report.plan(config, backend, index, order, nets.network, seconds))
    backend.close()
