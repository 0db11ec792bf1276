"""Processes and devices: everything that differs between one process, DDP and DeepSpeed is here and in zero.py.

Accelerate starts and wraps the run; the launch file chooses the backend. Rank and world size are taken from
torch.distributed: under DeepSpeed on a CPU Accelerate itself says 1.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import accelerate
import torch
import torch.distributed as dist
from torch import nn

from n2n_dist.commands import backend_file
from n2n_dist.devices import autocast, local_world_size, set_threads, use_gpu
from n2n_dist.distributed import zero
from n2n_dist.distributed.batch import BatchPlan
from n2n_dist.distributed.environment import remove_leftovers
from n2n_dist.distributed.watchdog import MARGIN_SECONDS, Watchdog
from n2n_dist.errors import StorageError, UserError

T = TypeVar("T")
BUCKET_MB = 4
"""Size of DDP's gradient buckets: small enough that the first is on its way early in the backward pass."""


class Backend:
    """The processes of a run, seen from one of them. A method that is called collective must be called by all ranks."""

    def __init__(
        self,
        plan: BatchPlan,
        clip: float,
        dtype: torch.dtype | None,
        threads: int | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        """Start Accelerate and, if the launch file chooses it, DeepSpeed.

        Args:
            plan: the batch arithmetic.
            clip: largest gradient norm; 0 for no clipping.
            dtype: type of the matrix products, None for float32.
            threads: threads on a CPU; default the cores divided by the ranks of this machine.
            watchdog: ends this process when other ranks give no answer.

        Raises:
            UserError: ZeRO-3, or processes that form no common world.

        """
        self.plan = plan
        self.clip = clip
        self.dtype = dtype
        self.zero = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
        remove_leftovers()
        gpu = use_gpu()
        accumulation = accelerate.utils.GradientAccumulationPlugin(
            num_steps=plan.accumulation, sync_with_dataloader=False
        )
        handlers: list[accelerate.utils.KwargsHandler] = []
        if watchdog is not None and plan.world_size > 1:
            timeout = timedelta(seconds=watchdog.timeout + MARGIN_SECONDS)
            handlers.append(accelerate.InitProcessGroupKwargs(timeout=timeout))
            if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
                _rendezvous_after_restart(timeout)
        arguments: dict[str, Any] = {"gradient_accumulation_plugin": accumulation, "mixed_precision": "no"}
        self.name = "single process"
        if self.zero:
            self.name, arguments["deepspeed_plugin"] = zero.start(plan, clip, dtype)
        elif plan.world_size > 1:
            self.name = "DDP"
            handlers.append(
                accelerate.DistributedDataParallelKwargs(gradient_as_bucket_view=True, bucket_cap_mb=BUCKET_MB)
            )
        # cpu=True would turn a DeepSpeed launch into plain DDP; without it DDP on a CPU gives worlds of one
        self.accelerator = accelerate.Accelerator(cpu=not gpu and not self.zero, kwargs_handlers=handlers, **arguments)
        if self.zero and self.accelerator.distributed_type != accelerate.DistributedType.DEEPSPEED:
            raise UserError(
                f"ACCELERATE_USE_CPU: Accelerate takes DDP for {self.name} where it is true; unset it, or use "
                f"{backend_file('cpu')}"
            )
        self.device = self.accelerator.device
        if self.device.type == "cpu":
            set_threads(threads)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        if self.world_size != plan.world_size or self.rank != int(os.environ.get("RANK") or 0):
            raise UserError(
                f"this process is rank {self.rank} of {self.world_size}, but the launcher started rank "
                f"{os.environ.get('RANK', 0)} of {plan.world_size}; use one of {backend_file('*')}"
            )
        self.watchdog = watchdog or Watchdog(float("inf"), lambda lost: None)
        self.hosts: list[str] = self.all_gather_or_raise(None, socket.gethostname())
        """The machine of each rank."""
        if watchdog is not None and self.world_size > 1:
            watchdog.start(self.rank, self.hosts)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0

    @property
    def local_rank(self) -> int:
        """This process's number on its machine."""
        return int(os.environ.get("LOCAL_RANK", 0)) if self.world_size > 1 else 0

    @property
    def machine_slots(self) -> range:
        """Slots of every batch that the ranks of this machine read."""
        share, first = self.plan.batch // self.world_size, self.rank - self.local_rank
        return range(first * share, (first + local_world_size()) * share)

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer, example: torch.Tensor) -> tuple[nn.Module, Any]:
        """Wrap model and optimiser so that gradients are reduced over the ranks; parameters stay the same objects.

        Args:
            model: the network, on this rank's device.
            optimizer: AdamW of the model's parameters, new or with the state of a checkpoint.
            example: a micro-batch of any images.

        """
        states = {p: optimizer.state.pop(p) for p in list(optimizer.state)} if self.zero else {}
        wrapped = self.accelerator.prepare(model, optimizer)
        if self.zero:
            zero.scatter_moments(wrapped[1].optimizer, states)
        if self.name == "DDP":
            # DDP orders its buckets anew after the first backward pass. That one is thrown away, so that a continued
            # run adds gradients up in the same order as an uninterrupted one.
            with autocast(self.device, self.dtype):
                wrapped[0](example).sum().backward()
            model.zero_grad()
        return wrapped[0], wrapped[1]

    def accumulate(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Surround one micro-batch; gradients are reduced with the last one of a step only."""
        return self.accelerator.accumulate(model)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch. Under DeepSpeed the last one of a step also steps."""
        self.accelerator.backward(loss)
        self.watchdog.progress()

    def step(self, model: nn.Module, optimizer: Any) -> torch.Tensor:
        """Clip, step, and return the global gradient norm before clipping, the same on every rank.

        It is not finite where a gradient is not.
        """
        norm = self.accelerator.clip_grad_norm_(model.parameters(), self.clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        if self.zero and optimizer.step_was_skipped:  # without a message, and on all ranks
            norm = float("inf")
        return torch.as_tensor(norm, dtype=torch.float32, device=self.device).detach()

    def moments(self, optimizer: Any, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return AdamW's moments of a parameter, by name and of its shape, after a step or a continuation.

        Under ZeRO they are gathered: collective, for the same parameter.
        """
        if self.zero:
            return zero.gather_moments(parameter)
        return {key: optimizer.state[parameter][key] for key in zero.MOMENTS}

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all ranks. Collective."""
        values = values.detach().to(self.device, copy=True)
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def new_group(self) -> dist.ProcessGroup | None:
        """Return a gloo group of all ranks for another thread; None for one process.

        It has no timeout of its own: ranks may wait in it for a slow disk, and the watchdog decides what is too long.
        """
        if self.world_size == 1:
            return None
        return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timedelta(days=1)))

    def all_gather_or_raise(
        self, error: Exception | None, value: Any = None, group: dist.ProcessGroup | None = None
    ) -> list[Any]:
        """All-gather `value`; if any rank passes an error, raise the first on every rank. Collective.

        A thread other than the main one needs a `group` of its own.
        """
        gathered = [(error, value)]
        if self.world_size > 1:
            gathered *= self.world_size
            dist.all_gather_object(gathered, (error, value), group=group)
        self.watchdog.progress()
        for found, _ in gathered:
            if found is not None:
                raise found
        return [value for _, value in gathered]

    def run_on_all_ranks(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank and return each rank's own result. Collective.

        Raises:
            UserError, StorageError: on all ranks, the error of any; names its machine where there are several.

        """
        result, raised = None, None
        try:
            result = action()
        except (UserError, StorageError) as error:
            raised = error if len(set(self.hosts)) == 1 else type(error)(f"on {self.hosts[self.rank]}: {error}")
        self.all_gather_or_raise(raised)
        return cast(T, result)

    def run_on_rank0(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 and return its result on all ranks. Collective.

        Raises:
            UserError, StorageError: on all ranks, the error of the action.

        """
        outcome: list[Any] = [None]
        raised: Exception | None = None
        if self.is_main:
            try:
                outcome[0] = action()
            except (UserError, StorageError) as error:
                raised = error
            except OSError as error:
                raised = StorageError(
                    f"{error.filename}: cannot be written ({error.strerror}); make room or use another run.dir"
                )
        self.all_gather_or_raise(raised)
        if self.world_size > 1:
            dist.broadcast_object_list(outcome, src=0)
        return outcome[0]

    def close(self) -> None:
        """Destroy the process group, so that no rank waits for another one at exit."""
        self.watchdog.stop()
        self.accelerator.end_training()
        if dist.is_initialized():
            dist.destroy_process_group()


def _rendezvous_after_restart(timeout: timedelta) -> None:
    """Form the process group after the launcher's --max_restarts has started its processes again.

    The store outlives the processes, and with it the addresses of those that have died: a new prefix hides them.
    """
    store, rank, world_size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "nccl" if use_gpu() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
