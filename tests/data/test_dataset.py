import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from images import random_pixels

from n2n_dist.data.build import build
from n2n_dist.data.dataset import (
    ATTEMPTS,
    Batch,
    CropDataset,
    DataSettings,
    RankOrder,
    collate,
    folder_list,
    make_loader,
)
from n2n_dist.data.image import encode, write_image
from n2n_dist.data.indexing import write_index
from n2n_dist.data.order import Order
from n2n_dist.data.plan import Options
from n2n_dist.data.scenes import Grouping
from n2n_dist.data.shard import Index
from n2n_dist.errors import Refusal

CPU = torch.device("cpu")


def load(dataset: CropDataset, count: int, workers: int = 0, micro_batch: int = 4) -> list[Batch]:
    order = Order(dataset.index.sizes, 0, 8)
    loader = make_loader(dataset, RankOrder(order, 0, 0, 1, micro_batch), workers, CPU)
    return list(itertools.islice(loader, count))


def damage(index: Index, number: int) -> str:
    """Overwrite the start of a sample's image; return the sample's key."""
    tar, sample = index.sample(number)
    with tar.open("r+b") as file:
        file.seek(sample.captures[0].offset)
        file.write(b"damage")
    return sample.key


@pytest.fixture
def coded(tmp_path: Path) -> Index:
    """Five scenes of three captures whose channels say scene, capture, row and column."""
    rows, columns = np.mgrid[:24, :20]
    for scene, capture in itertools.product(range(5), range(3)):
        pixels = np.stack([np.full_like(rows, scene), np.full_like(rows, capture), rows, columns], -1)
        write_image(tmp_path / "scenes" / str(scene) / f"{capture}.png", pixels.astype(np.uint16))
    build(tmp_path / "scenes", tmp_path / "coded", Options(Grouping("folder")))
    return Index([tmp_path / "coded"])


def decoded(crop: torch.Tensor) -> np.ndarray:
    return np.rint(crop.numpy() * 65535).astype(int)


def test_two_captures_of_one_scene_share_window_and_symmetry(coded: Index) -> None:
    dataset = CropDataset(coded, seed=3, crop=8, source="captures")
    pairs, windows, orientations = set(), set(), set()
    for position in range(400):
        place, number, images, bad = dataset[(position, position % 5)]
        assert (place, number, bad) == (position, position % 5, [])
        assert (images.dtype, images.shape) == (torch.float32, (2, 4, 8, 8))
        first, second = decoded(images)
        for crop in (first, second):
            assert np.unique(crop[0]).tolist() == [int(coded.sample(number)[1].key.split("-")[0])]
            assert np.unique(crop[1]).size == 1
        np.testing.assert_array_equal(first[2:], second[2:])
        rows, columns = np.unique(first[2]), np.unique(first[3])
        assert rows.tolist() == list(range(rows[0], rows[0] + 8))
        assert columns.tolist() == list(range(columns[0], columns[0] + 8))
        pairs.add((first[1, 0, 0], second[1, 0, 0]))
        windows.add((rows[0], columns[0]))
        corner = first[2:, 0, 0] - [rows[0], columns[0]]
        orientations.add((*corner, first[2, 0, 0] == first[2, 0, 1]))
    assert pairs == {(a, b) for a in range(3) for b in range(3) if a != b}
    assert len(orientations) == 8
    assert {top for top, _ in windows} == set(range(17))
    assert {left for _, left in windows} == set(range(13))


def test_a_single_image_is_its_first_capture(coded: Index) -> None:
    dataset = CropDataset(coded, seed=0, crop=8, source="image")
    for position in range(20):
        crop = decoded(dataset[(position, 1)][2])
        assert crop.shape == (1, 4, 8, 8)
        assert np.unique(crop[0, 1]).tolist() == [0]


