import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import processes

from n2n_dist.building.build import build
from n2n_dist.building.plan import Options
from n2n_dist.data.dataset import DataSettings
from n2n_dist.distributed.backend import Backend
from n2n_dist.errors import UserError
from n2n_dist.images.image import write_image
from n2n_dist.models.resunet import ResUNet, ResUNetSettings
from n2n_dist.noise import Bernoulli, Gaussian, NoNoise, Poisson
from n2n_dist.pairs import Captures, Neighbours, Synthetic
from n2n_dist.scenes import Grouping
from n2n_dist.shards.index import Index
from n2n_dist.training.validation import ValidateSettings, Validation, selection_score

DEMO = processes.ROOT / "shards/demo/validation"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def untrained() -> ResUNet:
    """A network that returns its input."""
    return ResUNet(ResUNetSettings(width=8, depths=[1]), crop=32).eval()


def test_numbers_are_those_of_the_noise_and_do_not_change(backend: Backend, untrained: ResUNet) -> None:
    validation = Validation(
        {"demo": DEMO}, Gaussian(sigma=25.0), Synthetic(), ValidateSettings(images=3, panels=2), 3, CPU, DataSettings()
    )
    scores, panels = validation.run(untrained, backend)
    assert list(scores) == ["demo/noisy_psnr", "demo/psnr", "demo/ssim", "demo/lpips"]
    assert scores["demo/noisy_psnr"] == pytest.approx(20.17, abs=0.05)  # 20 log10(255 / 25)
    assert scores["demo/psnr"] >= scores["demo/noisy_psnr"]  # the output is clipped, the input is not
    assert 0 < scores["demo/ssim"] < 1
    assert 0 < scores["demo/lpips"] < 2
    assert [len(row) for row in panels["demo"]] == [3, 3]
    noisy, denoised, reference = panels["demo"][0]
    torch.testing.assert_close(denoised, noisy)
    assert not torch.equal(noisy, reference)
    assert (noisy - reference).std().item() == pytest.approx(25 / 255, rel=0.01)
    assert validation.run(untrained, backend)[0] == scores, "the noise of a sample is always the same"


@pytest.mark.parametrize(
    ("noise", "level", "sigma"), [(Gaussian(sigma=[0, 50]), None, 25), (Gaussian(sigma=[5, 50]), 15.0, 15)]
)
def test_a_range_is_measured_at_its_middle_or_at_the_given_level(
    backend: Backend, untrained: ResUNet, noise: Gaussian, level: float | None, sigma: float
) -> None:
    settings = ValidateSettings(images=1, level=level)
    _, panels = Validation({"demo": DEMO}, noise, Synthetic(), settings, 3, CPU, DataSettings()).run(untrained, backend)
    noisy, _, reference = panels["demo"][0]
    assert (noisy - reference).std().item() == pytest.approx(sigma / 255, rel=0.01)


