"""DeepSpeed's ZeRO-1 and ZeRO-2: its settings, written from ours, and the moments that it spreads over the ranks."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import accelerate
import torch

from n2n_dist.commands import backend_file
from n2n_dist.devices import use_gpu
from n2n_dist.distributed.batch import BatchPlan
from n2n_dist.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of every parameter, besides the number of its steps."""


class Plugin(accelerate.DeepSpeedPlugin):
    """Accelerate's settings of DeepSpeed."""

    def set_deepspeed_weakref(self) -> None:
        """Do nothing: it hands the settings to the package transformers, which is not used here."""


def start(plan: BatchPlan, clip: float, dtype: torch.dtype | None) -> tuple[str, Plugin]:
    """Return the name of this backend, and the plugin that starts it, from our settings and the launch file's stage.

    Raises:
        UserError: another stage than 1 or 2, or no launcher.

    """
    if not os.environ.get("RANK"):
        raise UserError(
            "ACCELERATE_USE_DEEPSPEED=true: set without a launcher, so it is left over from another program; unset "
            "it, or start with accelerate launch"
        )
    stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    if stage not in (1, 2):
        raise UserError(
            f"zero_stage {stage}: only 1 and 2, because networks of this kind fit on one device, and checkpoints need "
            f"every weight there; use {backend_file('zero2')}"
        )
    # the launch file's zero_stage is read above; beside a configuration in code Accelerate refuses it
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    if not use_gpu():
        os.environ["DS_ACCELERATOR"] = "cpu"
        skip_shm_compilation()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return f"ZeRO-{stage}", Plugin(hf_ds_config=configuration(stage, plan, clip, dtype))


def skip_shm_compilation() -> None:
    """Keep DeepSpeed from compiling an operator for inference at its first start on a CPU, which takes minutes."""
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}


def configuration(stage: int, plan: BatchPlan, clip: float, dtype: torch.dtype | None) -> dict[str, Any]:
    """Write DeepSpeed's settings from ours: float32 weights and gradients, its own autocast, our clipping."""
    config: dict[str, Any] = {
        "train_batch_size": plan.batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": clip,
        "zero_optimization": {"stage": stage, "overlap_comm": use_gpu()},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 60,
    }
    if dtype is not None:
        # an empty list of safe modules keeps weights and gradient reduction in float32
        config["torch_autocast"] = {
            "enabled": True,
            "dtype": str(dtype).removeprefix("torch."),
            "lower_precision_safe_modules": [],
        }
    return config


def gather_moments(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the moments of a parameter, whole and of its shape. Collective, for the same parameter."""
    from deepspeed.utils import safe_get_full_optimizer_state

    return {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}


def scatter_moments(optimizer: Any, states: Mapping[torch.Tensor, Mapping[str, torch.Tensor]]) -> None:
    """Give every rank its part of the moments, and AdamW the number of its steps; nothing is sent.

    A new run needs it too: DeepSpeed links the moments of all groups with their parameters after the first step of the
    first group, when those of the other groups do not exist yet, and they could not be gathered.

    Args:
        optimizer: DeepSpeed's, which wraps AdamW of one flat tensor a group, before its first step.
        states: AdamW's state of every parameter (`exp_avg`, `exp_avg_sq`, `step`), the same on all ranks; none: zeros.

    """
    from deepspeed.utils import safe_set_full_optimizer_state

    steps = next(iter(states.values()))["step"] if states else torch.tensor(0.0)
    for group in optimizer.optimizer.param_groups:
        for flat in group["params"]:
            moments = {key: torch.zeros_like(flat) for key in MOMENTS}
            optimizer.optimizer.state[flat] = {"step": steps.to(flat.device, copy=True), **moments}
    optimizer._lazy_init_hp_params_optimizer_state()
    for parameter, state in states.items():
        for key in MOMENTS:
            safe_set_full_optimizer_state(parameter, state[key], key)
