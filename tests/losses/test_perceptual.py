from pathlib import Path

import pytest
import safetensors.torch
import torch

from n2n_dist import rng
from n2n_dist.errors import UserError
from n2n_dist.losses import perceptual as module
from n2n_dist.losses.perceptual import BUNDLED, VGGFeatures, matched_perceptual, perceptual
from n2n_dist.metrics import ALEXNET
from n2n_dist.noise import (
    Bernoulli,
    CorrelatedGaussian,
    Gaussian,
    Impulse,
    Noise,
    Poisson,
    PoissonGaussian,
    Speckle,
)

# Of the pair `astronaut_pair`, in float32: mean activation of the clean image, mean absolute and mean squared
# difference; computed once with torchvision's own weights rounded to half precision.
REFERENCE = {
    "relu1_2": (0.578296, 0.631333, 1.407554),
    "relu2_2": (0.829040, 1.281470, 6.917656),
    "relu3_3": (0.967385, 1.002594, 8.931229),
    "relu4_3": (0.358538, 0.364762, 2.060291),
    "relu5_3": (0.136599, 0.158789, 0.454913),
}
BUNDLED_LAYERS = ("relu1_2", "relu2_2", "relu3_3")


@pytest.fixture(scope="module")
def vgg() -> VGGFeatures:
    return VGGFeatures(BUNDLED_LAYERS)


