"""Random numbers as a pure function of (seed, position, purpose).

`position` is the number of a sample in the run: 0 for the first sample that the run ever saw. Because
nothing else enters, crops, flips and noise are the same for any number of ranks and workers, before
and after a resume, and a checkpoint holds no RNG state.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def key(seed: int, position: int, purpose: str) -> int:
    """Hash (seed, position, purpose) to an integer in [0, 2**63)."""
    digest = hashlib.blake2b(f"{seed}/{position}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def integer(seed: int, position: int, purpose: str, bound: int) -> int:
    """Draw an integer in [0, bound); the bias of the modulo is below bound / 2**63."""
    return key(seed, position, purpose) % bound


def uniform(seed: int, position: int, purpose: str) -> float:
    """Draw a float in [0, 1)."""
    return key(seed, position, purpose) / 2**63


def generator(seed: int, position: int, purpose: str, device: torch.device | str) -> torch.Generator:
    """Make the random generator of one sample and purpose on `device`.

    The numbers are equal on all devices of one kind; a CPU and a GPU give different ones. A CPU's generator is seeded
    by the lower 32 bits of the key: of the fields of a long run some are the same, of two given ones once in 2**32.
    """
    import torch  # the order of samples works without it

    return torch.Generator(device).manual_seed(key(seed, position, purpose))


def permutation(count: int, name: str) -> np.ndarray:
    """Return a random permutation of range(count) that only `name` chooses, int64 [count]."""
    words = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), np.uint64)
    return np.argsort(np.random.Philox(key=words).random_raw(count), kind="stable")
