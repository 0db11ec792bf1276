import json
import os
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from support.images import random_pixels
from support.processes import ROOT

from n2n_dist.building import tiles
from n2n_dist.building.build import build, merge
from n2n_dist.building.plan import SHARDS, Options, read_plan
from n2n_dist.errors import UserError
from n2n_dist.images.image import Image, write_frames, write_image
from n2n_dist.scenes import Grouping
from n2n_dist.shards.index import VALIDATION, Index
from n2n_dist.shards.indexing import verify, write_index
from n2n_dist.shards.reading import read_pixels


def read_all(folder: Path) -> list[dict]:
    """Read shards as anyone would: with the webdataset package."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    return list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))


def silent(message: str) -> None:
    pass


@pytest.mark.parametrize("encoding", ["npy", "png"])
def test_any_webdataset_reader_reads_the_tiles_and_they_cover_the_image(tmp_path: Path, encoding: str) -> None:
    pixels = random_pixels((50, 91, 3))
    write_image(tmp_path / "in" / "sub" / "a b.png", pixels)
    report = build(tmp_path / "in", tmp_path / "out", Options(tile=32, encoding=encoding, shard_samples=4))
    assert (report.scenes, report.tiles, report.bad) == (1, 6, [])
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2
    canvas = np.full(pixels.shape, -1)
    for sample in read_all(tmp_path / "out"):
        about, tile = sample["json"], sample[f"0.{encoding}"]
        assert max(tile.shape[:2]) <= 32
        assert tile.dtype == np.uint8
        assert (about["source"], about["black"], about["white"], about["bit_depth"]) == ("sub/a b.png", 0, 255, 8)
        canvas[about["top"] : about["top"] + tile.shape[0], about["left"] : about["left"] + tile.shape[1]] = tile
    np.testing.assert_array_equal(canvas, pixels)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_images_stay_lossless(tmp_path: Path, dtype: type) -> None:
    pixels = random_pixels((40, 30, 2), dtype)
    write_image(tmp_path / "in" / "a.tif", pixels)
    build(tmp_path / "in", tmp_path / "out", Options(black=-1, white=2))
    (sample,) = read_all(tmp_path / "out")
    assert sample["0.npy"].dtype == dtype
    np.testing.assert_array_equal(sample["0.npy"], pixels)
    assert (sample["json"]["black"], sample["json"]["white"]) == (-1, 2)
    tar, described = Index([tmp_path / "out"]).sample(0)
    crop = read_pixels(tar, described, described.captures[0], (0, 0, 40, 30))
    np.testing.assert_allclose(crop, (pixels.astype(np.float64) + 1) / 3, rtol=1e-6, atol=1e-6)


def test_float_images_need_a_range(tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a.tif", random_pixels((20, 20, 1), np.float32))
    said: list[str] = []
    with pytest.raises(UserError, match="no usable image"):
        build(tmp_path / "in", tmp_path / "out", Options(), warn=said.append)
    assert "a.tif" in said[0]
    assert "--white" in said[0]


@pytest.mark.parametrize(("dtype", "other"), [(np.uint8, "png"), (np.uint16, "png"), (np.uint8, "webp")])
def test_encodings_give_equal_crops(tmp_path: Path, dtype: type, other: str) -> None:
    write_image(tmp_path / "in" / "a.png", random_pixels((40, 70, 3), dtype))
    crops = []
    for encoding in ("npy", other):
        build(tmp_path / "in", tmp_path / encoding, Options(tile=48, encoding=encoding))
        index = Index([tmp_path / encoding])
        samples = [index.sample(number) for number in range(len(index))]
        crops.append([read_pixels(tar, sample, sample.captures[0], (5, 7, 30, 16)) for tar, sample in samples])
    np.testing.assert_array_equal(*crops)


@pytest.mark.parametrize("count", [2, 3])
def test_captures_of_a_scene_become_one_sample(tmp_path: Path, count: int) -> None:
    scenes = {name: [random_pixels((20, 24, 1), np.uint16, n) for n in range(count)] for name in ("s1", "s2")}
    for name, captures in scenes.items():
        for number, pixels in enumerate(captures):
            write_image(tmp_path / "in" / name / f"{number}.png", pixels)
    build(tmp_path / "in", tmp_path / "out", Options(Grouping("folder")))
    samples = read_all(tmp_path / "out")
    assert len(samples) == 2
    for sample, captures in zip(samples, scenes.values(), strict=True):
        for number, pixels in enumerate(captures):
            np.testing.assert_array_equal(sample[f"{number}.npy"], pixels)
    index = Index([tmp_path / "out"])
    assert index.shards[0].captures == count
    assert len(index.sample(0)[1].captures) == count


@pytest.mark.parametrize(
    ("odd", "what"),
    [((20, 25, 1), "must agree"), ((20, 24, 3), "must agree"), (None, "only capture")],
)
def test_scene_that_gives_no_pairs_is_named_and_skipped(tmp_path: Path, odd: tuple[int, ...], what: str) -> None:
    for name in ("a/0", "a/1", "b/0", "c/0", "c/1"):
        write_image(tmp_path / "in" / f"{name}.png", random_pixels((20, 24, 1)))
    if odd:
        write_image(tmp_path / "in" / "b" / "1.png", random_pixels(odd))
    said: list[str] = []
    report = build(tmp_path / "in", tmp_path / "out", Options(Grouping("folder")), warn=said.append)
    assert report.scenes == len(Index([tmp_path / "out"])) == 2
    assert len(said) == len(report.bad) == 1
    assert f"b/{1 if odd else 0}.png" in said[0]
    assert what in said[0]


def test_images_beside_scene_folders_are_refused(tmp_path: Path) -> None:
    for name in ("a/0", "a/1", "stray"):
        write_image(tmp_path / "in" / f"{name}.png", random_pixels((20, 24, 1)))
    with pytest.raises(UserError, match="outside a scene folder"):
        build(tmp_path / "in", tmp_path / "out", Options(Grouping("folder")))


def test_one_unreadable_file_is_skipped_and_counted(tmp_path: Path, write_images: Callable[..., Path]) -> None:
    source = write_images("a.png", "b.png", "c.png")
    (source / "b.png").write_bytes(b"nothing")
    said: list[str] = []
    report = build(source, tmp_path / "out", Options(), warn=said.append)
    assert (report.scenes, len(report.bad)) == (2, 1)
    assert str(source / "b.png") in report.bad[0]
    assert str(source / "b.png") in said[0]
    assert [sample["json"]["source"] for sample in read_all(tmp_path / "out")] == ["a.png", "c.png"]


def test_too_many_unreadable_files_leave_nothing_behind(tmp_path: Path, write_images: Callable[..., Path]) -> None:
    source = write_images("a.png", "b.png", "c.png", "d.png")
    for name in ("b.png", "d.png"):
        (source / name).write_bytes(b"nothing")
    with pytest.raises(UserError, match=f"{source}: 2 unreadable"):
        build(source, tmp_path / "out", Options(shard_samples=1), warn=silent)
    assert list(tmp_path.iterdir()) == [source]
    assert build(source, tmp_path / "out", Options(max_bad=0.5), warn=silent).scenes == 2


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for source in (tmp_path / "in", tmp_path / "none"):
        with pytest.raises(UserError, match=str(source)):
            build(source, tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()


def test_what_exists_is_not_written_over(tmp_path: Path, write_images: Callable[..., Path]) -> None:
    source = write_images("a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        build(source, tmp_path / "out", Options())
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_what_another_build_left_or_is_writing_is_not_touched(
    tmp_path: Path, write_images: Callable[..., Path]
) -> None:
    source, partial = write_images("a.png"), tmp_path / "out.partial"
    partial.mkdir()
    (partial / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match=f"{partial}: exists"):
        build(source, tmp_path / "out", Options())
    assert [path.read_text() for path in partial.iterdir()] == ["precious"]
    assert not (tmp_path / "out").exists()


def test_the_same_images_give_the_same_bytes(tmp_path: Path, write_images: Callable[..., Path]) -> None:
    source = write_images("a.png", "b.png", "c.png")
    for name in ("one", "two"):
        build(source, tmp_path / name, Options(tile=32, shard_samples=3, holdout=1))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert files == sorted(path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*.*"))
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    with tarfile.open(tmp_path / "one" / "shard-000000.tar") as archive:
        assert {(m.mtime, m.uname, m.gname, m.mode) for m in archive} == {(0, "n2n", "n2n", 0o644)}


@pytest.mark.parametrize(
    ("dtype", "encoding", "channels", "options"),
    [
        (np.uint8, "npy", 4, {}),
        (np.uint8, "webp", 3, {"white": 200.5}),
        (np.uint16, "png", 1, {"holdout": 1}),
        (np.float32, "npy", 2, {"black": 0.125, "white": 0.75}),
    ],
)
def test_the_index_made_while_writing_is_that_of_the_tars(
    tmp_path: Path, dtype: type, encoding: str, channels: int, options: dict
) -> None:
    for scene in "ab":
        for name in (*map(str, range(11)), "clean"):
            write_image(tmp_path / "in" / scene / f"{name}.tif", random_pixels((20, 40, channels), dtype))
    grouping, out = Grouping("folder", clean="clean"), tmp_path / "out"
    build(tmp_path / "in", out, Options(grouping, tile=32, encoding=encoding, shard_samples=2, **options))
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    for folder in (out, *out.glob(VALIDATION)):
        write_index(folder)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    assert Index([out]).sample(0)[1].captures[10].extension == encoding


def test_held_out_scenes_are_spread_and_not_trained_on(tmp_path: Path, write_images: Callable[..., Path]) -> None:
    names = [f"{number}.png" for number in range(10)]
    source = write_images(*names)
    build(source, tmp_path / "out", Options(tile=32, holdout=3))
    train = {sample["json"]["source"] for sample in read_all(tmp_path / "out")}
    validation = {sample["json"]["source"] for sample in read_all(tmp_path / "out" / VALIDATION)}
    assert validation == {"0.png", "3.png", "6.png"}
    assert train == set(names) - validation
    for holdout in (-1, 10):
        with pytest.raises(UserError, match=f"--holdout {holdout}"):
            build(source, tmp_path / "other", Options(holdout=holdout))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SMALL = {"tile": 16, "shard_samples": 2, "holdout": 2}
"""Settings that make several groups of a few small images."""


@pytest.fixture
def photos(tmp_path: Path, write_images: Callable[..., Path]) -> Path:
    """Twelve images, one of which cannot be decoded though its header is sound."""
    source = write_images(*(f"{number:02d}.png" for number in range(12)))
    data = (source / "05.png").read_bytes()
    (source / "05.png").write_bytes(data[: len(data) // 2])
    return source


def test_parts_and_jobs_give_the_bytes_of_a_single_build(tmp_path: Path, photos: Path) -> None:
    build(photos, tmp_path / "whole", Options(**SMALL), warn=silent)
    assert len(list((tmp_path / "whole").glob("*.tar"))) > SHARDS
    whole = tree(tmp_path / "whole")
    build(photos, tmp_path / "jobs", Options(**SMALL), jobs=3, warn=silent)
    assert tree(tmp_path / "jobs") == whole
    reports = []
    for part in (3, 1, 2):
        with pytest.raises(UserError, match=r"not built yet|not an unfinished build"):
            merge(tmp_path / "parts")
        reports.append(build(photos, tmp_path / "parts", Options(**SMALL), part=(part, 3), warn=silent))
    assert not (tmp_path / "parts").exists()
    report = merge(tmp_path / "parts")
    assert (report.tiles, report.scenes, len(report.bad)) == (sum(r.tiles for r in reports), 11, 1)
    assert tree(tmp_path / "parts") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "jobs", "parts", "whole"]


def test_a_tar_holds_tiles_of_many_images(tmp_path: Path, photos: Path) -> None:
    build(photos, tmp_path / "out", Options(tile=16, shard_samples=24), warn=silent)
    index = Index([tmp_path / "out"])
    assert len(index.shards) > 3
    for shard in index.shards:
        with tarfile.open(tmp_path / "out" / shard.name) as archive:
            assert len({member.name[:6] for member in archive}) > 5


KILLED = """
import os, sys
from pathlib import Path
from n2n_dist.shards import tar
from n2n_dist.building import tiles
from n2n_dist.building import build
from n2n_dist.building.plan import Options

