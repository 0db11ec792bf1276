from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from support.images import random_pixels

from n2n_dist.errors import UserError
from n2n_dist.images.image import write_frames
from n2n_dist.scenes import Frame, Grouping, find_scenes


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Mapping[str, int]], Path]:
    """Write grey images of 8x6 pixels: the number of frames by name; a negative one is wider."""

    def write(files: Mapping[str, int]) -> Path:
        for name, frames in files.items():
            shape = (8, 6 if frames > 0 else 7, 1)
            write_frames(tmp_path / name, [random_pixels(shape, np.uint16) for _ in range(abs(frames))])
        return tmp_path

    return write


def captures(source: Path, grouping: Grouping) -> dict[str, list[tuple[str, int]]]:
    found = find_scenes(source, grouping)
    assert found.bad == []
    return {scene.name: [(frame.file, frame.number) for frame in scene.captures] for scene in found.scenes}


def test_every_frame_is_a_scene_of_its_own(folder: Callable) -> None:
    source = folder({"b.png": 1, "a/stack.tif": 3})
    assert captures(source, Grouping()) == {
        "a/stack.tif#0": [("a/stack.tif", 0)],
        "a/stack.tif#1": [("a/stack.tif", 1)],
        "a/stack.tif#2": [("a/stack.tif", 2)],
        "b.png": [("b.png", 0)],
    }
    assert {scene.recording for scene in find_scenes(source, Grouping()).scenes} == {"a/stack.tif", "b.png"}


def test_folders_are_scenes_whose_captures_are_in_natural_order(folder: Callable) -> None:
    source = folder({f"night/s{scene}/{n}.png": 1 for scene in range(2) for n in (1, 2, 10)})
    assert captures(source, Grouping("folder")) == {
        f"night/s{scene}": [(f"night/s{scene}/{n}.png", 0) for n in (1, 2, 10)] for scene in range(2)
    }


def test_files_are_scenes_whose_captures_are_frames(folder: Callable) -> None:
    source = folder({"a.tif": 3, "sub/b.npy": 2})
    expected = {"a": [("a.tif", n) for n in range(3)], "sub/b": [("sub/b.npy", n) for n in range(2)]}
    assert captures(source, Grouping("stack")) == expected


def test_neighbouring_frames_are_pairs(folder: Callable) -> None:
    source = folder({"a.tif": 4, **{f"b/{n}.png": 1 for n in (9, 10, 11)}})
    found = find_scenes(folder({}), Grouping("stack", consecutive=True))
    assert [(scene.name, [frame.number for frame in scene.captures]) for scene in found.scenes] == [
        ("a#0", [0, 1]),
        ("a#1", [1, 2]),
        ("a#2", [2, 3]),
    ]
    assert {scene.recording for scene in found.scenes} == {"a"}
    assert len(found.bad) == 3  # single images are no stacks
    (source / "a.tif").unlink()
    assert captures(source, Grouping("folder", consecutive=True)) == {
        "b#0": [("b/9.png", 0), ("b/10.png", 0)],
        "b#1": [("b/10.png", 0), ("b/11.png", 0)],
    }


def test_a_pattern_says_scene_and_capture_and_leaves_files_out(folder: Callable) -> None:
    source = folder({"x/cell7_t2.png": 1, "y/cell7_t1.png": 1, "cell8_t1.png": 1, "cell8_t10.png": 1, "dark.png": 1})
    grouping = Grouping("pattern", r"(?P<scene>cell\d+)_t(?P<capture>\d+)")
    assert captures(source, grouping) == {
        "cell7": [("y/cell7_t1.png", 0), ("x/cell7_t2.png", 0)],
        "cell8": [("cell8_t1.png", 0), ("cell8_t10.png", 0)],
    }
    assert find_scenes(source, grouping).ignored == ["dark.png"]


