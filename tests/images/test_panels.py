import numpy as np
import torch

from n2n_dist.images.panels import GAP, join_panels


def plain(value: float, channels: int, height: int, width: int) -> torch.Tensor:
    return torch.full((channels, height, width), value)


def test_rows_of_different_sizes_stand_below_each_other_with_white_gaps() -> None:
    picture = join_panels(
        [
            [plain(0.0, 3, 5, 7), plain(0.5, 3, 5, 7)],
            [plain(0.25, 3, 4, 20), plain(-2.0, 3, 4, 20)],
        ]
    )
    assert (picture.dtype, picture.shape) == (np.uint8, (5 + GAP + 4, 20 + GAP + 20, 3))
    expected = np.full(picture.shape, 255)
    expected[:5, :7] = 0
    expected[:5, 7 + GAP : 14 + GAP] = 128
    expected[5 + GAP :, :20] = 64
    expected[5 + GAP :, 20 + GAP :] = 0
    np.testing.assert_array_equal(picture, expected)


def test_every_number_of_channels_is_shown() -> None:
    colours = torch.tensor([0.0, 0.2, 0.4, 0.6])
    for channels, shown in ((1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 51, 102]), (4, [0, 51, 102])):
        picture = join_panels([[colours[:channels, None, None].expand(-1, 2, 2)]])
        np.testing.assert_array_equal(picture, np.broadcast_to(shown, (2, 2, 3)))
