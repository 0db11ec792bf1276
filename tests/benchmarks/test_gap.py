import json
import math
import subprocess
from pathlib import Path

import PIL.Image
import pytest
import torch
from support.processes import TINY

from benchmarks.gap import (
    BINS,
    COMBINATIONS,
    Measured,
    Row,
    brightness_bias,
    combinations,
    draw,
    gap,
    mean_bias,
    table,
)
from n2n_dist.building.build import build
from n2n_dist.building.plan import Options
from n2n_dist.config import load
from n2n_dist.errors import UserError
from n2n_dist.images.image import write_image
from n2n_dist.models.resunet import ResUNet, ResUNetSettings
from n2n_dist.models.weights import LAST, save_model
from n2n_dist.scenes import Grouping


def measured(psnr: float, bias: float = 0.0) -> Measured:
    return Measured(psnr, [bias] * BINS, [1 / BINS] * BINS)


@pytest.mark.parametrize("config", ["demo", "gaussian25"])
def test_every_combination_is_a_valid_configuration_with_either_target(config: str) -> None:
    for combination in COMBINATIONS.values():
        for supervised in ("true", "false"):
            load(Path(f"configs/{config}.yaml"), [*combination, f"pairs.supervised={supervised}"])


def test_a_chosen_combination_has_its_short_name_or_its_settings() -> None:
    assert combinations([]) == COMBINATIONS
    for name, settings in COMBINATIONS.items():
        assert combinations(settings[::-1]) == {name: settings[::-1]}
    assert combinations(["loss.pixel=l2", "noise.sigma=7"]) == {
        "loss.pixel=l2, noise.sigma=7": ("loss.pixel=l2", "noise.sigma=7")
    }


def test_the_gap_is_that_of_runs_of_one_seed() -> None:
    row = Row("name", [measured(30.0), measured(31.0)], [measured(30.1), measured(31.3)])
    assert row.gaps == pytest.approx([-0.1, -0.3])
    assert "| name | 30.500 | 30.700 | -0.200 | 0.100 | +0.00 | +0.00 |" in table([row])
    assert "| one seed |" in table([Row("name", [measured(30.0)], [measured(30.1)])])


def test_bias_leaves_out_what_is_rare() -> None:
    noisy = measured(30.0, bias=0.25)
    noisy.bias[3], noisy.share[3] = 50.0, 0.009
    row = Row("name", [noisy, measured(30.0, bias=0.75)], [measured(30.0, bias=-0.125)] * 2)
    found = mean_bias(row.noisy)
    assert math.isnan(found[3])
    assert found[4] == pytest.approx(0.5)
    assert "| +0.50 | -0.12 |" in table([row])


def test_bias_is_counted_by_the_brightness_of_the_output() -> None:
    output = torch.tensor([-0.2, 0.05, 0.15, 0.95, 1.0, 1.7])
    count, outputs, clean = brightness_bias(output, output - 0.01)
    assert count.tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    torch.testing.assert_close(outputs - clean, 0.01 * count, atol=1e-6, rtol=0)


def test_the_best_estimator_shows_no_bias_by_its_output() -> None:
    # a flat prior and Gaussian noise: the mean of what is left is the estimate
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(1_000_000, generator=generator)
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    grid = torch.linspace(0, 1, 1001)
    weights = torch.exp(-0.5 * ((torch.linspace(-0.5, 1.5, 2001)[:, None] - grid) / 0.1) ** 2)
    best = (weights * grid).sum(1) / weights.sum(1)
    estimate = best[((noisy + 0.5) * 1000).round().long().clamp(0, 2000)]
    count, outputs, total = brightness_bias(estimate, clean)
    assert ((outputs - total) / count * 255).abs().max() < 0.5
    by_clean = brightness_bias(clean, estimate)
    assert ((by_clean[2] - by_clean[1]) / by_clean[0] * 255).abs().max() > 5


def test_the_page_is_a_picture(tmp_path: Path) -> None:
    draw(
        [Row("a", [measured(30.0)], [measured(31.0)]), Row("b", [measured(20.0)], [measured(21.0)])], tmp_path / "p.png"
    )
    with PIL.Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 1000


@pytest.mark.slow
def test_runs_are_trained_once_and_reported(tmp_path: Path) -> None:
    settings = [*TINY[1:], "data.validation=shards/demo/validation", "validate.images=2", "train.steps=2"]
    settings += ["noise.name=poisson", "noise.lam=30", "loss.pixel=l2"]
    medians = []
    for _ in range(2):
        noisy, clean, difference = gap("demo", settings, 1, tmp_path)
        medians.append((noisy.median, clean.median, difference.median))
    runs = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert runs == ["poisson-30--L2-clean-0", "poisson-30--L2-noisy-0"]
    assert medians[0] == medians[1]
    assert medians[0][2] == pytest.approx(medians[0][0] - medians[0][1])
    assert f"| poisson 30, L2 | {medians[0][0]:.3f} |" in (tmp_path / "gap.md").read_text()
    assert (tmp_path / "gap.png").stat().st_size > 10_000


