import itertools

import numpy as np
import pytest
import torch

from n2n_dist import rng

PLACES = list(itertools.product((0, 1, 2**40), (0, 1, 10**12), ("top", "left", "noise-input", "noise-target")))


def test_every_seed_position_and_purpose_has_its_own_key() -> None:
    assert len({rng.key(*place) for place in PLACES}) == len(PLACES)
    assert rng.key(1, 23, "a") != rng.key(12, 3, "a")
    assert all(0 <= rng.key(*place) < 2**63 for place in PLACES)


def test_keys_are_a_format_that_releases_keep() -> None:
    """A checkpoint holds no random state: a resumed run must draw what the first one would have drawn."""
    assert rng.key(0, 0, "crop") == 1893552019752581627
    assert rng.integer(0, 0, "a", 10) == 4
    assert rng.uniform(0, 0, "a") == pytest.approx(0.47792406043387525, abs=1e-15)


def test_draws_are_level() -> None:
    numbers = [rng.integer(0, position, "top", 7) for position in range(7000)]
    counts = np.bincount(numbers, minlength=7)
    assert len(counts) == 7
    assert np.abs(counts - 1000).max() < 4 * (7000 * (1 / 7) * (6 / 7)) ** 0.5
    uniforms = np.array([rng.uniform(0, position, "level") for position in range(4000)])
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    assert abs(uniforms.mean() - 0.5) < 4 * (1 / 12 / 4000) ** 0.5


def draw(seed: int, position: int, purpose: str, device: str = "cpu") -> torch.Tensor:
    return torch.randn(100, generator=rng.generator(seed, position, purpose, device), device=device)


def test_fields_are_equal_for_equal_keys_and_differ_otherwise() -> None:
    torch.manual_seed(0)
    first = draw(5, 7, "noise-input")
    torch.randn(10)  # the global generator has no part in it
    assert torch.equal(first, draw(5, 7, "noise-input"))
    for other in (draw(6, 7, "noise-input"), draw(5, 8, "noise-input"), draw(5, 7, "noise-target")):
        assert not torch.equal(first, other)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    draw(0, 0, "noise-input")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.gpu
def test_fields_are_drawn_on_the_gpu() -> None:
    field = draw(5, 7, "noise-input", "cuda")
    assert field.device.type == "cuda"
    assert torch.equal(field, draw(5, 7, "noise-input", "cuda"))
