import numpy as np
import pytest
import torch
from torch.nn import functional as F

from n2n_dist.errors import UserError
from n2n_dist.models.blocks import SqueezeExcitation
from n2n_dist.models.resunet import ResUNet, ResUNetSettings


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(channels: int = 3, crop: int = 0, **settings: object) -> ResUNet:
    """Make a network whose last layer does something, as after training."""
    torch.manual_seed(0)
    model = ResUNet(ResUNetSettings(channels=channels, width=8, **{"depths": [1, 1, 1], **settings}), crop)
    for layer in (model.head, model.local_filter):
        torch.nn.init.normal_(layer.weight, std=0.1)
    for module in model.modules():
        if isinstance(module, SqueezeExcitation):
            torch.nn.init.normal_(module.squeeze.weight)
            torch.nn.init.normal_(module.excite.weight)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (3, 2), (5, 64), (33, 47), (64, 64)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_size_and_channels_and_an_untrained_network_returns_its_input(channels: int, size: tuple[int, int]) -> None:
    x = random_images(2, channels, *size)
    assert torch.equal(ResUNet(ResUNetSettings(channels=channels, width=8, depths=[1, 1, 1]), crop=32)(x), x)
    changed = lively(channels, crop=32)(x)
    assert changed.shape == x.shape
    assert changed.isfinite().all()
    assert (changed != x).any()


@pytest.mark.parametrize("unshuffle", [1, 2, 4])
@pytest.mark.parametrize("depths", [[1], [2, 1], [1, 1, 1, 1]])
def test_every_shape_of_network_runs(depths: list[int], unshuffle: int) -> None:
    x = random_images(1, 3, 33, 47)
    model = lively(depths=depths, unshuffle=unshuffle)
    assert model(x).shape == x.shape
    assert len(model.encoder) == len(depths)
    assert [len(blocks) for blocks in model.encoder] == depths


def test_odd_sizes_see_a_mirrored_edge() -> None:
    model = lively()
    x = random_images(1, 3, 29, 38)
    assert model.divisor == 8
    mirrored = F.pad(x, (0, 2, 0, 3), mode="reflect")
    torch.testing.assert_close(model(x), model(mirrored)[..., :29, :38])
    tiny = random_images(1, 3, 3, 2)
    again_and_again = np.pad(tiny.numpy(), ((0, 0), (0, 0), (0, 5), (0, 6)), mode="reflect")
    torch.testing.assert_close(model(tiny), model(torch.from_numpy(again_and_again))[..., :3, :2])


def test_an_image_is_denoised_alike_whatever_is_in_its_batch() -> None:
    model = lively()
    x = random_images(4, 3, 16, 24)
    for training in (False, True):
        model.train(training)
        torch.testing.assert_close(model(x)[:1], model(x[:1]))


def test_a_network_narrower_than_its_pixels_takes_all_noise_away() -> None:
    """The 8 features of a place hold at most 8 of the 12 values of its 2 x 2 pixels, and leave a third of the noise."""
    torch.manual_seed(0)
    model = ResUNet(ResUNetSettings(width=8, depths=[1, 1]), crop=32)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(90):
        noise = random_images(2, 3, 32, 32, seed=step)
        loss = model(0.1 * noise).square().mean() / 0.1**2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1


def test_values_outside_0_and_1_pass() -> None:
    x = random_images(1, 3, 16, 16) * 100
    assert torch.equal(ResUNet(ResUNetSettings(width=8, depths=[1, 1]))(x), x)
    shifted = ResUNet(ResUNetSettings(width=8, depths=[1, 1]))
    torch.nn.init.constant_(shifted.head.bias, 1000.0)
    torch.testing.assert_close(shifted(x), x - 1000)


@pytest.mark.parametrize("unshuffle", [1, 2, 4])
def test_pixels_are_centred_on_the_local_mean_which_enters_beside_them(unshuffle: int) -> None:
    model = lively(unshuffle=unshuffle)
    seen = {}
    for name in ("stem_conv", "mean_branch"):
        layer = getattr(model, name)
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.__setitem__(name, inputs[0]))
    x = 0.05 * random_images(2, 3, 24 * unshuffle, 24 * unshuffle) + torch.tensor([0.3, 0.5, 0.6]).view(1, 3, 1, 1)
    model(x)
    assert seen["mean_branch"].shape == (2, 3, 24, 24)
    for row, column in ((0, 0), (12, 3), (23, 23)):  # 8 feature pixels to each side, of those that there are
        rows, columns = (slice(max(0, place - 8) * unshuffle, (place + 9) * unshuffle) for place in (row, column))
        mean = x[:, :, rows, columns].mean((2, 3))
        torch.testing.assert_close(seen["mean_branch"][:, :, row, column], mean)
        pixels = (
            x[:, :, row * unshuffle : (row + 1) * unshuffle, column * unshuffle : (column + 1) * unshuffle]
            - mean[..., None, None]
        )
        torch.testing.assert_close(seen["stem_conv"][:, :, row, column], pixels.reshape(2, -1))


def test_a_bright_star_hardly_moves_the_sky_around_it() -> None:
    model = lively()
    seen = []
    model.stem_conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    sky = 0.02 * random_images(1, 3, 32, 32)
    star = sky.clone()
    star[..., 16, 16] = 10_000
    model(sky)
    model(star)
    assert (seen[0] - seen[1])[..., 7, 7].abs().max() < 0.003  # next to it


