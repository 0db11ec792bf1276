"""Tensors of a checkpoint: their names, their division over the ranks, and a rank's copy of its part."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import torch
from torch import nn


def named_tensors(
    model: nn.Module, ema: nn.Module, moments: Callable[[torch.Tensor], dict[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a checkpoint with its name; the optimiser's are named by their parameter.

    Args:
        model: the network.
        ema: the moving average of its weights.
        moments: returns AdamW's moments of a parameter, by name.

    """
    for part, module in (("model", model), ("ema", ema)):
        for name, tensor in module.state_dict().items():
            yield f"{part}.{name}", tensor
    for name, parameter in model.named_parameters():
        for key, tensor in moments(parameter).items():
            yield f"optimizer.{name}.{key}", tensor


def partition_by_size(sizes: dict[str, int], world_size: int) -> list[list[str]]:
    """Divide named sizes over ranks as evenly as whole tensors allow.

    Each goes, largest first, to the rank that has least so far (longest processing time first, Graham 1969), so no rank
    gets more than an even share and one tensor. All ranks get the same result without communication.

    Args:
        sizes: bytes by name.
        world_size: number of ranks.

    Returns:
        Names by rank.

    """
    parts: list[list[str]] = [[] for _ in range(world_size)]
    bytes_ = [0] * world_size
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = bytes_.index(min(bytes_))
        parts[rank].append(name)
        bytes_[rank] += sizes[name]
    return parts


class StagingBuffers:
    """Copies of tensors on the CPU, pinned for those of a GPU; memory is taken by the first copy and kept."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())

    def copy(self, tensors: Iterable[tuple[str, torch.Tensor]], names: Collection[str]) -> dict[str, torch.Tensor]:
        """Begin to copy the tensors of these names; from a GPU it continues when this has returned."""
        copies = {}
        for name, tensor in tensors:
            if name in names:
                if name not in self._buffers:
                    self._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                copies[name] = self._buffers[name].copy_(tensor, non_blocking=True)
        return copies