source, folder = map(Path, sys.argv[1:])
options = Options(tile=16, shard_samples=2, holdout=2)
calls = last = 0

def counted(function):
    def call(*arguments, **named):
        global calls
        if calls >= last:
            os.kill(os.getpid(), 9)
        calls += 1
        return function(*arguments, **named)
    return call

os.fsync = lambda descriptor: None  # a kill loses nothing that was written
Path.replace, Path.rename = counted(Path.replace), counted(Path.rename)
tiles.encode, tar.TarWriter.finish = counted(tiles.encode), counted(tar.TarWriter.finish)
build.list_members, build.fsync = counted(build.list_members), counted(build.fsync)
build.shutil.rmtree, Path.unlink = counted(build.shutil.rmtree), counted(Path.unlink)

def killed(at, to, jobs):
    global last
    last = at
    child = os.fork()
    if not child:
        build.build(source, to, options, jobs=jobs, warn=lambda line: None)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 9

last = 10**9
build.build(source, folder / "counted", options, warn=lambda line: None)
calls, total = 0, calls
points = [*range(0, total - 6, 17), *range(total - 6, total)]
for number, at in enumerate(points):
    assert killed(at, folder / f"{number}", 1 + number % 2), at
assert not killed(total, folder / "not-killed", 1)
print(total)
"""


def test_a_build_killed_anywhere_goes_on_and_gives_the_same_bytes(tmp_path: Path, photos: Path) -> None:
    report = build(photos, tmp_path / "whole", Options(**SMALL), warn=silent)
    (tmp_path / "out").mkdir()
    subprocess.run([sys.executable, "-c", KILLED, str(photos), str(tmp_path / "out")], check=True)
    whole = tree(tmp_path / "whole")
    folders = [path for path in (tmp_path / "out").iterdir() if path.name.removesuffix(".partial").isdecimal()]
    named = [folder for folder in folders if folder.suffix != ".partial"]
    kept = 0
    for partial in folders:
        if partial in named:
            continue
        destination = partial.with_suffix("")
        finished = {}
        planned = (partial / "building" / "plan.json").is_file()
        for group in read_plan(partial).groups if planned else []:
            if (marker := partial / "building" / f"group-{group.number:06d}.json").is_file():
                names = [Path(group.folder) / shard["name"] for shard in json.loads(marker.read_text())["shards"]]
                finished |= {name: (partial / name).stat().st_mtime_ns for name in names}
        kept += len(finished)
        assert build(photos, destination, Options(**SMALL), warn=silent) == report
        assert tree(destination) == whole
        assert all((destination / name).stat().st_mtime_ns == time for name, time in finished.items())
    assert kept > SHARDS
    assert 0 < len(named) < len(folders)
    for number, destination in enumerate(sorted(named, key=lambda folder: int(folder.name))):  # killed with its name
        assert len(Index([destination])) == len(Index([tmp_path / "whole"]))
        verify(destination)
        if (destination / "building" / "plan.json").is_file():
            with pytest.raises(UserError, match="other files or settings"):
                build(photos, destination, Options(tile=16), warn=silent)
            finished = build(photos, destination, Options(**SMALL), warn=silent) if number % 2 else merge(destination)
            assert finished == report
            assert tree(destination) == whole
        with pytest.raises(UserError, match="exists already"):
            build(photos, destination, Options(**SMALL), warn=silent)


def test_a_folder_that_is_called_building_is_left_alone(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "out" / "building").mkdir(parents=True)
    (tmp_path / "out" / "building" / "plan.json").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        build(photos, tmp_path / "out", Options(**SMALL))
    assert (tmp_path / "out" / "building" / "plan.json").read_text() == "precious"


def test_tars_are_on_the_disk_before_they_are_said_to_be_there(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk: set[tuple[int, int]] = set()
    fsync, replace = os.fsync, Path.replace
    checked = 0

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        about = os.fstat(descriptor)
        on_disk.add((about.st_ino, about.st_size if stat.S_ISREG(about.st_mode) else -1))

    def replaced(path: Path, target: Path) -> Path:
        nonlocal checked
        if target.name.startswith("group-"):
            folder = target.parent.parent
            record = json.loads(path.read_text())
            for shard in record["shards"]:
                (found,) = [tar for tar in folder.rglob(shard["name"]) if tar.stat().st_size == shard["bytes"]][:1]
                for file in (found, found.with_suffix(".index.json"), path):
                    assert (file.stat().st_ino, file.stat().st_size) in on_disk
                assert (found.parent.stat().st_ino, -1) in on_disk
                checked += 1
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", replaced)
    build(photos, tmp_path / "out", Options(**SMALL), warn=silent)
    assert checked > SHARDS


def test_bad_files_of_finished_groups_are_named_again(tmp_path: Path, photos: Path) -> None:
    said: list[list[str]] = [[], []]
    for lines in said:
        build(photos, tmp_path / "out", Options(**SMALL), part=(1, 1), warn=lines.append)
    assert said[0] == said[1]
    assert str(photos / "05.png") in said[0][0]


def test_a_reason_is_given_once_with_the_number_of_files(tmp_path: Path) -> None:
    for number in range(12):
        write_image(tmp_path / "in" / f"{number:02d}.tif", random_pixels((20, 20, 1), np.float32, number))
    said: list[str] = []
    with pytest.raises(UserError, match="no usable image"):
        build(tmp_path / "in", tmp_path / "out", Options(max_bad=1), warn=said.append)
    assert len(said) == 2
    assert said[0].startswith(f"skipped: {tmp_path / 'in'}")
    assert "--white" in said[0]
    assert ": 11 more, " in said[1]


def test_a_file_of_many_scenes_is_read_once_by_all_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_frames(tmp_path / "in" / "a.tif", [random_pixels((20, 24, 1), np.uint16, n) for n in range(30)])
    read: list[Path] = []
    frames = tiles.read_frames

    def slow(path: Path, *arguments: Any) -> list[Image]:
        read.append(path)
        time.sleep(0.05)
        return frames(path, *arguments)

    monkeypatch.setattr(tiles, "read_frames", slow)
    report = build(tmp_path / "in", tmp_path / "out", Options(), jobs=4)
    assert (report.scenes, len(read)) == (30, 1)


def test_jobs_read_images_at_the_same_time(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3, timeout=30)
    frames = tiles.read_frames

    def wait(*arguments: Any) -> list[Image]:
        together.wait()  # twelve files: four times three
        return frames(*arguments)

    monkeypatch.setattr(tiles, "read_frames", wait)
    assert build(photos, tmp_path / "out", Options(), jobs=3, warn=silent).scenes == 11


def test_other_files_beside_the_images_do_not_matter(tmp_path: Path, photos: Path) -> None:
    build(photos, photos / "out", Options(**SMALL), part=(1, 2), warn=silent)
    (photos / "slurm.log").write_text("part 1 is done")
    build(photos, photos / "out", Options(**SMALL), part=(2, 2), warn=silent)
    assert merge(photos / "out").scenes == 11


def test_parts_that_run_at_once_do_not_disturb_each_other(tmp_path: Path, photos: Path) -> None:
    build(photos, tmp_path / "whole", Options(**SMALL), warn=silent)
    command = [sys.executable, "shards/build.py", photos, tmp_path / "out", "--tile=16", "--shard-samples=2"]
    parts = [subprocess.Popen([*command, "--holdout=2", f"--part={k % 3 + 1}/3"], cwd=ROOT) for k in range(4)]
    assert [part.wait() for part in parts] == [0] * 4
    merge(tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_an_unfinished_build_of_something_else_is_refused(tmp_path: Path, photos: Path) -> None:
    build(photos, tmp_path / "out", Options(**SMALL), part=(1, 2), warn=silent)
    with pytest.raises(UserError, match="other files or settings"):
        build(photos, tmp_path / "out", Options(tile=16), part=(2, 2), warn=silent)
    (photos / "new.png").write_bytes((photos / "00.png").read_bytes())
    with pytest.raises(UserError, match="other files or settings"):
        build(photos, tmp_path / "out", Options(**SMALL), part=(2, 2), warn=silent)


@pytest.mark.parametrize("consecutive", [False, True])
def test_frames_of_stacks_become_captures(tmp_path: Path, consecutive: bool) -> None:
    frames = [random_pixels((20, 24, 1), np.uint16, n) for n in range(3)]
    write_frames(tmp_path / "in" / "a.tif", frames)
    build(tmp_path / "in", tmp_path / "out", Options(Grouping("stack", consecutive=consecutive)))
    samples = {sample["json"]["scene"]: sample for sample in read_all(tmp_path / "out")}
    expected = {"a#0": frames[:2], "a#1": frames[1:]} if consecutive else {"a": frames}
    assert samples.keys() == expected.keys()
    for name, captures in expected.items():
        found = [samples[name][f"{number}.npy"] for number in range(len(captures))]
        np.testing.assert_array_equal(np.stack(found), np.stack(captures))


def test_a_clean_reference_is_kept_apart(tmp_path: Path) -> None:
    images = {name: random_pixels((20, 24, 1), np.uint16, n) for n, name in enumerate(("0", "1", "clean"))}
    for name, pixels in images.items():
        write_image(tmp_path / "in" / "s" / f"{name}.png", pixels)
    build(tmp_path / "in", tmp_path / "out", Options(Grouping("folder", clean="clean")))
    (sample,) = read_all(tmp_path / "out")
    for name, pixels in images.items():
        np.testing.assert_array_equal(sample[f"{name}.npy"], pixels)
    assert Index([tmp_path / "out"]).shards[0].clean


def test_webp_of_deep_images_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a.png", random_pixels((20, 20, 3), np.uint16))
    with pytest.raises(UserError, match="WebP holds 8-bit RGB, not uint16 of 3 channels; use PNG or NPY"):
        build(tmp_path / "in", tmp_path / "out", Options(encoding="webp"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"encoding": "jpg"}, "--encoding jpg"),
        ({"tile": 8}, "--tile 8"),
        ({"shard_samples": 0}, "--shard-samples 0"),
        ({"max_bad": 0.0}, "--max-bad 0"),
    ],
)
def test_bad_options_are_refused_by_name(tmp_path: Path, options: dict, named: str) -> None:
    write_image(tmp_path / "in" / "a.png", random_pixels((20, 20, 1)))
    with pytest.raises(UserError, match=named):
        build(tmp_path / "in", tmp_path / "out", Options(**options))


def test_demo_shards_are_as_they_were_indexed_and_disjoint() -> None:
    demo = Path(__file__).resolve().parents[2] / "shards" / "demo"
    sources = {}
    for part in ("train", "validation"):
        verify(demo / part)
        sources[part] = {sample["json"]["source"].split("-")[0] for sample in read_all(demo / part)}
        assert len(Index([demo / part])) == {"train": 64, "validation": 8}[part]
    assert not sources["train"] & sources["validation"]
