import contextlib
import csv
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from support.images import random_pixels

from n2n_dist import rng
from n2n_dist.errors import StorageError, UserError
from n2n_dist.files import write_atomically
from n2n_dist.images.image import read_image, write_image
from n2n_dist.inference import evaluate as module
from n2n_dist.inference.evaluate import evaluate, table
from n2n_dist.metrics import EXACT, psnr, to_8_bit
from n2n_dist.noise import Gaussian, Poisson


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two smooth images of different sizes."""
    for name, (height, width) in {"b/one.png": (48, 60), "two.png": (70, 41)}.items():
        rows, columns = np.mgrid[:height, :width]
        pixels = np.stack([rows * 3, columns * 4, rows + columns], -1).astype(np.uint8)
        write_image(tmp_path / "photos" / name, pixels)
    return tmp_path / "photos"


def test_untrained_network_scores_as_the_clipped_noisy_image(
    photos: Path, tmp_path: Path, make_weights: Callable[..., Path]
) -> None:
    rows = evaluate(make_weights(), photos, tmp_path / "out", Gaussian(sigma=25))
    assert [row.image for row in rows] == ["b/one.png", "two.png", "mean of 2"]
    for number, (row, name) in enumerate(zip(rows[:2], ("b/one.png", "two.png"), strict=True)):
        clean = torch.from_numpy(read_image(photos / name).normalised()).permute(2, 0, 1)[None]
        generator = rng.generator(0, number, "n2n2018", "cpu")
        noisy = clean + torch.randn(clean.shape[1:], generator=generator) * (25 / 255)
        assert row.values["noisy_psnr"] == pytest.approx(psnr(noisy, clean).item(), abs=1e-4)
        assert row.values["psnr"] == pytest.approx(psnr(to_8_bit(noisy), clean).item(), abs=1e-4)
        assert row.values["noisy_psnr"] == pytest.approx(20.17, abs=0.3)  # -20 log10(25 / 255)
        assert 0 < row.values["ssim"] < 1
        assert row.values["lpips"] > 0
    for column in ("noisy_psnr", "psnr", "ssim", "lpips"):
        assert rows[2].values[column] == pytest.approx((rows[0].values[column] + rows[1].values[column]) / 2)


def test_scores_and_pictures_are_written_and_can_be_repeated(
    photos: Path, tmp_path: Path, make_weights: Callable[..., Path]
) -> None:
    rows = evaluate(make_weights(), photos, tmp_path / "out", Gaussian(sigma=25))
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["image"], float(row["psnr"])) for row in found] == [(row.image, row.values["psnr"]) for row in rows]
    assert list(found[0]) == ["image", "noisy_psnr", "psnr", "ssim", "lpips"]
    picture = np.asarray(PIL.Image.open(tmp_path / "out" / "comparison.png"))
    assert picture.shape[0] > 48 + 70  # one row an image
    assert picture.shape[1] > 3 * 60  # noisy, denoised and clean
    clean = read_image(photos / "b" / "one.png").pixels
    np.testing.assert_array_equal(picture[:48, -60:], clean)
    assert evaluate(make_weights(), photos, tmp_path / "again", Gaussian(sigma=25)) == rows
    assert (tmp_path / "again" / "scores.csv").read_bytes() == (tmp_path / "out" / "scores.csv").read_bytes()
    assert table(rows).endswith("lower is better: lpips")
    assert all(row.image in table(rows) and f"{row.values['psnr']:.4f}" in table(rows) for row in rows)


def test_denoising_that_is_wrong_lowers_the_score(
    photos: Path, tmp_path: Path, make_weights: Callable[..., Path]
) -> None:
    right, wrong = (
        evaluate(make_weights(offset=o), photos, tmp_path / f"{o}", Gaussian(sigma=5))[-1] for o in (0.0, 0.3)
    )
    assert wrong.values["psnr"] < right.values["psnr"] - 10
    assert wrong.values["noisy_psnr"] == right.values["noisy_psnr"]


def test_other_noise_is_measured(photos: Path, tmp_path: Path, make_weights: Callable[..., Path]) -> None:
    few, many = (evaluate(make_weights(), photos, tmp_path / f"{n}", Poisson(lam=n))[-1] for n in (10, 1000))
    assert many.values["noisy_psnr"] == pytest.approx(few.values["noisy_psnr"] + 20, abs=0.3)


def test_grey_images_are_measured(tmp_path: Path, make_weights: Callable[..., Path]) -> None:
    write_image(tmp_path / "grey" / "a.png", random_pixels((40, 40, 1), np.uint16))
    (row, mean) = evaluate(make_weights(channels=1), tmp_path / "grey", tmp_path / "out", Gaussian(sigma=10))
    assert row.values["psnr"] == mean.values["psnr"] > 20


@pytest.mark.parametrize("channels", [2, 4])
def test_two_or_four_channels_are_measured_without_lpips(
    tmp_path: Path, make_weights: Callable[..., Path], channels: int
) -> None:
    write_image(tmp_path / "in" / "a.png", random_pixels((40, 40, channels)))
    rows = evaluate(make_weights(channels=channels), tmp_path / "in", tmp_path / "out", Gaussian(sigma=10))
    assert len(rows) == 2
    for row in rows:
        assert row.values["psnr"] > 20
        assert 0 < row.values["ssim"] < 1
        assert "lpips" not in row.values
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["image", "noisy_psnr", "psnr", "ssim"]
    assert "lpips" not in table(rows)


def test_scores_and_pictures_of_several_processes_are_put_in_order(
    photos: Path, tmp_path: Path, make_weights: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = evaluate(make_weights(), photos, tmp_path / "alone", Gaussian(sigma=25))
    monkeypatch.setattr(module, "gather_object", lambda found: found[::-1])
    assert evaluate(make_weights(), photos, tmp_path / "out", Gaussian(sigma=25)) == alone
    for name in ("scores.csv", "comparison.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_scores_that_are_there_already_are_kept(
    photos: Path, tmp_path: Path, make_weights: Callable[..., Path]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scores.csv").write_text("precious")
    with pytest.raises(UserError, match=rf"{tmp_path / 'out' / 'scores.csv'}: exists already.*--output"):
        evaluate(make_weights(), photos, tmp_path / "out", Gaussian(sigma=25))
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_an_exact_match_does_not_make_the_mean_infinite(tmp_path: Path, make_weights: Callable[..., Path]) -> None:
    write_image(tmp_path / "in" / "black.png", np.zeros((40, 40, 3), np.uint8))  # without light no photons
    write_image(tmp_path / "in" / "grey.png", np.full((40, 40, 3), 128, np.uint8))
    black, grey, mean = evaluate(make_weights(), tmp_path / "in", tmp_path / "out", Poisson(lam=30))
    assert black.values["psnr"] == black.values["noisy_psnr"] == EXACT
    assert mean.values["psnr"] == (EXACT + grey.values["psnr"]) / 2


@pytest.mark.parametrize("name", ["scores.csv", "comparison.png"])
def test_a_full_disk_leaves_no_half_of_a_result(
    photos: Path, tmp_path: Path, make_weights: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    @contextlib.contextmanager
    def full(path: Path) -> Iterator[Path]:
        with write_atomically(path) as temporary:
            yield temporary
            if path.name == name:
                raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(StorageError, match=rf"{name}: cannot be written \(No space left on device\); make room"):
        evaluate(make_weights(), photos, tmp_path / "out", Gaussian())
    assert not (tmp_path / "out" / "scores.csv").exists()
    monkeypatch.undo()
    assert len(evaluate(make_weights(), photos, tmp_path / "out", Gaussian())) == 3


def test_what_cannot_be_measured_is_refused(photos: Path, tmp_path: Path, make_weights: Callable[..., Path]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    write_image(tmp_path / "mixed" / "grey.png", random_pixels((40, 40, 1)))
    write_image(tmp_path / "small" / "tiny.png", random_pixels((31, 40, 3)))
    for weights, images, output, what in (
        (tmp_path / "none", photos, tmp_path / "out", "no weights"),
        (make_weights(), tmp_path / "empty", tmp_path / "out", "no image"),
        (make_weights(), tmp_path / "mixed", tmp_path / "out", r"grey\.png: has 1 channels.*3"),
        (make_weights(), tmp_path / "small", tmp_path / "out", r"tiny\.png: is below 32 pixels"),
    ):
        with pytest.raises(UserError, match=what):
            evaluate(weights, images, output, Gaussian())
    assert not [path for path in tmp_path.glob("out/**/*") if path.is_file()]
    with pytest.raises(UserError, match=r"file: cannot be written"):
        evaluate(make_weights(), photos, tmp_path / "file", Gaussian())
