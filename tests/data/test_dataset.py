import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from support.images import random_pixels

from n2n_dist import rng
from n2n_dist.building.build import build
from n2n_dist.building.plan import Options
from n2n_dist.data.batch import Batch
from n2n_dist.data.dataset import (
    CropDataset,
    DataSettings,
    _symmetry,
    folder_list,
)
from n2n_dist.data.loader import make_loader
from n2n_dist.data.order import Order
from n2n_dist.data.sampler import RankOrder
from n2n_dist.errors import UserError
from n2n_dist.images.codecs import encode
from n2n_dist.images.image import write_image
from n2n_dist.pairs import Captures, Neighbours, Synthetic
from n2n_dist.pairs.base import Pairs
from n2n_dist.pairs.captures import capture_order
from n2n_dist.scenes import Grouping
from n2n_dist.shards import open_files
from n2n_dist.shards.index import Index
from n2n_dist.shards.indexing import write_index
from n2n_dist.shards.reading import read_pixels

CPU = torch.device("cpu")


def load(dataset: CropDataset, count: int, workers: int = 0, micro_batch: int = 4) -> list[Batch]:
    order = Order(dataset.index.sizes, 0, 8)
    loader = make_loader(dataset, RankOrder(order, 0, 0, 1, micro_batch), workers, CPU)
    return list(itertools.islice(loader, count))


def read(dataset: CropDataset, position: int, number: int) -> tuple[int, torch.Tensor, list[str]]:
    """The sample that was used, its images and the messages."""
    batch = dataset[[(position, number)]]
    assert batch.positions.tolist() == [position]
    return int(batch.samples[0]), batch.normalised()[0], batch.bad


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
    dataset = CropDataset(coded, seed=3, crop=8, pairs=Captures())
    pairs, windows, orientations = set(), set(), set()
    for position in range(400):
        number, images, bad = read(dataset, position, position % 5)
        assert (number, bad) == (position % 5, [])
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
    dataset = CropDataset(coded, seed=0, crop=8, pairs=Synthetic())
    for position in range(20):
        crop = decoded(read(dataset, position, 1)[1])
        assert crop.shape == (1, 4, 8, 8)
        assert np.unique(crop[0, 1]).tolist() == [0]


def test_crops_depend_on_seed_and_position_alone(coded: Index) -> None:
    def crops(seed: int, positions: range) -> torch.Tensor:
        dataset = CropDataset(coded, seed, 8, Captures())
        return torch.stack([read(dataset, position, 2)[1] for position in positions])

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
    dataset = CropDataset(Index([tmp_path / "s"]), 0, 16, Captures(supervised=True))
    seen = set()
    for position in range(20):
        noisy, reference = (np.sort(np.rint(image.numpy() * 255).ravel()) for image in read(dataset, position, 0)[1])
        np.testing.assert_array_equal(reference, np.sort(clean.ravel()))
        seen.add(next(n for n, pixels in enumerate(captures) if np.array_equal(np.sort(pixels.ravel()), noisy)))
    assert seen == {0, 1}


@given(captures=st.integers(1, 7), turn=st.integers(0, 10**12))
def test_every_ordered_pair_of_captures_has_its_turn_once(captures: int, turn: int) -> None:
    turns = [capture_order(captures, turn + k) for k in range(max(1, captures * (captures - 1)))]
    assert all(sorted(order) == list(range(captures)) for order in turns)
    assert len({tuple(order[:2]) for order in turns}) == len(turns)


def test_epochs_use_all_ordered_pairs_of_a_scene_alike(coded: Index) -> None:
    """The last sample of every epoch is dropped, so an epoch is shorter than the shards."""
    order = Order(coded.sizes, 0, 4)
    dataset = CropDataset(coded, 3, 8, Captures(), epoch=order.samples_per_epoch)
    seen: dict[int, list[tuple[int, ...]]] = {}
    for position in range(12 * order.samples_per_epoch):
        number = position % 4
        pair = decoded(read(dataset, position, number)[1])
        seen.setdefault(number, []).append(tuple(pair[:, 1, 0, 0]))
    for pairs in seen.values():
        assert sorted(pairs[:6]) == sorted(pairs[6:]) == sorted(itertools.permutations(range(3), 2))
    assert len({pairs[0] for pairs in seen.values()}) > 1


def test_the_mean_is_that_of_all_captures_but_the_input(coded: Index) -> None:
    for position in range(12):
        first, mean = read(CropDataset(coded, 3, 8, Captures(target="mean")), position, 1)[1] * 65535
        both = read(CropDataset(coded, 3, 8, Captures(), averaged=True), position, 1)[1] * 65535
        torch.testing.assert_close(both[[0, 2]], torch.stack([first, mean]))
        one, other = first[1, 0, 0].round(), both[1, 1, 0, 0].round()
        assert one != other
        torch.testing.assert_close(mean[1], torch.full((8, 8), (3 - one.item()) / 2), atol=1e-2, rtol=0)
        for image in (mean, both[1]):  # everything else is the same place of the same scene
            torch.testing.assert_close(image[[0, 2, 3]], first[[0, 2, 3]], atol=1e-2, rtol=0)
    assert read(CropDataset(coded, 3, 8, Neighbours()), 5, 1)[1].shape == (1, 4, 8, 8)
    singles = {read(CropDataset(coded, 3, 8, Neighbours()), 5 * k, 1)[1][0, 1, 0, 0].item() for k in range(3)}
    assert len(singles) == 3