def test_weights_of_a_shorter_run_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was measured, given more steps, and stopped, has the weights of its first end."""
    settings = [*COMBINATIONS["poisson 30, L2"], "data.validation=shards/demo/validation", "train.steps=3"]
    folder = tmp_path / "poisson-30--L2-noisy-0"
    folder.mkdir()
    save_model(folder / LAST, ResUNet(ResUNetSettings(width=8, depths=[1]), crop=32), step=2)
    (folder / "config.yaml").write_text("of the shorter run")
    (folder / "gap.json").write_text(json.dumps(vars(measured(30.0))))

    def stopped(command: list[str], **_: object) -> subprocess.CompletedProcess:
        given = [part for part in command if "=" in part]
        (folder / "config.yaml").write_text(load(Path("configs/demo.yaml"), given).to_yaml())
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", stopped)
    for _ in range(2):
        with pytest.raises(UserError, match=r"noisy-0: this run was stopped; the same command continues it"):
            list(gap(Path("configs/demo.yaml"), settings, 1, tmp_path))


def test_it_is_measured_on_the_images_of_training_however_bright(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the clean references of captures, which synthetic pairs do not use."""
    for name, value in (("0", 2.0), ("clean", 1.0)):
        write_image(tmp_path / f"scenes/0/{name}.tif", torch.full((64, 64, 3), value).numpy())
    build(tmp_path / "scenes", tmp_path / "own", Options(Grouping("folder", clean="clean"), white=1.0))
    settings = ["noise.sigma=25", f"data.validation={tmp_path / 'own'}", "train.steps=1"]
    returns_its_input = ResUNet(ResUNetSettings(width=8, depths=[1]), crop=32)
    for folder in (tmp_path / "noise.sigma-25-noisy-0", tmp_path / "noise.sigma-25-clean-0"):
        folder.mkdir()
        save_model(folder / LAST, returns_its_input, step=1)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0))
    list(gap(Path("configs/demo.yaml"), settings, 1, tmp_path))
    found = Measured(**json.loads((tmp_path / "noise.sigma-25-noisy-0/gap.json").read_text()))
    # what is brighter than the image is clipped, half of the noise: 20.17 dB and 3 more
    assert found.psnr == pytest.approx(23.2, abs=0.2)


def test_a_run_of_another_network_is_not_reported(tmp_path: Path) -> None:
    settings = ["noise.sigma=25", "data.validation=shards/demo/validation", "train.steps=1"]
    folder = tmp_path / "noise.sigma-25-noisy-0"
    given = [*settings, "pairs.supervised=false", "run.seed=0", f"run.dir={folder}"]
    folder.mkdir()
    (folder / "config.yaml").write_text(load(Path("configs/demo.yaml"), given).to_yaml())
    (folder / "gap.json").write_text(json.dumps(vars(measured(30.0))))
    earlier = ResUNet(ResUNetSettings(width=8, depths=[1]), crop=32)
    earlier.version = ResUNet.version - 1
    save_model(folder / LAST, earlier, step=1)
    with pytest.raises(UserError, match=r"last.safetensors: network resunet of version .* use the one"):
        list(gap(Path("configs/demo.yaml"), settings, 1, tmp_path))


def test_what_cannot_run_is_said_before_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    validation = "data.validation=shards/demo/validation"
    with pytest.raises(UserError, match=r"noise.sigma: unknown setting"):  # of the third combination only
        list(gap(Path("configs/blind.yaml"), [validation, "validate.level=null"], 1, tmp_path))
    with pytest.raises(UserError, match=r"validate.level 25.0: not of all noises; leave it out, or choose one noise"):
        list(gap(Path("configs/gaussian25.yaml"), [validation, "validate.level=25"], 1, tmp_path))
    assert not list(tmp_path.iterdir())


def test_without_validation_there_is_nothing_to_measure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.validation null: the gap is measured there"):
        list(gap(Path("configs/demo.yaml"), ["data.validation=null"], 1, tmp_path))
    with pytest.raises(UserError, match=r"--seeds 0: must be 1 or more"):
        list(gap(Path("configs/demo.yaml"), [], 0, tmp_path))
    with pytest.raises(UserError, match=r"pairs.name captures: the gap needs clean images"):
        list(gap(Path("configs/demo.yaml"), ["pairs.name=captures", "loss.pixel=l2"], 1, tmp_path))