@torch.inference_mode()
def check_reference(features: VGGFeatures, layers: list[str], pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    clean, noisy = (features(image) for image in pair)
    assert len(clean) == len(layers)
    for layer, a, b in zip(layers, clean, noisy, strict=True):
        found = (a.mean().item(), (a - b).abs().mean().item(), (a - b).square().mean().item())
        assert found == pytest.approx(REFERENCE[layer], rel=1e-4), layer


def test_bundled_features_have_the_reference_values(
    vgg: VGGFeatures, astronaut_pair: tuple[torch.Tensor, torch.Tensor]
) -> None:
    check_reference(vgg, list(BUNDLED_LAYERS), astronaut_pair)


@pytest.mark.slow
def test_deep_features_of_a_file_have_the_reference_values(
    shared: Path, astronaut_pair: tuple[torch.Tensor, torch.Tensor]
) -> None:
    deep = VGGFeatures(["relu5_3", "relu4_3"], shared / "weights" / "vgg16_features_fp16.safetensors")
    check_reference(deep, ["relu4_3", "relu5_3"], astronaut_pair)  # shallowest first


def random_image(channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_loss_is_the_mean_over_layers_and_reaches_the_prediction_alone(vgg: VGGFeatures) -> None:
    prediction, target = random_image().requires_grad_(), random_image(seed=1).requires_grad_()
    loss = perceptual(vgg, prediction, target)
    by_hand = [(a - b).abs().mean() for a, b in zip(vgg(prediction), vgg(target), strict=True)]
    torch.testing.assert_close(loss, sum(by_hand) / 3)
    loss.backward()
    assert prediction.grad.abs().sum() > 0
    assert target.grad is None
    assert perceptual(vgg, target, target).item() == 0


def test_matched_is_the_energy_distance_and_reaches_both_draws(vgg: VGGFeatures) -> None:
    first, second, target = (random_image(seed=seed).requires_grad_() for seed in range(3))
    loss = matched_perceptual(vgg, first, second, target)
    by_hand = (perceptual(vgg, first, target) + perceptual(vgg, second, target) - perceptual(vgg, first, second)) / 2
    torch.testing.assert_close(loss, by_hand)
    assert loss > 0
    loss.backward()
    assert first.grad.abs().sum() > 0
    assert second.grad.abs().sum() > 0
    assert target.grad is None
    torch.testing.assert_close(matched_perceptual(vgg, first, first, target), perceptual(vgg, first, target))


class Bend(torch.nn.Module):
    """A feature of 2 x 2 pixels that is not linear."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [torch.nn.functional.avg_pool2d(torch.relu(image - 0.5) + image.square(), 2)]


def gradients(noise: Noise, level: float, clean: float, value: float, matched: bool) -> torch.Tensor:
    """Derivative of the loss at every pixel of a constant prediction, against noisy versions of a constant image."""
    prediction = torch.full((1, 500, 500), value, requires_grad=True)

    def draw(image: torch.Tensor, purpose: str) -> torch.Tensor:
        return noise(image, level, rng.generator(0, 0, purpose, "cpu"))

    target = draw(torch.full((1, 500, 500), clean), "noise-target")
    if matched:
        first, second = (draw(prediction, f"noise-prediction-{number}") for number in (1, 2))
        loss = matched_perceptual(Bend(), first, second, target)
    else:
        loss = perceptual(Bend(), prediction, target)
    loss.backward()
    return prediction.grad.double().flatten() * prediction.numel()


NOISES = [
    (Gaussian(), 60.0),
    (CorrelatedGaussian(), 60.0),
    (Poisson(), 10.0),
    (PoissonGaussian(read=1.0), 10.0),
    (Bernoulli(), 0.5),
    (Impulse(), 0.5),
    (Speckle(), 4.0),
]


@pytest.mark.parametrize(("noise", "level"), NOISES, ids=str)
@pytest.mark.parametrize("clean", [0.1, 0.55])
def test_matched_is_at_rest_at_the_clean_image_whatever_the_noise(noise: Noise, level: float, clean: float) -> None:
    found = gradients(noise, level, clean, clean, matched=True)
    independent = len(found) / (50 if noise.name == "correlated" else 4)
    assert abs(found.mean()) <= 4 * found.std() / independent**0.5
    below = gradients(noise, level, clean, 0.8 * clean, matched=True).mean()
    above = gradients(noise, level, clean, 1.2 * clean, matched=True).mean()
    assert below < 0 < above


@pytest.mark.parametrize(("noise", "level"), NOISES, ids=str)
def test_plain_is_not(noise: Noise, level: float) -> None:
    found = gradients(noise, level, 0.55, 0.55, matched=False)
    assert abs(found.mean()) > 5 * found.std() / (len(found) / 50) ** 0.5


def test_weights_are_frozen_and_stay_as_they_are(vgg: VGGFeatures) -> None:
    assert not any(p.requires_grad for p in vgg.parameters())
    before = {name: value.clone() for name, value in vgg.state_dict().items()}
    vgg.train()
    perceptual(vgg, random_image().requires_grad_(), random_image(seed=1)).backward()
    assert all(p.grad is None for p in vgg.parameters())
    assert all(torch.equal(value, before[name]) for name, value in vgg.state_dict().items())


def test_grey_is_repeated_to_three_channels(vgg: VGGFeatures) -> None:
    grey = random_image(1)
    for a, b in zip(vgg(grey), vgg(grey.repeat(1, 3, 1, 1)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layers", [["relu3_4"], ["relu1_2", "conv1"], []])
def test_unknown_layers_are_refused_by_name(layers: list[str]) -> None:
    with pytest.raises(UserError, match=r"loss\.layers .*relu1_1, relu1_2") as caught:
        VGGFeatures(layers)
    assert str(layers) in str(caught.value)


def test_weights_that_are_missing_or_too_short_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vgg.safetensors"
    with pytest.raises(UserError, match=f"{path}.*loss.weights"):
        VGGFeatures(["relu1_2"], path)
    with pytest.raises(UserError, match=f"{BUNDLED}.*deeper weights"):
        VGGFeatures(["relu4_1"], BUNDLED)
    few = {name: value for name, value in safetensors.torch.load_file(BUNDLED).items() if "features.0." in name}
    safetensors.torch.save_file(few, path)
    assert VGGFeatures(["relu1_1"], path)(random_image())[0].shape == (2, 64, 16, 16)
    with pytest.raises(UserError, match=r"loss\.weights .*alexnet.*another network than VGG-16"):
        VGGFeatures(["relu1_1"], ALEXNET)
    monkeypatch.setattr(module, "BUNDLED", tmp_path / "none.safetensors")
    with pytest.raises(UserError, match=r"none\.safetensors.*install the package again"):
        VGGFeatures(["relu1_2"])
