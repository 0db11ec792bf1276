import numpy as np
import pytest

from n2n_dist.errors import UserError
from n2n_dist.images.axes import from_image, guess_axes, image_axes, image_regions, image_shape, to_image


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((9, 7), "YX"), ((9, 7, 3), "YXS"), ((9, 7, 5), "IYX"), ((2, 9, 7, 1), "IYXS")],
)
def test_axes_that_are_not_named_follow_from_the_shape(shape: tuple[int, ...], axes: str) -> None:
    assert guess_axes(shape) == axes


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4, 5), (1, 1, 1, 1, 1)])
def test_shapes_that_say_nothing_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="shape"):
        guess_axes(shape)


@pytest.mark.parametrize(
    ("axes", "shape", "image"),
    [
        ("YX", (5, 4), (5, 4, 1)),
        ("SYX", (3, 5, 4), (5, 4, 3)),
        ("TZCYX", (2, 3, 2, 5, 4), (5, 4, 2)),
        ("CYX", (5, 5, 4), (5, 4, 1)),  # more channels than an image has
        ("CZYXS", (2, 3, 5, 4, 3), (5, 4, 3)),
        ("QQYX", (2, 2, 5, 4), (5, 4, 1)),
        ("X", (4,), (1, 4, 1)),
    ],
)
def test_images_cover_an_array_and_go_back(axes: str, shape: tuple[int, ...], image: tuple[int, int, int]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape)
    found = image_axes(axes, shape)
    assert image_shape(axes, shape, found) == image
    again = np.full_like(array, -1)
    for region in image_regions(axes, shape, found):
        pixels = to_image(array[region], axes, found)
        assert pixels.shape == image
        assert (again[region] == -1).all()
        again[region] = from_image(pixels, axes, found)
    np.testing.assert_array_equal(again, array)


def test_channels_can_be_images_of_their_own() -> None:
    assert image_axes("CYX", (3, 5, 4)) == "YXC"
    assert image_axes("CYX", (3, 5, 4), channels=False) == "YX"
