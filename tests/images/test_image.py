from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile
from support.images import random_pixels

from n2n_dist.errors import UserError
from n2n_dist.images.codecs import encode
from n2n_dist.images.image import Image, find_images, read_image, write_image


def test_files_have_the_bit_depth_they_claim(tmp_path: Path) -> None:
    pixels = random_pixels((16, 16, 3), np.uint16)
    write_image(tmp_path / "deep" / "a.png", pixels)
    data = (tmp_path / "deep" / "a.png").read_bytes()
    assert data[24] == 16  # bit depth in the header
    np.testing.assert_array_equal(imagecodecs.png_decode(data), pixels)
    write_image(tmp_path / "a.tif", pixels)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), pixels)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "a.tif", "deep"]  # no temporary file


def test_16_bit_grey_png_of_pillow(tmp_path: Path) -> None:
    pixels = random_pixels((8, 8), np.uint16)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(read.pixels[..., 0], pixels)
    assert (read.black, read.white) == (0, 65535)


def test_palette_png_becomes_rgb(tmp_path: Path) -> None:
    pixels = np.array([[[250, 0, 10], [0, 200, 30]], [[7, 8, 9], [250, 0, 10]]], np.uint8)
    PIL.Image.fromarray(pixels).quantize(4).save(tmp_path / "a.png")
    assert PIL.Image.open(tmp_path / "a.png").mode == "P"
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, pixels)


def test_jpeg_is_turned_as_its_tag_says(tmp_path: Path) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    tag = PIL.Image.Exif()
    tag[0x0112] = 6  # to be shown turned clockwise by 90 degrees
    PIL.Image.fromarray(pixels).save(tmp_path / "plain.jpg", quality=95)
    PIL.Image.fromarray(pixels).save(tmp_path / "turned.JPEG", quality=95, exif=tag)
    plain, turned = read_image(tmp_path / "plain.jpg").pixels, read_image(tmp_path / "turned.JPEG").pixels
    assert np.abs(plain.astype(int) - pixels).max() < 10
    assert turned.shape == (32, 16, 3)
    assert np.abs(turned.astype(int) - np.rot90(pixels, -1)).max() < 10


def write_tiff(path: Path, kind: str) -> None:
    pixels = random_pixels((8, 8, 4), np.uint8)
    if kind == "palette":
        PIL.Image.fromarray(pixels[..., :3]).quantize(4).save(path)
    elif kind == "cmyk":
        PIL.Image.fromarray(pixels, "CMYK").save(path)
    elif kind == "white is zero":
        tifffile.imwrite(path, pixels[..., 0], photometric="miniswhite")
    elif kind == "two pages":
        tifffile.imwrite(path, np.zeros((2, 8, 8), np.uint8), photometric="minisblack")
    else:
        tifffile.imwrite(path, np.zeros((8, 8), np.int32))


@pytest.mark.parametrize("kind", ["palette", "cmyk", "white is zero", "two pages", "int32"])
def test_tiff_whose_numbers_mean_something_else_is_refused(tmp_path: Path, kind: str) -> None:
    write_tiff(tmp_path / "a.tif", kind)
    with pytest.raises(UserError, match=r"a\.tif"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", np.uint8), (".png", np.uint16), (".tif", np.uint16)])
@pytest.mark.parametrize("damage", ["empty", "half", "flipped", "text"])
def test_damaged_file_is_refused_by_name(tmp_path: Path, suffix: str, dtype: type, damage: str) -> None:
    data = encode(random_pixels((32, 32, 3), dtype), suffix)
    middle = len(data) // 2
    damaged = {
        "empty": b"",
        "half": data[:middle],
        "flipped": data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :],
        "text": b"not an image",
    }
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=f"{path}: damaged"):
        read_image(path)


def test_truncated_jpeg_and_uncompressed_tiff_are_refused(tmp_path: Path) -> None:
    PIL.Image.fromarray(random_pixels((64, 64, 3), np.uint8)).save(tmp_path / "a.jpg")
    tifffile.imwrite(tmp_path / "a.tif", random_pixels((64, 64), np.uint16))
    for path in (tmp_path / "a.jpg", tmp_path / "a.tif"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match=str(path)):
            read_image(path)


