import io
import json
from pathlib import Path

import numpy as np
from support.images import random_pixels

from n2n_dist.building.plan import Options
from n2n_dist.building.tiles import SourceFile, cut
from n2n_dist.images.image import write_image
from n2n_dist.scenes import Frame, Scene


def test_tiles_of_a_scene_and_its_reference_are_members_in_a_fixed_order(tmp_path: Path) -> None:
    images = {name: random_pixels((16, 40, 1), np.uint16, seed) for seed, name in enumerate("abc")}
    for name, pixels in images.items():
        write_image(tmp_path / f"{name}.png", pixels)
    files = [SourceFile(tmp_path / f"{name}.png", Options(tile=32)) for name in images]
    scene = Scene("s 1", "s", [Frame("a.png"), Frame("b.png")], (16, 40), Frame("c.png"))
    tiles = cut(files, 7, scene)
    assert len(tiles) == 2
    for tile, left in zip(tiles, (0, 8), strict=True):
        key = f"000007-s-1-00000-{left:05d}"
        assert list(tile.members) == [f"{key}.{end}" for end in ("0.npy", "1.npy", "clean.npy", "json")]
        for content, pixels in zip(tile.members.values(), images.values(), strict=False):
            np.testing.assert_array_equal(np.load(io.BytesIO(content)), pixels[:, left : left + 32])
        about = json.loads(tile.members[f"{key}.json"])
        assert (about["scene"], about["top"], about["left"], about["bit_depth"]) == ("s 1", 0, left, 16)


def test_a_damaged_file_says_why_for_every_scene_that_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    file = SourceFile(tmp_path / "a.png", Options())
    said = {cut([file], number, Scene("a", "a", [Frame("a.png")], (8, 8))) for number in range(2)}
    (message,) = said
    assert message.startswith(f"{tmp_path / 'a.png'}: damaged")
