"""The weights file: one safetensors file that holds all that is needed to build the network again."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from n2n_dist.devices import use_gpu
from n2n_dist.errors import UserError, one_line
from n2n_dist.files import write_atomically
from n2n_dist.models import build
from n2n_dist.models.network import Network

BEST = "best.safetensors"
LAST = "last.safetensors"
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of the types in a safetensors file."""


def save_model(path: Path, model: Network, step: int = 0) -> None:
    """Write weights, with the model's settings and the step of its training in the metadata.

    They appear under their name when they are complete and on the disk.

    Raises:
        OSError: they cannot be written.

    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    with write_atomically(path) as temporary:
        write_tensors(temporary, tensors, {"n2n_dist": json.dumps(model.metadata() | {"step": step})})


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file (https://github.com/huggingface/safetensors#format), without waiting for the disk.

    The library's writer makes files that only their owner can read, reports errors without an errno, and leaves a
    temporary file when it is killed.

    Args:
        path: the file.
        tensors: by name, contiguous and on the CPU.
        metadata: texts of the file's header.

    Raises:
        OSError: it cannot be written.
        KeyError: tensors of this type cannot be stored.

    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that all are aligned
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        type_, shape = TYPES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": type_, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(tensors[name].detach().reshape(-1).view(torch.uint8).numpy().data)


def trained_steps(path: Path) -> int | None:
    """Return the step at which a file's weights were saved, None if there are no such weights."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})["n2n_dist"])["step"]
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError):
        return None


def load_model(weights: str | Path, device: torch.device | None = None) -> Network:
    """Build the network of a weights file, ready for inference.

    Args:
        weights: a `.safetensors` file, or a run folder (its best weights, or else its last).
        device: where the network is put; default the GPU if there is one.

    Raises:
        UserError: no weights there, weights of another version, or not weights of this package.

    """
    path = find_weights(Path(weights))
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["n2n_dist"])
        model = build(about)
        model.load_state_dict(safetensors.torch.load_file(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{path}: not weights written by this package, or damaged ({one_line(error)})") from None
    device = device or torch.device("cuda" if use_gpu() else "cpu")
    return model.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def find_weights(path: Path) -> Path:
    """Return the weights file of a run folder, or the file itself.

    Raises:
        UserError: there is none.

    """
    for candidate in (path / BEST, path / LAST, path):
        if candidate.is_file():
            return candidate
    raise UserError(f"{path}: no weights there; give a run folder with {BEST} or {LAST}, or a .safetensors file")