def test_captures_without_a_reference_give_an_unbiased_estimate(
    backend: Backend, untrained: ResUNet, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    for scene in range(2):
        clean = torch.full((32, 32, 3), 0.4 + 0.1 * scene)
        for capture in range(2):
            field = torch.randn(clean.shape, generator=generator) * 10 / 255
            write_image(tmp_path / f"scenes/{scene}/{capture}.tif", (clean + field).numpy())
    build(tmp_path / "scenes", tmp_path / "captures", Options(Grouping("folder"), white=1.0))
    validation = Validation(
        {"own": tmp_path / "captures"}, Gaussian(), Captures(), ValidateSettings(), 3, CPU, DataSettings()
    )
    scores, panels = validation.run(untrained, backend)
    assert len(panels["own"]) == 2
    assert list(scores) == [
        f"own/{name}" for name in ("noisy_upsnr", "upsnr", "upsnr_low", "upsnr_high", "psnr_to_capture")
    ]
    # a network that returns its input leaves all the noise: 20 log10(255 / 10)
    assert scores["own/upsnr"] == pytest.approx(28.13, abs=0.2)
    assert scores["own/upsnr"] == pytest.approx(scores["own/noisy_upsnr"], abs=1e-4)
    assert scores["own/upsnr_low"] < 28.13 < scores["own/upsnr_high"]
    # two captures differ by both of their noises
    assert scores["own/psnr_to_capture"] == pytest.approx(scores["own/upsnr"] - 10 * math.log10(2), abs=1e-3)

    for scene, value in enumerate((0.4, 0.5)):
        write_image(tmp_path / f"scenes/{scene}/clean.tif", torch.full((32, 32, 3), value).numpy())
    build(tmp_path / "scenes", tmp_path / "with_clean", Options(Grouping("folder", clean="clean"), white=1.0))
    sets = {"own": tmp_path / "with_clean"}
    scores, _ = Validation(sets, Gaussian(), Captures(), ValidateSettings(), 3, CPU, DataSettings()).run(
        untrained, backend
    )
    assert list(scores) == ["own/noisy_psnr", "own/psnr", "own/ssim", "own/lpips"]
    assert scores["own/noisy_psnr"] == pytest.approx(28.13, abs=0.2)

    with pytest.raises(UserError, match=r"data.validation single: .* has single images, nothing to compare them with"):
        Validation({"single": make_shards(2)}, Gaussian(), Captures(), ValidateSettings(), 3, CPU, DataSettings())


def test_single_noisy_images_are_compared_with_their_reference_if_they_have_one(
    backend: Backend, untrained: ResUNet, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"data.validation single: .* has single images, .*\(noise.sigma=25\), or set"):
        Validation({"single": make_shards(2)}, NoNoise(), Neighbours(), ValidateSettings(), 3, CPU, DataSettings())
    for name, value in (("noisy", 0.5), ("clean", 0.6)):
        write_image(tmp_path / f"scenes/0/{name}.tif", torch.full((32, 32, 3), value).numpy())
    build(tmp_path / "scenes", tmp_path / "own", Options(Grouping("folder", clean="clean"), white=1.0))
    sets = {"own": tmp_path / "own"}
    supervised = Validation(sets, NoNoise(), Captures(), ValidateSettings(), 3, CPU, DataSettings())
    assert supervised.run(untrained, backend)[0]["own/psnr"] == pytest.approx(20, abs=0.01)
    real = Validation(sets, NoNoise(), Neighbours(), ValidateSettings(), 3, CPU, DataSettings())
    assert real.run(untrained, backend)[0]["own/psnr"] == pytest.approx(20, abs=0.01)
    added = Validation(sets, Gaussian(), Neighbours(), ValidateSettings(), 3, CPU, DataSettings())
    assert added.run(untrained, backend)[0]["own/noisy_psnr"] == pytest.approx(20.17, abs=0.2)


def test_a_black_tile_does_not_make_the_mean_infinite(backend: Backend, untrained: ResUNet, tmp_path: Path) -> None:
    for name, value in (("black", 0.0), ("grey", 0.3)):
        write_image(tmp_path / f"images/{name}.tif", torch.full((32, 32, 3), value).numpy())
    build(tmp_path / "images", tmp_path / "own", Options(white=1.0))
    validation = Validation(
        {"own": tmp_path / "own"}, Poisson(lam=30.0), Synthetic(), ValidateSettings(), 3, CPU, DataSettings()
    )
    scores, _ = validation.run(untrained, backend)
    assert scores["own/noisy_psnr"] == pytest.approx((100 + 20) / 2, abs=0.3)  # 10 log10(30 / 0.3)
    assert scores["own/psnr"] < 70


def test_a_level_that_the_noise_cannot_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"validate.level 25.0: must be a finite number >= 0.001 and <= 1$"):
        Validation({"demo": DEMO}, Bernoulli(), Synthetic(), ValidateSettings(level=25.0), 3, CPU, DataSettings())


def test_shards_of_another_number_of_channels_are_refused(make_shards: Callable[..., Path]) -> None:
    grey = make_shards(2, size=(40, 36, 1))
    with pytest.raises(UserError, match=r"data.validation grey: .* images of 1 channels, model.channels is 3"):
        Validation({"grey": grey}, Gaussian(), Synthetic(), ValidateSettings(), 3, CPU, DataSettings())


def test_two_channels_have_no_lpips(backend: Backend, make_shards: Callable[..., Path]) -> None:
    pair = make_shards(2, size=(40, 36, 2))
    model = ResUNet(ResUNetSettings(channels=2, width=8, depths=[1]), crop=32).eval()
    scores, _ = Validation({"pair": pair}, Poisson(), Synthetic(), ValidateSettings(), 2, CPU, DataSettings()).run(
        model, backend
    )
    assert list(scores) == ["pair/noisy_psnr", "pair/psnr", "pair/ssim"]