def test_workers_do_not_change_the_crops(make_shards: Callable[..., Path]) -> None:
    dataset = CropDataset(Index([make_shards(12, shard_samples=5)]), 0, 16, Synthetic())
    alone, helped = load(dataset, 5), load(dataset, 5, workers=2)
    for a, b in zip(alone, helped, strict=True):
        assert a.positions.tolist() == b.positions.tolist()
        assert a.samples.tolist() == b.samples.tolist()
        assert torch.equal(a.pixels, b.pixels)
    assert alone[0].positions.tolist() == [0, 1, 2, 3]
    assert alone[0].pixels.shape == (4, 1, 3, 16, 16)


def test_micro_batches_join_to_the_batch(make_shards: Callable[..., Path]) -> None:
    dataset = CropDataset(Index([make_shards(12)]), 0, 16, Synthetic())
    (whole,) = load(dataset, 1, micro_batch=8)
    parts = load(dataset, 4, micro_batch=2)
    assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)
    assert np.concatenate([part.samples for part in parts]).tolist() == whole.samples.tolist()


def test_damaged_sample_is_replaced_by_its_position_alone(make_shards: Callable[..., Path]) -> None:
    index = Index([make_shards(9, encoding="png", shard_samples=4)])
    dataset = CropDataset(index, 0, 16, Synthetic())
    before = {position: read(dataset, position, position % 9)[1] for position in range(18)}
    key = damage(index, 4)
    for position, images in before.items():
        number = position % 9
        used, replaced, bad = read(dataset, position, number)
        if number == 4:
            assert used != 4
            assert torch.equal(replaced, read(dataset, position, used)[1])
            assert bad
            assert all(key in str(message) for message in bad)
        else:
            assert torch.equal(replaced, images)
            assert not bad
    chosen = [read(dataset, position, 4)[0] for position in range(40)]
    assert set(chosen) == set(range(9)) - {4}
    assert chosen == [read(CropDataset(index, 0, 16, Synthetic()), position, 4)[0] for position in range(40)]
    assert chosen != [read(CropDataset(index, 1, 16, Synthetic()), position, 4)[0] for position in range(40)]


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_samples_are_reported_with_the_batch(make_shards: Callable[..., Path], workers: int) -> None:
    index = Index([make_shards(8, encoding="png")])
    key = damage(index, 3)
    batches = load(CropDataset(index, 0, 16, Synthetic()), 2, workers)  # one epoch
    named = [str(message) for batch in batches for message in batch.bad]
    assert named
    assert all(key in message for message in named)
    assert 3 not in np.concatenate([batch.samples for batch in batches])
    assert np.concatenate([batch.positions for batch in batches]).tolist() == list(range(8))


def test_shards_with_nothing_readable_give_zeros_and_a_message(coded: Index) -> None:
    """The loop stops all ranks together; here the batch only keeps its shape."""
    for number in range(5):
        tar, sample = coded.sample(number)
        with tar.open("r+b") as file:
            file.truncate(sample.captures[0].offset if number == 0 else tar.stat().st_size)
    for pairs, images in ((Synthetic(), 1), (Captures(), 2)):
        batch = CropDataset(coded, 0, 8, pairs)[[(6, 0)]]
        assert torch.equal(batch.normalised(), torch.zeros(1, images, 4, 8, 8))
        assert batch.positions.tolist() == [6]
        assert len(batch.bad) == 1
        assert str(coded.paths[0]) in str(batch.bad[0])


