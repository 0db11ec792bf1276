import itertools

import pytest
import torch

from n2n_dist.models.blocks import AttentionGate, Downsample, ResBlock, SqueezeExcitation, Upsample, activate


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scaled_by(gate: SqueezeExcitation, x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(gate.excite(activate(gate.squeeze(mean))))


def border(window: int) -> int:
    """Pixels that the gates leave out on each side; with another rule raise `ResUNet.version`."""
    if window < 8:
        return 1 if window >= 4 else 0
    return 2 if window < 24 else window // 8


@pytest.mark.parametrize("size", [(9, 14), (5, 12), (12, 5), (6, 6), (5, 5), (1, 20), (20, 18)])
@pytest.mark.parametrize("window", [1, 3, 4, 8, 17])
def test_gates_see_the_inner_mean_of_every_window(window: int, size: tuple[int, int]) -> None:
    gate = SqueezeExcitation(8)
    gate.window = window
    x = random_maps(2, 8, *size)
    mean = torch.empty_like(x)
    for row, column in itertools.product(*map(range, size)):
        inner = []
        for place, length in zip((row, column), size, strict=True):
            width = min(window, length)
            # centred where it can be, else the nearest window that lies inside
            start = max(0, min(place - (width - 1) // 2, length - width))
            inner.append(slice(start + border(width), start + width - border(width)))
        mean[:, :, row, column] = x[:, :, inner[0], inner[1]].mean((2, 3))
    torch.testing.assert_close(gate(x), scaled_by(gate, x, mean))


@pytest.mark.parametrize("window", [32, 33, 1000])
def test_window_that_covers_the_map_is_the_inner_mean_of_the_map(window: int) -> None:
    gate = SqueezeExcitation(8)
    x = random_maps(2, 8, 9, 32)
    whole = gate(x)
    torch.testing.assert_close(whole, scaled_by(gate, x, x[:, :, 2:7, 4:28].mean((2, 3), keepdim=True)))
    gate.window = window
    torch.testing.assert_close(gate(x), whole)


def test_sliding_mean_of_a_large_bright_map_stays_exact() -> None:
    gate = SqueezeExcitation(4)
    gate.window = 32
    x = 100 + random_maps(1, 4, 40, 2000)
    wide = gate(x)
    torch.testing.assert_close(wide[..., 900:1100], gate(x[..., 800:1200])[..., 100:300], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [8, 16, 64])
def test_zero_padding_within_a_block_does_not_reach_its_gate(window: int) -> None:
    """Else it learns from crops, a good part of them border, what does not hold in an image."""
    torch.manual_seed(0)
    block = ResBlock(8)
    block.gate.window = window
    crop, image = (block(torch.ones(1, 8, size, size)) for size in (window, 5 * window))
    torch.testing.assert_close(crop[..., 2:-2, 2:-2], image[..., 2 : window - 2, 2 : window - 2])
    torch.testing.assert_close(crop[..., window // 2, window // 2], image[..., 2 * window, 2 * window])
    assert (crop[..., 0, 0] - crop[..., 4, 4]).abs().max() > 0.01  # it shows at the border itself


def test_block_starts_near_the_identity_and_keeps_the_shape() -> None:
    torch.manual_seed(0)
    x = random_maps(2, 16, 9, 7)
    change = ResBlock(16)(x) - x
    assert change.shape == x.shape
    assert 0 < change.std() < 0.3 * x.std()


def test_units_that_are_off_everywhere_still_learn() -> None:
    torch.manual_seed(0)
    block = ResBlock(8)
    for layer in (block.conv1, block.gate.squeeze):
        torch.nn.init.constant_(layer.bias, -100.0)
    block(random_maps(2, 8, 9, 7)).square().mean().backward()
    assert block.conv1.weight.grad.abs().sum((1, 2, 3)).min() > 0
    assert block.gate.squeeze.weight.grad.abs().sum((1, 2, 3)).min() > 0


def test_attention_gate_weighs_every_place_between_nothing_and_all() -> None:
    torch.manual_seed(0)
    skip, signal = random_maps(2, 8, 6, 5), random_maps(2, 8, 6, 5, seed=1)
    gate = AttentionGate(8)
    weight = gate(skip, signal) / skip
    assert 0 < weight.min() < weight.max() < 1
    torch.testing.assert_close(weight, weight[:, :1].expand_as(weight), rtol=1e-4, atol=1e-5)  # one for all channels
    assert not torch.allclose(gate(skip, -signal), gate(skip, signal))


def test_upsample_undoes_the_shape_and_starts_without_a_checkerboard() -> None:
    torch.manual_seed(0)
    fine = random_maps(1, 8, 6, 10)
    coarse = Downsample(8)(fine)
    assert coarse.shape == (1, 16, 3, 5)
    up = Upsample(8)(coarse)
    assert up.shape == fine.shape
    torch.testing.assert_close(up, up[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2))


@pytest.mark.slow
def test_compiling_in_place_keeps_the_keys_and_the_result() -> None:
    torch.manual_seed(0)
    block = ResBlock(8)
    keys, x = list(block.state_dict()), random_maps(1, 8, 8, 8)
    eager = block(x)
    block.compile()
    torch.testing.assert_close(block(x), eager, rtol=1e-4, atol=1e-5)
    assert list(block.state_dict()) == keys
