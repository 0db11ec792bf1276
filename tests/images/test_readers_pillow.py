import io
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
from support.images import random_pixels

from n2n_dist.errors import UserError
from n2n_dist.images.axes import whole
from n2n_dist.images.format import StoredArray
from n2n_dist.images.readers import create_file, open_file

PROFILE = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()


def about() -> dict:
    """Metadata as of a camera, for Pillow."""
    exif = PIL.Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    return {"icc_profile": PROFILE, "dpi": (300, 150), "exif": exif}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_the_shape_is_known_before_decoding(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    PIL.Image.fromarray(random_pixels((9, 7, 3))).convert(mode).save(path)
    with open_file(path) as (array,):
        assert array.read().shape == array.shape
        assert array.shape[2:] == {"1": (), "L": (), "LA": (2,), "RGBA": (4,)}.get(mode, (3,))
        assert not array.regions


def test_a_transparent_palette_has_four_channels(tmp_path: Path) -> None:
    image = PIL.Image.fromarray(random_pixels((9, 7, 3))).convert("P")
    image.save(tmp_path / "a.png", transparency=0)
    with open_file(tmp_path / "a.png") as (array,):
        assert array.read().shape == array.shape == (9, 7, 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("source", ["a.png", "a.jpg"])
def test_profile_resolution_and_exif_are_kept(tmp_path: Path, source: str, dtype: type) -> None:
    PIL.Image.fromarray(random_pixels((16, 24, 3))).save(tmp_path / source, **about())
    pixels = random_pixels((24, 16, 3) if source == "a.jpg" else (16, 24, 3), dtype)  # the JPEG is turned
    with open_file(tmp_path / source) as (array,):
        assert array.shape == pixels.shape
        with create_file(tmp_path / "b.png", [StoredArray.of(pixels, "YXS", metadata=array.metadata)]) as file:
            file.write(0, whole(pixels.shape), pixels)
    with PIL.Image.open(tmp_path / "b.png") as image:
        assert image.info["icc_profile"] == PROFILE
        assert image.info["dpi"] == pytest.approx((300, 150), abs=0.1)
        assert image.getexif()[0x010F] == "Maker"
        assert (0x0112 in image.getexif()) == (source == "a.png")  # pixels of a JPEG are upright
    with open_file(tmp_path / "b.png") as (array,):
        np.testing.assert_array_equal(array.read(), pixels)


def test_profile_of_cmyk_is_not_kept_for_rgb(tmp_path: Path) -> None:
    PIL.Image.new("CMYK", (8, 8)).save(tmp_path / "a.jpg", icc_profile=b"of inks")
    with open_file(tmp_path / "a.jpg") as (array,):
        assert "icc" not in array.metadata


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros((4, 4), np.float32), "float32"),
        (np.zeros((4, 4), np.int16), "int16"),
        (np.zeros((2, 4, 4, 3), np.uint8), "one image"),
    ],
)
def test_what_a_png_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, array: np.ndarray, why: str
) -> None:
    with pytest.raises(UserError, match=why), create_file(tmp_path / "a.png", [StoredArray.of(array)]):
        pass
    assert not list(tmp_path.iterdir())


def test_large_images_are_no_bombs_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    buffer = io.BytesIO()
    PIL.Image.fromarray(random_pixels((16, 24, 3))).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    with open_file(tmp_path / "a.png") as (array,):
        assert array.read().shape == (16, 24, 3)