def test_result_is_float32_under_autocast() -> None:
    x = random_images(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = ResUNet(ResUNetSettings(width=8, depths=[1, 1]))(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, x)  # the residual sum is not rounded to bfloat16
    assert ResUNet(ResUNetSettings(width=8, depths=[1, 1])).bfloat16()(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("width", "depths"), [(8, [1, 1]), (16, [1, 2, 1]), (24, [2, 1]), (32, [1])])
def test_every_parameter_has_a_gradient_after_one_step(width: int, depths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    model = ResUNet(ResUNetSettings(width=width, depths=depths), crop=32)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    x, target = random_images(2, 3, 32, 32), random_images(2, 3, 32, 32, seed=1)
    for _ in range(2):
        optimiser.zero_grad()
        (model(x) - target).abs().mean().backward()
        optimiser.step()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


def test_gates_pool_over_the_training_crop_on_every_level() -> None:
    """A crop is seen as one without windows; of a larger image, each level sees what the crop covers there."""
    gates = [
        [m.window for m in blocks.modules() if isinstance(m, SqueezeExcitation)] for blocks in lively(crop=32).encoder
    ]
    assert gates == [[16], [8], [4]]
    limited, free = lively(crop=32), lively(crop=0)
    x = random_images(1, 3, 32, 32)
    torch.testing.assert_close(limited(x), free(x))
    x = torch.cat([x, 5 + random_images(1, 3, 32, 32, seed=1)], 3)
    assert (limited(x) - free(x)).abs().max() > 1e-3
    # a change far away does not reach a pixel through the gates
    far = torch.cat([random_images(1, 3, 32, 256), random_images(1, 3, 32, 128, seed=1)], 3)
    other = torch.cat([far[..., :256], 9 + far[..., 256:]], 3)
    torch.testing.assert_close(limited(far)[..., :64], limited(other)[..., :64], rtol=0, atol=1e-5)
    assert (free(far) - free(other))[..., :64].abs().max() > 1e-3


def part_and_name(item: tuple[str, torch.Tensor]) -> tuple[int, str]:
    parts = [
        "attention",
        "mean_branch",
        "decoder",
        "down",
        "encoder",
        "stem_conv",
        "head",
        "local_filter",
        "merge",
        "up",
    ]
    return parts.index(item[0].split(".")[0]), item[0]


def test_the_same_weights_denoise_as_they_did() -> None:
    """Where this fails, earlier weights and checkpoints are no longer good: raise `ResUNet.version`."""
    model = ResUNet(ResUNetSettings(channels=1, width=8, depths=[1, 1]), crop=16)
    with torch.no_grad():
        for number, (_, weights) in enumerate(sorted(model.state_dict().items(), key=part_and_name)):
            weights.copy_(0.5 * torch.sin(number + 1.7 * torch.arange(weights.numel())).view_as(weights))
        y = model(torch.sin(torch.arange(24.0 * 40)).view(1, 1, 24, 40))
    expected = [
        [1.2753, 5.3206, -1.1990, -5.4022],
        [-12.2685, -1.5081, 20.8798, -3.6467],
        [-14.3479, 1.6300, 17.0130, -0.7723],
        [-9.2021, 0.1715, 1.9509, -0.7559],
    ]
    torch.testing.assert_close(y[0, 0, ::7, ::13], torch.tensor(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_another_number_of_channels_is_refused(channels: int) -> None:
    with pytest.raises(UserError, match=rf"{channels} channels.*model\.channels 3"):
        lively()(torch.zeros(1, channels, 16, 16))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"channels": 0}, r"model\.channels 0"),
        ({"channels": 5}, r"model\.channels 5"),
        ({"width": 12}, r"model\.width 12"),
        ({"width": 0}, r"model\.width 0"),
        ({"depths": []}, r"model\.depths \[\]"),
        ({"depths": [1, 0]}, r"model\.depths \[1, 0\]"),
        ({"depths": [1] * 7}, r"model\.depths"),
        ({"unshuffle": 3}, r"model\.unshuffle 3"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(values: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        ResUNetSettings(**values)


@pytest.mark.parametrize(
    ("crop", "unshuffle", "depths", "divisor"),
    [(20, 2, [1, 1, 1], 8), (33, 2, [1], 2), (8, 4, [1] * 3, 16), (40, 1, [1] * 5, 16)],
)
def test_crop_that_is_no_multiple_of_the_coarsest_pixel_is_refused(
    crop: int, unshuffle: int, depths: list[int], divisor: int
) -> None:
    settings = ResUNetSettings(width=8, depths=depths, unshuffle=unshuffle)
    with pytest.raises(UserError, match=rf"data\.crop {crop}: must be a multiple of {divisor} .*{len(depths)} levels"):
        ResUNet(settings, crop)
    assert ResUNet(settings, 3 * divisor).divisor == divisor


@pytest.mark.gpu
def test_cpu_and_gpu_agree() -> None:
    model = lively(crop=32)
    x = random_images(2, 3, 45, 70)
    expected = model(x)
    found = model.to("cuda").to(memory_format=torch.channels_last)(x.to("cuda")).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)  # TF32
