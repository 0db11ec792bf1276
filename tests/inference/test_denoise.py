from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from support.images import random_pixels

from n2n_dist.errors import UserError
from n2n_dist.images.image import read_frames, read_image, write_frames, write_image
from n2n_dist.inference.denoise import denoise_files


def run(weights: Path, source: Path, destination: Path, **levels: float) -> None:
    denoise_files(weights, source, destination, levels.get("black"), levels.get("white"))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_names_bit_depth_and_type_are_kept(
    tmp_path: Path, make_weights: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    images = {
        "a.png": random_pixels((20, 30, 3), np.uint8),
        "b.png": random_pixels((7, 9, 3), np.uint16),
        "sub/c.tif": random_pixels((1, 1, 3), np.uint8),
        "sub/d.tiff": random_pixels((33, 65, 3), np.uint16),
    }
    for name, pixels in images.items():
        write_image(tmp_path / "in" / name, pixels)
    run(make_weights(), tmp_path / "in", tmp_path / "out")  # an untrained network returns its input
    said = capsys.readouterr().out.splitlines()
    assert names(tmp_path / "out") == sorted(images)
    for name, pixels in images.items():
        found = read_image(tmp_path / "out" / name).pixels
        assert found.dtype == pixels.dtype
        np.testing.assert_array_equal(found, pixels)
        assert any(str(tmp_path / "out" / name) in line for line in said)


def test_levels_set_the_range(tmp_path: Path, make_weights: Callable[..., Path]) -> None:
    write_image(tmp_path / "a.png", np.full((8, 8, 1), 5000, np.uint16))
    run(make_weights(1, offset=0.1), tmp_path / "a.png", tmp_path / "b.png", black=1000, white=11000)
    assert (read_image(tmp_path / "b.png").pixels == 4000).all()


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_every_frame_of_a_stack_is_denoised(tmp_path: Path, make_weights: Callable[..., Path], suffix: str) -> None:
    frames = [random_pixels((9, 7, 3), np.float32, seed) for seed in range(3)]
    write_frames(tmp_path / f"a{suffix}", frames)
    run(make_weights(), tmp_path / f"a{suffix}", tmp_path / f"b{suffix}", white=1.0)
    for found, frame in zip(read_frames(tmp_path / f"b{suffix}", white=1.0), frames, strict=True):
        np.testing.assert_allclose(found.pixels, frame, atol=1e-6)


def test_float_image_without_a_range_is_refused(tmp_path: Path, make_weights: Callable[..., Path]) -> None:
    write_image(tmp_path / "a.tif", random_pixels((9, 7, 3), np.float32))
    with pytest.raises(UserError, match=r"a\.tif.*--white"):
        run(make_weights(), tmp_path / "a.tif", tmp_path / "b.tif")
    assert not (tmp_path / "b.tif").exists()


def test_jpeg_becomes_png(tmp_path: Path, make_weights: Callable[..., Path]) -> None:
    (tmp_path / "in").mkdir()
    PIL.Image.fromarray(random_pixels((16, 16, 3))).save(tmp_path / "in" / "a.JPG")
    run(make_weights(), tmp_path / "in", tmp_path / "out")
    assert names(tmp_path / "out") == ["a.png"]
    found = read_image(tmp_path / "out" / "a.png").pixels
    np.testing.assert_array_equal(found, read_image(tmp_path / "in" / "a.JPG").pixels)


def test_one_file_goes_to_a_name_or_into_a_folder(
    tmp_path: Path, make_weights: Callable[..., Path], write_images: Callable[..., Path]
) -> None:
    source = write_images("a.png") / "a.png"
    (tmp_path / "out").mkdir()
    for destination in ("out", "out/other.tif", "out/new/plain"):  # without suffix: a folder
        run(make_weights(), source, tmp_path / destination)
    assert names(tmp_path / "out") == ["a.png", "new/plain/a.png", "other.tif"]


def test_nothing_is_written_over(
    tmp_path: Path, make_weights: Callable[..., Path], write_images: Callable[..., Path]
) -> None:
    source = write_images("a.png", "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.png").write_text("precious")
    with pytest.raises(UserError, match=rf"{tmp_path / 'out' / 'b.png'}: exists already"):
        run(make_weights(), source, tmp_path / "out")
    assert names(tmp_path / "out") == ["b.png"]
    assert (tmp_path / "out" / "b.png").read_text() == "precious"
    before = (source / "a.png").read_bytes()
    for target in (source, source / "a.png"):  # onto the input itself
        with pytest.raises(UserError, match="exists already"):
            run(make_weights(offset=0.1), source / "a.png", target)
    assert (source / "a.png").read_bytes() == before


def test_two_images_of_one_new_name_are_refused(
    tmp_path: Path, make_weights: Callable[..., Path], write_images: Callable[..., Path]
) -> None:
    source = write_images("a.png")
    PIL.Image.fromarray(random_pixels((16, 16, 3))).save(source / "a.jpg")
    with pytest.raises(UserError, match="under one name"):
        run(make_weights(), source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_denoised_are_named_after_the_others_are_done(
    tmp_path: Path,
    make_weights: Callable[..., Path],
    write_images: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_images("a.png", "d.png")
    write_image(source / "b.png", random_pixels((16, 16, 2)))
    (source / "c.png").write_bytes(b"damaged")
    with pytest.raises(UserError) as caught:
        run(make_weights(), source, tmp_path / "out")
    said = capsys.readouterr().out.splitlines()
    assert "2 of 4 images" in str(caught.value)
    assert f"{source / 'b.png'}: an image with 2 channels" in str(caught.value)
    assert [line for line in said if "skipped" in line and str(source / "c.png") in line]
    assert names(tmp_path / "out") == ["a.png", "d.png"]


def test_missing_source_folder_or_weights_are_refused(tmp_path: Path, make_weights: Callable[..., Path]) -> None:
    (tmp_path / "empty").mkdir()
    for source, what in ((tmp_path / "none", "no such file"), (tmp_path / "empty", "no image")):
        with pytest.raises(UserError, match=f"{source}: {what}"):
            run(make_weights(), source, tmp_path / "out")
    with pytest.raises(UserError, match="no weights"):
        run(tmp_path / "none.safetensors", tmp_path, tmp_path / "out")
