"""Number formats and memory layout: autocast, channels_last, compilation."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import nn

from n2n_dist.devices import use_gpu
from n2n_dist.distributed.backend import Backend
from n2n_dist.errors import UserError
from n2n_dist.models.network import Network


@dataclass
class TrainSettings:
    """How long and how fast."""

    steps: int = 10000
    """Optimiser steps. May grow when a run is continued; the cosine of the rate, l0 and pairs.gamma then stretch."""
    micro_batch: int | None = None
    """Most crops in one forward pass on one rank; the rest of the batch is accumulated. Default: no limit."""
    precision: str = "auto"
    """`bf16`, `fp32` (cuDNN may use TF32), or `auto`: bf16 where the processor multiplies it natively."""
    channels_last: bool = True
    """Keep feature maps as [N, H, W, C] in memory, which convolutions prefer."""
    compile: str = "auto"
    """`on`, `off`, or `auto`: compile the blocks and VGG-16 on a GPU; on a CPU compiling was measured slower."""
    threads: int | None = None
    """Threads of each rank on a CPU. Default: the cores shared evenly by the ranks of a machine."""
    deterministic: bool = False
    """Use only algorithms that give the same bits every time; slower on a GPU, no difference on a CPU."""
    log_every: int = 20
    """Steps between two points of the TensorBoard curves."""
    timeout: float = 600
    """Seconds without progress after which a run's processes end; compiling, a step and a first read must fit."""

    def __post_init__(self) -> None:
        for name in ("steps", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} {getattr(self, name)}: must be 1 or more")
        for name in ("micro_batch", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"train.{name} {getattr(self, name)}: must be 1 or more")
        if not 0 < self.timeout < 1e7:  # torch counts in milliseconds
            raise UserError(f"train.timeout {self.timeout}: must be above 0 and below 1e7 seconds")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise UserError(f"train.precision {self.precision!r}: must be auto, bf16 or fp32")
        if self.compile not in ("auto", "on", "off"):
            raise UserError(f"train.compile {self.compile!r}: must be auto, on or off")


def autocast_type(precision: str) -> torch.dtype | None:
    """Return bfloat16 or, for float32, None."""
    if precision == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False) if use_gpu() else _cpu_bf16()
        return torch.bfloat16 if native else None
    return torch.bfloat16 if precision == "bf16" else None


def prepare_models(model: Network, features: nn.Module | None, settings: TrainSettings, backend: Backend) -> None:
    """Lay out and compile the networks in place, before the model is wrapped; parameter names do not change."""
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if settings.channels_last:
        if not backend.zero:  # ZeRO flattens the weights and needs them contiguous
            model.to(memory_format=torch.channels_last)
        if features is not None:
            features.to(memory_format=torch.channels_last)
    compile_blocks(model, features, settings, backend.device)


def compile_blocks(model: Network, features: nn.Module | None, settings: TrainSettings, device: torch.device) -> None:
    """Compile in place if the settings say so: the denoiser by its regions, the frozen extractor as a whole."""
    if settings.compile == "off" or (settings.compile == "auto" and device.type != "cuda"):
        return
    for region in model.compile_regions():
        region.compile(dynamic=False)
    if features is not None:
        features.compile(dynamic=False)


def memory_format(settings: TrainSettings) -> torch.memory_format:
    """Return the memory layout of input images."""
    return torch.channels_last if settings.channels_last else torch.contiguous_format


def _cpu_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