@pytest.mark.parametrize(
    ("files", "grouping"),
    [
        ({"s/0.png": 1, "s/clean.png": 1}, Grouping("folder", clean="clean")),
        ({"s.tif": 2, "gt/s.png": 1}, Grouping("stack", clean="gt/(?P<scene>.+)[.]png")),
        (
            {"s_0.png": 1, "s_1.png": 1, "s_mean.png": 1},
            Grouping("pattern", r"(?P<scene>.+)_(?P<capture>\d)", clean="(?P<scene>.+)_mean"),
        ),
    ],
)
def test_the_clean_reference_is_no_capture(folder: Callable, files: dict, grouping: Grouping) -> None:
    (scene,) = find_scenes(folder(files), grouping).scenes
    clean = next(name for name in files if "clean" in name or "gt" in name or "mean" in name)
    assert scene.clean == Frame(clean)
    assert clean not in [frame.file for frame in scene.captures]


@pytest.mark.parametrize(
    ("files", "grouping", "named"),
    [
        ({"a/0.png": 1}, Grouping("folder"), ["a/0.png", "only capture"]),
        ({"a.tif": 1}, Grouping("stack"), ["a.tif", "only capture"]),
        ({"a/0.png": 1, "a/1.png": -1}, Grouping("folder"), ["a/0.png", "a/1.png", "(8, 7)"]),
        ({"a/0.png": 1, "a/1.png": 1, "a/c.png": -1}, Grouping("folder", clean="c.png"), ["a/0.png", "a/c.png"]),
        (
            {"a/0.png": 1, "a/c.png": 1},
            Grouping("folder", consecutive=True, clean="c.png"),
            ["a/0.png", "only capture"],
        ),
        ({"a/0.png": 1, "a/1.tif": 3}, Grouping("folder"), ["a/1.tif", "3 frames", "--captures stack"]),
    ],
)
def test_a_scene_that_gives_no_pairs_is_named(folder: Callable, files: dict, grouping: Grouping, named: list) -> None:
    found = find_scenes(folder(files), grouping)
    assert found.scenes == []
    assert all(part in found.bad[0] for part in named)


def test_a_group_that_matches_nothing_leaves_the_file_out(folder: Callable) -> None:
    source = folder({"a_1.png": 1, "a_2.png": 1, "a.png": 1})
    grouping = Grouping("pattern", r"(?P<scene>[a-z])(_(?P<capture>\d))?")
    assert captures(source, grouping) == {"a": [("a_1.png", 0), ("a_2.png", 0)]}
    assert find_scenes(source, grouping).ignored == ["a.png"]


def test_an_unreadable_file_spoils_its_scene_alone(folder: Callable) -> None:
    source = folder({f"{scene}/{n}.png": 1 for scene in "ab" for n in range(2)})
    (source / "a" / "1.png").write_bytes(b"nothing")
    found = find_scenes(source, Grouping("folder"))
    assert [scene.name for scene in found.scenes] == ["b"]
    assert str(source / "a" / "1.png") in found.bad[0]


@pytest.mark.parametrize(
    ("files", "grouping", "named"),
    [
        ({"a.png": 1, "s/0.png": 1}, Grouping("folder"), "a.png"),
        ({"a.png": 1}, Grouping("pattern", "(?P<scene>x)(?P<capture>y)"), "matches none"),
        ({"s/0.png": 1, "s/c.png": 1, "s/cc.png": 1}, Grouping("folder", clean="c"), "for one scene"),
        ({"s/0.png": 1, "t/c.png": 1}, Grouping("folder", clean="c"), "no captures"),
        ({"a.tif": 2, "a.npy": 2}, Grouping("stack"), "a.npy and a.tif are both scene 'a'"),
    ],
)
def test_files_that_fit_no_scene_are_refused(folder: Callable, files: dict, grouping: Grouping, named: str) -> None:
    with pytest.raises(UserError, match=named):
        find_scenes(folder(files), grouping)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"captures": "files"}, "--captures files"),
        ({"captures": "pattern"}, "after it"),
        ({"captures": "folder", "pattern": "x"}, "only there"),
        ({"captures": "pattern", "pattern": "("}, "not a regular expression"),
        ({"captures": "pattern", "pattern": "(?P<scene>x)"}, "named groups"),
        ({"captures": "stack", "clean": "gt"}, "named groups"),
        ({"consecutive": True}, "need --captures"),
        ({"clean": "gt"}, "need --captures"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        Grouping(**options)