@pytest.mark.parametrize("form", ["BMP", "GIF", "TIFF", "PPM", "WEBP"])
def test_another_format_under_the_name_of_png_or_jpeg_is_refused(tmp_path: Path, form: str) -> None:
    for suffix in (".png", ".jpg"):
        path = tmp_path / f"a{suffix}"
        PIL.Image.fromarray(random_pixels((16, 16, 3), np.uint8)).save(path, form)
        with pytest.raises(UserError, match=f"{path}: damaged or not an image"):
            read_image(path)


def test_linked_folders_are_searched_once(tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere" / "a.png", random_pixels((8, 8, 1)))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "scene").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    assert find_images(tmp_path / "in") == [tmp_path / "in" / "scene" / "a.png"]


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.png: cannot be read"):
        read_image(tmp_path / "none.png")


def test_range_and_shape_are_checked() -> None:
    pixels = np.zeros((4, 4), np.uint8)
    for black, white in ((255, None), (10, 10), (20, 10), (None, 0), (None, float("nan")), (None, float("inf"))):
        with pytest.raises(UserError, match="not above black level"):
            Image.from_array(pixels, black, white)
    for shape in ((4, 4, 5), (0, 4), (4,), (1, 4, 4, 3)):
        with pytest.raises(UserError, match="shape"):
            Image.from_array(np.zeros(shape, np.uint8))
    for dtype in (np.int32, np.float64, np.bool_):
        with pytest.raises(UserError, match="type"):
            Image.from_array(np.zeros((4, 4), dtype))


def test_normalised_values_are_not_clipped_and_go_back_exactly() -> None:
    pixels = random_pixels((32, 32, 2), np.uint16)
    wrapped = Image.from_array(pixels, black=1000, white=50000)
    values = wrapped.normalised()
    assert values.dtype == np.float32
    assert values.min() < 0
    assert values.max() > 1
    np.testing.assert_allclose(values, (pixels.astype(np.float64) - 1000) / 49000, atol=1e-6)
    np.testing.assert_array_equal(wrapped.with_normalised(values.copy()).pixels, pixels)


def test_integer_results_are_rounded_and_clipped_and_float_ones_are_not() -> None:
    values = np.array([[[-1.0], [0.5019], [2.0]]], np.float32)
    assert Image.from_array(np.zeros((1, 3), np.uint8)).with_normalised(values.copy()).pixels.ravel().tolist() == [
        0,
        128,
        255,
    ]
    floats = Image.from_array(np.zeros((1, 3), np.float32), white=10.0).with_normalised(values.copy()).pixels
    np.testing.assert_allclose(floats.ravel(), [-10, 5.019, 20], rtol=1e-6)


def test_formats_that_would_lose_something_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="float32"):
        encode(np.zeros((4, 4, 1), np.float32), ".png")
    for dtype, channels in ((np.uint8, 1), (np.uint8, 2), (np.uint8, 4), (np.uint16, 3), (np.float32, 3)):
        with pytest.raises(UserError, match=rf"WebP holds 8-bit RGB, not {np.dtype(dtype)} of {channels}.*use PNG"):
            encode(np.zeros((4, 4, channels), dtype), ".webp")
    with pytest.raises(UserError, match=r"\.jpg"):
        write_image(tmp_path / "a.jpg", np.zeros((4, 4, 1), np.uint8))
    assert not list(tmp_path.iterdir())


def test_images_are_found_in_a_fixed_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/1.jpg", "a.tiff", ".hidden/x.png", ".x.png", "note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)] == ["a.tiff", "b/1.jpg", "b/2.PNG"]
    with pytest.raises(UserError, match="no such folder"):
        find_images(tmp_path / "none")
    with pytest.raises(UserError, match=r"a\.tiff: is a file"):
        find_images(tmp_path / "a.tiff")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image"):
        find_images(tmp_path / "empty")
