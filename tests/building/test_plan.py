import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from n2n_dist.building.plan import SHARDS, Options, group_scenes, origins, parse_part
from n2n_dist.errors import UserError
from n2n_dist.scenes import Frame, Scene
from n2n_dist.shards.index import VALIDATION

SIZES = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=60)


@given(length=st.integers(1, 5000), tile=st.integers(16, 600))
def test_tiles_cover_a_length_evenly(length: int, tile: int) -> None:
    starts = origins(length, tile)
    assert starts[0] == 0
    assert len(starts) == -(-length // tile)
    assert max(starts[-1] + tile, tile) >= length
    assert starts[-1] + tile == length or len(starts) == 1
    assert all(0 < after - before <= tile for before, after in itertools.pairwise(starts))


@given(sizes=SIZES, shard_samples=st.integers(1, 6), frames=st.integers(1, 4))
def test_every_scene_is_in_one_group_and_shards_are_numbered_through(
    sizes: list, shard_samples: int, frames: int
) -> None:
    scenes = [Scene(str(n), str(n // frames), [Frame("a")], size) for n, size in enumerate(sizes)]
    groups = group_scenes(scenes, Options(tile=64, shard_samples=shard_samples))
    assert sorted(number for group in groups for number, _ in group.scenes) == list(range(len(scenes)))
    first = 0
    for group in groups:
        assert group.first_shard == first
        first += group.shards
        tiles = sum(group.tiles)
        assert (group.shards - 1) * shard_samples < tiles <= group.shards * shard_samples
        assert group.shards <= SHARDS or len(group.scenes) == 1
    order = [scene.recording for group in groups for _, scene in group.scenes]
    runs = [name for place, name in enumerate(order) if place == 0 or order[place - 1] != name]
    assert max(Counter(runs).values()) == 1  # the scenes of a recording follow each other


def test_recordings_are_held_out_whole_and_evenly() -> None:
    scenes = [Scene(f"{n}#{k}", str(n), [Frame("a", k)], (8, 8)) for n in range(10) for k in range(3)]
    groups = group_scenes(scenes, Options(holdout=3))
    held_out = [scene.recording for group in groups if group.folder == VALIDATION for _, scene in group.scenes]
    assert Counter(held_out) == {"0": 3, "3": 3, "6": 3}
    for holdout in (-1, 10):
        with pytest.raises(UserError, match=f"--holdout {holdout}"):
            group_scenes(scenes, Options(holdout=holdout))


def test_scenes_are_shuffled() -> None:
    scenes = [Scene(str(n), str(n), [Frame("a")], (8, 8)) for n in range(100)]
    (group,) = group_scenes(scenes, Options())
    numbers = [number for number, _ in group.scenes]
    assert sum(abs(after - before) == 1 for before, after in itertools.pairwise(numbers)) < 10


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1", "1/2/3", "a/b", "-1/3"])
def test_a_part_is_one_of_n(text: str) -> None:
    assert parse_part("2/3") == (2, 3)
    with pytest.raises(UserError, match=f"--part {text}"):
        parse_part(text)