def test_crops_depend_on_seed_and_position_alone(coded: Index) -> None:
    def crops(seed: int, positions: range) -> torch.Tensor:
        dataset = CropDataset(coded, seed, 8, "captures")
        return torch.stack([dataset[(position, 2)][2] for position in positions])

    torch.testing.assert_close(crops(0, range(20)), crops(0, range(20)), rtol=0, atol=0)
    torch.testing.assert_close(crops(0, range(20))[10:], crops(0, range(10, 20)), rtol=0, atol=0)
    assert not torch.equal(crops(0, range(20)), crops(1, range(20)))
    assert not torch.equal(crops(0, range(20)), crops(0, range(20, 40)))


def test_supervised_pairs_are_a_capture_and_its_reference(tmp_path: Path) -> None:
    captures, clean = [random_pixels((16, 16, 1), seed=seed) for seed in range(2)], random_pixels((16, 16, 1), seed=9)
    (tmp_path / "s").mkdir()
    with webdataset.TarWriter(str(tmp_path / "s" / "a.tar"), encoder=False) as writer:
        images = {f"{n}.png": encode(pixels, ".png") for n, pixels in enumerate(captures)}
        writer.write({"__key__": "a", **images, "clean.png": encode(clean, ".png")})
    write_index(tmp_path / "s")
    dataset = CropDataset(Index([tmp_path / "s"]), 0, 16, "supervised")
    seen = set()
    for position in range(20):
        noisy, reference = (np.sort(np.rint(image.numpy() * 255).ravel()) for image in dataset[(position, 0)][2])
        np.testing.assert_array_equal(reference, np.sort(clean.ravel()))
        seen.add(next(n for n, pixels in enumerate(captures) if np.array_equal(np.sort(pixels.ravel()), noisy)))
    assert seen == {0, 1}


def test_workers_do_not_change_the_crops(make_shards: Callable[..., Path]) -> None:
    dataset = CropDataset(Index([make_shards(12, shard_samples=5)]), 0, 16, "image")
    alone, helped = load(dataset, 5), load(dataset, 5, workers=2)
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a.positions, b.positions)
        assert torch.equal(a.samples, b.samples)
        assert torch.equal(a.images, b.images)
    assert alone[0].positions.tolist() == [0, 1, 2, 3]
    assert alone[0].images.shape == (4, 1, 3, 16, 16)


def test_micro_batches_join_to_the_batch(make_shards: Callable[..., Path]) -> None:
    dataset = CropDataset(Index([make_shards(12)]), 0, 16, "image")
    (whole,) = load(dataset, 1, micro_batch=8)
    parts = load(dataset, 4, micro_batch=2)
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.samples for part in parts]), whole.samples)


def test_damaged_sample_is_replaced_by_its_position_alone(make_shards: Callable[..., Path]) -> None:
    index = Index([make_shards(9, encoding="png", shard_samples=4)])
    dataset = CropDataset(index, 0, 16, "image")
    before = {position: dataset[(position, position % 9)] for position in range(18)}
    key = damage(index, 4)
    for position, (_, number, images, _) in before.items():
        _, used, replaced, bad = dataset[(position, number)]
        if number == 4:
            assert used != 4
            assert torch.equal(replaced, dataset[(position, used)][2])
            assert bad
            assert all(key in str(message) for message in bad)
        else:
            assert torch.equal(replaced, images)
            assert not bad
    chosen = [dataset[(position, 4)][1] for position in range(40)]
    assert set(chosen) == set(range(9)) - {4}
    assert chosen == [CropDataset(index, 0, 16, "image")[(position, 4)][1] for position in range(40)]
    assert chosen != [CropDataset(index, 1, 16, "image")[(position, 4)][1] for position in range(40)]


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_samples_are_reported_with_the_batch(make_shards: Callable[..., Path], workers: int) -> None:
    index = Index([make_shards(8, encoding="png")])
    key = damage(index, 3)
    batches = load(CropDataset(index, 0, 16, "image"), 2, workers)  # one epoch
    named = [str(message) for batch in batches for message in batch.bad]
    assert named
    assert all(key in message for message in named)
    assert 3 not in torch.cat([batch.samples for batch in batches])
    assert torch.cat([batch.positions for batch in batches]).tolist() == list(range(8))


