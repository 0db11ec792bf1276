from pathlib import Path

import pytest
import torch

from n2n_dist.errors import UserError
from n2n_dist.images.image import Image
from n2n_dist.inference.tile import HALO, denoise_image, denoise_tiled
from n2n_dist.models.resunet import ResUNet, ResUNetSettings
from n2n_dist.shards.index import Index
from n2n_dist.shards.reading import read_pixels

CPU = torch.device("cpu")
DEMO = Path(__file__).resolve().parents[2] / "shards" / "demo"


def demo_tile(part: str, number: int) -> torch.Tensor:
    tar, sample = Index([DEMO / part]).sample(number)
    return torch.from_numpy(read_pixels(tar, sample, sample.captures[0], (0, 0, 256, 256))).permute(2, 0, 1)


@pytest.fixture(scope="module")
def trained() -> ResUNet:
    """A network that has learned to take noise off, in some seconds."""
    torch.manual_seed(0)
    crop = 64
    model = ResUNet(ResUNetSettings(width=16, depths=[1, 1]), crop)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    clean = demo_tile("train", 20)
    for _ in range(160):
        top, left = torch.randint(0, 256 - crop, (2,), generator=generator).tolist()
        scene = clean[None, :, top : top + crop, left : left + crop]
        first, second = (scene + 25 / 255 * torch.randn(scene.shape, generator=generator) for _ in range(2))
        optimiser.zero_grad()
        (model(first) - second).abs().mean().backward()
        optimiser.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def noisy() -> torch.Tensor:
    """Parts of four demo tiles side by side, with noise."""
    rows = [torch.cat([demo_tile("validation", n)[:, :205, :192] for n in pair], 2) for pair in ((0, 2), (5, 7))]
    clean = torch.cat(rows, 1)
    return clean + 25 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("size", "tile"),
    [((384, 384), 128), ((331, 263), 100), ((401, 90), 64)],
)
def test_tiles_agree_with_the_whole_image(
    trained: ResUNet, noisy: torch.Tensor, size: tuple[int, int], tile: int
) -> None:
    image = noisy[:, : size[0], : size[1]]
    with torch.inference_mode():
        whole = trained(image[None])[0]
    assert (whole - image).abs().mean() > 5 / 255  # the network does something
    tiled = denoise_tiled(trained, image, CPU, tile)
    assert (tiled - whole).abs().max() < 0.5 / 255
    assert tiled.shape == image.shape


def test_without_surroundings_tiles_would_show(trained: ResUNet, noisy: torch.Tensor) -> None:
    """The test above can fail."""
    image = noisy[:, :256, :256]
    with torch.inference_mode():
        whole = trained(image[None])[0]
    assert (denoise_tiled(trained, image, CPU, 128, halo=0) - whole).abs().max() > 0.5 / 255


def test_tiles_agree_for_a_deep_network_with_many_levels() -> None:
    """Pieces must start on the grid of the coarsest level; its divisor here is 32, half the halo."""
    torch.manual_seed(0)
    model = (
        ResUNet(ResUNetSettings(channels=1, width=8, depths=[1] * 4, unshuffle=4), crop=32).eval().requires_grad_(False)
    )
    for layer in (model.head, model.local_filter):
        torch.nn.init.normal_(layer.weight, std=0.01)
    image = torch.rand(1, 401, 301, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = model(image[None])[0]
    difference = (denoise_tiled(model, image, CPU, 96, HALO) - whole).abs().max()
    assert difference < 0.01 * (whole - image).abs().max()


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (70, 3), (129, 128)])
def test_any_size_is_covered(size: tuple[int, int]) -> None:
    model = ResUNet(ResUNetSettings(channels=2, width=8, depths=[1, 1]))
    torch.nn.init.constant_(model.head.bias, 0.25)
    image = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(denoise_tiled(model, image, CPU, 64, 16), image - 0.25)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_another_number_of_channels_is_refused(channels: int) -> None:
    image = Image.from_array(torch.zeros(8, 8, channels).numpy())
    with pytest.raises(UserError, match=f"{channels} channels.*3"):
        denoise_image(ResUNet(ResUNetSettings(width=8, depths=[1])), image)