def test_samples_of_a_tar_that_is_another_are_replaced(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(4, shard_samples=2)
    shutil.copy(folder / "shard-000000.tar", folder / "shard-000001.tar")
    dataset = CropDataset(Index([folder]), 0, 16, Synthetic())
    for position in range(10):
        sample, images, bad = read(dataset, position, 2)
        assert sample in (0, 1)
        assert torch.equal(images, read(dataset, position, sample)[1])
        assert bad
        assert all(str(folder / "shard-000001.tar") in str(message) for message in bad)


@pytest.mark.parametrize("encoding", ["npy", "png"])
def test_a_tar_cut_off_under_a_running_loader_loses_its_samples_and_no_others(
    make_shards: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setattr(open_files, "TRUSTED", 0.0)
    index = Index([make_shards(16, encoding=encoding, shard_samples=8)])
    dataset = CropDataset(index, 0, 16, Synthetic())
    before = {position: read(dataset, position, position)[1] for position in range(16)}
    tar, sample = index.sample(12)
    with tar.open("r+b") as file:
        file.truncate(sample.captures[0].offset + 60)
    for position, images in before.items():
        used, again, bad = read(dataset, position, position)
        if position < 12:
            assert (used, bad) == (position, [])
            assert torch.equal(again, images)
        else:
            assert used < 12
            assert f"{tar}: sample {index.sample(position)[1].key}: " in str(bad[0])
    helped = [load(dataset, 4, workers) for workers in (0, 2)]  # two epochs
    for one, other in zip(*helped, strict=True):
        assert np.array_equal(one.samples, other.samples)
        assert torch.equal(one.pixels, other.pixels)
        assert [*map(str, one.bad)] == [*map(str, other.bad)]
    assert sum(len(batch.bad) for batch in helped[0]) == 4


def test_what_the_shards_cannot_give_is_refused(make_shards: Callable[..., Path]) -> None:
    folder = make_shards(2, size=(40, 30, 3), tile=32)
    index = Index([folder])
    CropDataset(index, 0, 30, Synthetic())
    with pytest.raises(UserError, match=rf"data\.crop 31: {folder}.*32x30"):
        CropDataset(index, 0, 31, Synthetic())
    with pytest.raises(UserError, match=rf"data\.shards: {folder}.* has samples with 1 capture.* captures needs 2"):
        CropDataset(index, 0, 16, Captures())
    with pytest.raises(UserError, match=rf"data\.shards: {folder}.* without KEY\.clean, .* pairs\.supervised=false"):
        CropDataset(index, 0, 16, Captures(supervised=True))


def test_a_batch_has_one_message_for_each_replaced_sample(make_shards: Callable[..., Path]) -> None:
    index = Index([make_shards(9, encoding="png")])
    damaged = {number: damage(index, number) for number in (2, 5, 6, 7, 8)}
    batch = CropDataset(index, 0, 16, Synthetic())[[(5, 2), (6, 0), (7, 5)]]
    assert [message for key in (damaged[2], damaged[5]) for message in batch.bad if key in str(message)] == batch.bad
    assert batch.samples[1] == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("pairs", [Synthetic(), Captures()])
def test_crops_are_to_the_bit_what_read_pixels_gives(tmp_path: Path, dtype: type, pairs: Pairs) -> None:
    for scene, capture in itertools.product(range(4), range(2)):
        pixels = random_pixels((20, 24, 3), dtype, 2 * scene + capture)
        write_image(tmp_path / "scenes" / str(scene) / f"{capture}.tif", pixels)
    build(tmp_path / "scenes", tmp_path / "shards", Options(Grouping("folder"), black=3.3, white=np.pi * 60))
    index = Index([tmp_path / "shards"])
    dataset = CropDataset(index, 7, 16, pairs)
    places = [(position, position % 4) for position in range(100, 140)]
    batch = dataset[places]
    assert batch.pixels.numpy().dtype == dtype
    images = batch.normalised()
    assert images.dtype == torch.float32
    for (position, number), image in zip(places, images, strict=True):
        tar, sample = index.sample(number)
        members = [sample.captures[0]]
        if pairs.name == "captures":
            first = capture_order(2, rng.integer(7, number, "first-pair", 2) + position // 4)[0]
            members = [sample.captures[first], sample.captures[1 - first]]
        top, left, flip, turns = np.unravel_index(rng.integer(7, position, "crop", 5 * 9 * 8), (5, 9, 2, 4))
        for member, found in zip(members, image, strict=True):
            crop = np.rot90(read_pixels(tar, sample, member, (top, left, 16, 16)), turns)
            crop = crop[:, ::-1] if flip else crop
            np.testing.assert_array_equal(found.numpy(), crop.transpose(2, 0, 1))


def test_samples_of_several_types_and_ranges_share_a_batch(tmp_path: Path) -> None:
    for name, dtype, white in (("a", np.uint8, 200.0), ("b", np.float32, 1.5), ("c", np.uint16, 4095.0)):
        for number in range(3):
            write_image(tmp_path / name / f"{number}.tif", random_pixels((20, 20, 1), dtype, number))
        build(tmp_path / name, tmp_path / f"{name}-shards", Options(white=white))
    dataset = CropDataset(Index([tmp_path / f"{name}-shards" for name in "abc"]), 0, 16, Synthetic())
    for numbers in ((0, 3, 6), (3, 0, 6), (6, 1, 7), (2, 1, 0)):
        places = [(position, number) for position, number in enumerate(numbers)]
        batch = dataset[places]
        assert batch.pixels.dtype == (torch.uint8 if max(numbers) < 3 else torch.float32)
        for (position, number), image in zip(places, batch.normalised(), strict=True):
            assert torch.equal(image, read(dataset, position, number)[1])


@given(turns=st.integers(0, 3), flip=st.booleans(), height=st.integers(1, 4), width=st.integers(1, 4))
def test_symmetries_are_those_of_numpy(turns: int, flip: bool, height: int, width: int) -> None:
    pixels = random_pixels((height, width, 2))
    turned = np.rot90(pixels, turns)
    np.testing.assert_array_equal(_symmetry(pixels, turns + 4 * flip), turned[:, ::-1] if flip else turned)


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
    with pytest.raises(UserError, match=named):
        DataSettings(**values)


def test_one_folder_or_several() -> None:
    assert folder_list("a", "data.shards") == [Path("a")]
    assert folder_list(["a", "b"], "data.shards") == [Path("a"), Path("b")]
