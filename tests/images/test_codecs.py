import io

import numpy as np
import pytest
import tifffile
from support.images import big_png, big_tiff, random_pixels

from n2n_dist.errors import UserError
from n2n_dist.images import codecs, frames
from n2n_dist.images.codecs import decode, encode
from n2n_dist.images.image import Image


@pytest.mark.parametrize("size", [(9, 7), (1, 1), (3, 4), (2, 1)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        (".png", np.uint8),
        (".png", np.uint16),
        (".tif", np.uint8),
        (".tif", np.uint16),
        (".tiff", np.float32),
        (".npy", np.float32),
    ],
)
def test_what_is_written_is_read_again(suffix: str, dtype: type, channels: int, size: tuple[int, int]) -> None:
    pixels = random_pixels((*size, channels), dtype)
    again = Image.from_array(decode(encode(pixels, suffix), suffix)).pixels
    assert again.dtype == pixels.dtype
    np.testing.assert_array_equal(again, pixels)


@pytest.mark.parametrize("size", [(9, 7), (1, 1), (3, 4), (64, 64)])
def test_webp_is_lossless(size: tuple[int, int]) -> None:
    pixels = random_pixels((*size, 3))
    np.testing.assert_array_equal(decode(encode(pixels, ".webp"), ".webp"), pixels)


def test_damaged_webp_is_refused() -> None:
    data = encode(random_pixels((32, 32, 3)), ".webp")
    for damaged in (b"", data[: len(data) // 2], b"not an image"):
        with pytest.raises(UserError, match="damaged"):
            decode(damaged, ".webp")


def test_planes_of_a_tiff_become_the_last_axis() -> None:
    planes = random_pixels((3, 9, 7), np.uint8)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(decode(buffer.getvalue(), ".tif"), planes.transpose(1, 2, 0))


def test_double_precision_tiff_is_read_as_float32() -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.full((4, 4), 0.1))
    assert decode(buffer.getvalue(), ".tif").dtype == np.float32


def test_file_that_claims_to_be_huge_is_refused_before_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_PIXELS", 100)
    for data, suffix in (
        (encode(random_pixels((16, 16, 3), np.uint16), ".png"), ".png"),
        (encode(random_pixels((16, 16, 3), np.uint16), ".tif"), ".tif"),
    ):
        with pytest.raises(UserError, match="claims"):
            decode(data, suffix)


def test_channels_are_no_pixels_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_PIXELS", 16 * 16)
    data = encode(random_pixels((16, 16, 3)), ".npy")
    assert codecs.npy_stand_in(data, len(data)).shape == (16, 16, 3)
    data = encode(random_pixels((16, 17, 3)), ".npy")
    with pytest.raises(UserError, match="claims 272 pixels, more than 256"):
        codecs.npy_stand_in(data, len(data))


@pytest.mark.parametrize("bits", [8, 16])
def test_png_that_claims_to_be_huge_is_refused(bits: int) -> None:
    with pytest.raises(UserError, match=r"3,?600,?000,?000 pixels"):
        decode(big_png(60_000, bits), ".png")


def test_tiff_that_claims_to_be_huge_is_refused() -> None:
    with pytest.raises(UserError, match="claims 3,600,000,000 pixels"):
        decode(big_tiff(60_000), ".tif")


@pytest.mark.parametrize("shape", [(60_000, 60_000), (1 << 40, 4), (30_000, 30_000, 4)])
def test_array_that_claims_to_be_huge_is_refused(shape: tuple[int, ...]) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with pytest.raises(UserError, match=r"claims .* pixels"):
        decode(buffer.getvalue(), ".npy")


@pytest.mark.parametrize("change", ["more", "less", "object", "pickle", "archive"])
def test_array_that_is_not_what_its_header_says_is_refused(change: str) -> None:
    buffer = io.BytesIO()
    if change == "pickle":
        np.save(buffer, np.array([{}], object), allow_pickle=True)
    elif change == "archive":
        np.savez_compressed(buffer, np.zeros((1000, 1000)))
    else:
        np.save(buffer, np.zeros((4, 4), np.uint8))
    data = {"more": buffer.getvalue() + b"x", "less": buffer.getvalue()[:-1]}.get(change, buffer.getvalue())
    with pytest.raises(UserError, match="damaged or not an image"):
        decode(data.replace(b"|u1", b"|O1") if change == "object" else data, ".npy")