def test_an_unreadable_sample_is_replaced_and_named_up_to_the_tolerated_share(
    backend: Backend, untrained: ResUNet, make_shards: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_shards(6, encoding="png", size=(40, 36, 3))
    index = Index([folder])
    settings = ValidateSettings(images=5)

    def measure(max_bad: float) -> dict[str, float]:
        data = DataSettings(max_bad=max_bad)
        return Validation({"own": folder}, Gaussian(), Synthetic(), settings, 3, CPU, data).run(untrained, backend)[0]

    def damage(number: int) -> str:
        tar, sample = index.sample(number)
        with tar.open("r+b") as file:
            file.seek(sample.captures[0].offset)
            file.write(bytes(100))
        return sample.key

    whole = measure(0)
    first = damage(2)
    some = measure(0.001)
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith(f"replaced an unreadable sample of data.validation own: {index.paths[0]}: sample {first}: ")
    assert some != whole
    assert measure(0.001) == some
    with pytest.raises(UserError, match=r"data.max_bad 0: 1 of 5 samples of data.validation own cannot be read"):
        measure(0)
    damage(4)
    with pytest.raises(UserError, match=r"data.max_bad 0.3: 2 of 5 samples .* check the shards with: .* verify"):
        measure(0.3)
    assert measure(0.4).keys() == whole.keys()
    for number in (0, 1, 3, 5):
        damage(number)
    with pytest.raises(
        UserError, match=rf"data.validation: no sample can be read; the first: {index.paths[0]}: sample "
    ):
        measure(1)


def test_no_set_is_nothing_to_do(backend: Backend, untrained: ResUNet) -> None:
    validation = Validation({}, Gaussian(), Synthetic(), ValidateSettings(), 3, CPU, DataSettings())
    assert validation.run(untrained, backend) == ({}, {})


def test_the_best_weights_are_chosen_by_the_mean_of_the_sets() -> None:
    assert selection_score({"a/noisy_psnr": 1.0, "a/psnr": 30.0, "b/psnr": 20.0, "b/ssim": 0.5}) == 25.0
    assert selection_score({"a/noisy_upsnr": 1.0, "a/upsnr": 30.0, "a/upsnr_low": 20.0}) == 20.0


class Grey(ResUNet):
    """A network that returns a grey of 0.4."""

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        return torch.full_like(noisy, 0.4)


@pytest.mark.parametrize("error", [1e-6, -1e-6, -1e-4])
def test_an_estimated_error_below_zero_is_a_bound_and_not_the_best_by_luck(
    backend: Backend, tmp_path: Path, error: float
) -> None:
    """Both captures of a grey scene, and the estimate is the product of their noises."""
    field = torch.randn((64, 64, 1), generator=torch.Generator().manual_seed(0)) * 10 / 255
    other = torch.randn((64, 64, 1), generator=torch.Generator().manual_seed(1)) * 10 / 255
    together = (field * other).mean() / (field * field).mean()
    other += (error / (field * field).mean() - together) * field
    for number, noise in enumerate((field, other)):
        write_image(tmp_path / f"scenes/0/{number}.tif", (0.4 + noise).numpy())
    build(tmp_path / "scenes", tmp_path / "own", Options(Grouping("folder"), white=1.0))
    sets = {"own": tmp_path / "own"}
    validation = Validation(sets, NoNoise(), Captures(), ValidateSettings(), 1, CPU, DataSettings())
    scores, _ = validation.run(Grey(ResUNetSettings(channels=1, width=8, depths=[1]), crop=32).eval(), backend)
    assert scores["own/upsnr_high"] == math.inf
    assert (scores["own/upsnr"] == scores["own/upsnr_low"]) == (error < 0)
    assert scores["own/upsnr"] == pytest.approx(60 if error > 0 else 43.3, abs=0.8)
    assert selection_score(scores) == pytest.approx(43.3, abs=0.8)  # 1.96 (10 / 255)^2 / 64


def test_what_is_brighter_than_white_is_not_clipped_away(backend: Backend, tmp_path: Path) -> None:
    write_image(tmp_path / "images/0.tif", torch.linspace(0, 4, 64 * 64).reshape(64, 64, 1).numpy())
    build(tmp_path / "images", tmp_path / "own", Options(white=1.0))
    model = ResUNet(ResUNetSettings(channels=1, width=8, depths=[1]), crop=32).eval()  # returns its input
    sets = {"own": tmp_path / "own"}
    validation = Validation(sets, Gaussian(sigma=10.0), Synthetic(), ValidateSettings(), 1, CPU, DataSettings())
    scores, _ = validation.run(model, backend)
    assert scores["own/psnr"] == pytest.approx(28.13, abs=0.2)  # 20 log10(255 / 10)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"images": 0}, {"panels": -1}, {"level": -3.0}, {"level": 0.0}])
def test_values_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match=rf"validate\.{next(iter(wrong))} .*: must be"):
        ValidateSettings(**wrong)