def test_shards_with_nothing_readable_give_zeros_and_a_message(coded: Index) -> None:
    """The loop stops all ranks together; here the batch only keeps its shape."""
    for number in range(5):
        tar, sample = coded.sample(number)
        with tar.open("r+b") as file:
            file.truncate(sample.captures[0].offset if number == 0 else tar.stat().st_size)
    for source, images in (("image", 1), ("captures", 2)):
        item = CropDataset(coded, 0, 8, source)[(6, 0)]
        assert len(item[3]) == ATTEMPTS
        batch = collate([item])
        assert torch.equal(batch.images, torch.zeros(1, images, 4, 8, 8))
        assert batch.positions.tolist() == [6]
        assert len(batch.bad) == 1
        assert str(coded.paths[0]) in str(batch.bad[0])


def test_samples_of_a_tar_that_is_another_are_replaced(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(4, shard_samples=2)
    shutil.copy(folder / "shard-000000.tar", folder / "shard-000001.tar")
    dataset = CropDataset(Index([folder]), 0, 16, "image")
    for position in range(10):
        _, sample, images, bad = dataset[(position, 2)]
        assert sample in (0, 1)
        assert torch.equal(images, dataset[(position, sample)][2])
        assert bad
        assert all(str(folder / "shard-000001.tar") in str(message) for message in bad)


@pytest.mark.parametrize("encoding", ["npy", "png"])
def test_a_tar_cut_off_under_a_running_loader_loses_its_samples_and_no_others(
    make_shards: Callable[..., Path], encoding: str
) -> None:
    index = Index([make_shards(16, encoding=encoding, shard_samples=8)])
    dataset = CropDataset(index, 0, 16, "image")
    before = {position: dataset[(position, position)] for position in range(16)}
    tar, sample = index.sample(12)
    with tar.open("r+b") as file:
        file.truncate(sample.captures[0].offset + 60)
    for position, (_, _, images, _) in before.items():
        _, used, again, bad = dataset[(position, position)]
        if position < 12:
            assert (used, bad) == (position, [])
            assert torch.equal(again, images)
        else:
            assert used < 12
            assert f"{tar}: sample {index.sample(position)[1].key}: " in str(bad[0])
    helped = [load(dataset, 4, workers) for workers in (0, 2)]  # two epochs
    for one, other in zip(*helped, strict=True):
        assert torch.equal(one.samples, other.samples)
        assert torch.equal(one.images, other.images)
        assert [*map(str, one.bad)] == [*map(str, other.bad)]
    assert sum(len(batch.bad) for batch in helped[0]) == 4


def test_what_the_shards_cannot_give_is_refused(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(2, size=(40, 30, 3), tile=32)
    index = Index([folder])
    CropDataset(index, 0, 30, "image")
    with pytest.raises(Refusal, match=rf"data\.crop 31: {folder}.*32x30"):
        CropDataset(index, 0, 31, "image")
    with pytest.raises(Refusal, match=rf"pairs\.supervised: {folder}"):
        CropDataset(index, 0, 16, "supervised")


def test_a_batch_has_one_message_for_each_replaced_sample() -> None:
    image = torch.zeros(1, 1, 2, 2)
    batch = collate([(5, 1, image, ["a", "b"]), (6, 0, image + 1, []), (7, 3, image + 2, ["c"])])
    assert (batch.positions.tolist(), batch.samples.tolist(), batch.bad) == ([5, 6, 7], [1, 0, 3], ["a", "c"])
    assert batch.images[:, 0, 0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"crop": 7}, r"data\.crop 7"),
        ({"batch": 0}, r"data\.batch 0"),
        ({"workers": -1}, r"data\.workers -1"),
        ({"max_bad": 1.5}, r"data\.max_bad 1\.5"),
        ({"shards": []}, r"data\.shards \[\]"),
        ({"shards": 3}, r"data\.shards 3"),
        ({"shards": ["a", None]}, r"data\.shards"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(values: dict, named: str) -> None:
    with pytest.raises(Refusal, match=named):
        DataSettings(**values)


def test_one_folder_or_several() -> None:
    assert folder_list("a", "data.shards") == [Path("a")]
    assert folder_list(["a", "b"], "data.shards") == [Path("a"), Path("b")]
