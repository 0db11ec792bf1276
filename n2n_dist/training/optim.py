"""AdamW, the learning rate as a function of the step, and the moving average of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from n2n_dist.errors import UserError


@dataclass
class OptimSettings:
    """How the weights are moved."""

    lr: float = 1e-3
    """Peak learning rate of AdamW, after the warm-up."""
    warmup: int = 200
    """Steps over which the learning rate rises linearly from 0; at most a tenth of train.steps is used."""
    weight_decay: float = 1e-4
    """Decay of the weights (not of biases), per step and unit of learning rate."""
    clip: float = 0.05
    """Largest global gradient norm; 0 for no clipping. Usual after the first steps: 0.005 (L2) to 0.03 (L1)."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what validates and ships; 0: the weights themselves."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise UserError(f"optim.lr {self.lr}: must be above 0")
        for name in ("warmup", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"optim.{name} {getattr(self, name)}: must be 0 or more")
        if not 0 <= self.ema < 1:
            raise UserError(f"optim.ema {self.ema}: must be 0 or more and below 1")


def make_optimizer(model: nn.Module, settings: OptimSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); only weights of convolutions decay.

    The squares of the gradients are remembered for 100 steps, not 1,000: after a spike the steps are then not too small
    for long, and at its beginning not too large.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.99), fused=True)


def learning_rate(settings: OptimSettings, step: int, steps: int) -> float:
    """Return the rate of step 0 <= `step` < `steps`: linear warm-up, then a cosine to zero."""
    warmup = min(settings.warmup, steps // 10)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def update_ema(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the weights after step `step`; young averages follow faster."""
    decay = min(decay, (1 + step) / (10 + step))
    get_ema_multi_avg_fn(decay)(list(ema.parameters()), list(model.parameters()), step)
