import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.api import CheckpointException

from n2n_dist.checkpoint import format as files
from n2n_dist.checkpoint.format import Manifest, TrainState
from n2n_dist.errors import UserError
from n2n_dist.models.resunet import ResUNet, ResUNetSettings

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
PROGRESS = TrainState(step=7, samples_seen=56, best=None, steps=100, data="abc", identity={"run.seed": 0})
NAMES = st.dictionaries(st.text("abcdef.", min_size=1, max_size=6), st.integers(0, 1000), max_size=40)


def make(folder: Path, name: str = "step-00000007.tmp", content: str = "content", manifest: bool = False) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "__0_0.distcp").write_text(content)
    if manifest:
        (path / "manifest.json").write_text("{}")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@given(sizes=NAMES, world=st.integers(1, 9))
def test_every_tensor_has_one_owner_and_no_rank_more_than_an_even_share_and_one(
    sizes: dict[str, int], world: int
) -> None:
    shares = files.partition_by_size(sizes, world)
    assert len(shares) == world
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    heaviest = max(sum(sizes[name] for name in share) for share in shares)
    assert heaviest <= sum(sizes.values()) / world + max(sizes.values(), default=0)
    shuffled = dict(reversed(sizes.items()))
    assert files.partition_by_size(shuffled, world) == shares, "the order of the names does not matter"


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_the_shares_of_a_network_are_even(world: int) -> None:
    with torch.device("meta"):
        network = ResUNet(ResUNetSettings())
    tensors = files.named_tensors(network, network, lambda parameter: {"exp_avg": parameter, "exp_avg_sq": parameter})
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors}
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert sum(sizes.values()) == 16 * parameters
    for share in files.partition_by_size(sizes, world):
        assert sum(sizes[name] for name in share) == pytest.approx(16 * parameters / world, rel=0.1)


def test_what_is_committed_is_read_back(tmp_path: Path) -> None:
    partial = make(tmp_path)
    digests = {"__0_0.distcp": files.sha256(partial / "__0_0.distcp")}
    manifest = Manifest(PROGRESS, 4, "ZeRO-1", ResUNet(ResUNetSettings(width=8, depths=[1])).metadata(), digests)
    files.commit(partial, manifest)
    path = files.step_folder(tmp_path, 7)
    assert names(tmp_path) == ["step-00000007"]
    assert names(path) == ["__0_0.distcp", "manifest.json"]
    assert files.list_checkpoints(tmp_path) == [path]
    assert files.read_manifest(path) == manifest
    files.verify(path, digests)
    (path / "__0_0.distcp").write_text("Content")
    with pytest.raises(ValueError, match=r"^the bytes of __0_0.distcp have changed$"):
        files.verify(path, digests)
    (path / "__0_0.distcp").unlink()
    with pytest.raises(FileNotFoundError):
        files.verify(path, digests)


def test_only_whole_checkpoints_count_and_the_newest_comes_first(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        make(tmp_path, f"step-{step:08d}", manifest=True)
    for name in ("step-00000012.tmp", "step-00000013.old", "step-00000014.damaged", "step-last"):
        make(tmp_path, name, manifest=True)
    assert [path.name for path in files.list_checkpoints(tmp_path)] == [
        "step-00000010",
        "step-00000009",
        "step-00000002",
    ]
    assert files.list_checkpoints(tmp_path / "nowhere") == []


def test_what_a_dead_run_left_is_finished_or_removed(tmp_path: Path) -> None:
    make(tmp_path, "step-00000001.tmp")
    make(tmp_path, "step-00000002.tmp", manifest=True)  # it died just before the name
    make(tmp_path, "step-00000003.tmp", "new", manifest=True)  # or between an older one's name and its own
    make(tmp_path, "step-00000003.old", "old", manifest=True)
    make(tmp_path, "step-00000004.tmp", "new", manifest=True)
    make(tmp_path, "step-00000004", "old", manifest=True)
    make(tmp_path, "step-00000005.old", manifest=True)  # or while it removed one
    files.recover(tmp_path)
    assert names(tmp_path) == ["step-00000002", "step-00000003", "step-00000004"]
    assert (tmp_path / "step-00000003" / "__0_0.distcp").read_text() == "new"
    assert (tmp_path / "step-00000004" / "__0_0.distcp").read_text() == "new"
    files.recover(tmp_path)
    files.recover(tmp_path / "nowhere")
    assert len(names(tmp_path)) == 3


def test_what_goes_away_leaves_room_for_another_of_its_kind(tmp_path: Path) -> None:
    for content in ("first", "second"):
        assert files.quarantine(make(tmp_path, "step-00000007", content)).name == "step-00000007.damaged"
        assert names(tmp_path) == ["step-00000007.damaged"]
    assert (tmp_path / "step-00000007.damaged" / "__0_0.distcp").read_text() == "second"
    make(tmp_path, "step-00000008.old")
    files.remove(make(tmp_path, "step-00000008"))
    assert names(tmp_path) == ["step-00000007.damaged"]


def test_what_cannot_be_removed_yet_is_no_checkpoint_any_more_and_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(path: str, **_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", path)

    path = make(tmp_path, "step-00000008", manifest=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", busy)  # as NFS says of a file that another program reads
        files.remove(path)
    assert names(tmp_path) == ["step-00000008.old"]
    files.recover(tmp_path)
    assert not names(tmp_path)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(28, "No space left on device", "/there"), "No space left on device"),
        (RuntimeError("two\n lines"), "two lines"),
        (ValueError(), "ValueError"),
        (CheckpointException("write", {1: (OSError(28, "No space left on device"), None)}), "No space left on device"),
    ],
)
def test_a_reason_is_one_line(error: BaseException, text: str) -> None:
    assert files.reason(error) == text


def test_tensors_that_are_not_there_are_refused(tmp_path: Path) -> None:
    torch.distributed.checkpoint.save({"ema.a": torch.ones(3)}, checkpoint_id=tmp_path / "there", no_dist=True)
    tensor = torch.zeros(3)
    files.load(tmp_path / "there", {"ema.a": tensor})
    assert torch.equal(tensor, torch.ones(3))
    for wrong in ({"ema.b": torch.zeros(3)}, {"ema.a": torch.zeros(4)}):
        with pytest.raises(UserError, match=r"there: does not fit this network \(.+\); start in a new run.dir$"):
            files.load(tmp_path / "there", wrong)


def test_tensors_are_read_into_place_whatever_their_layout(tmp_path: Path) -> None:
    tensors = {name: torch.randn(*shape) for name, shape in (("a", (3,)), ("b", (8, 4, 3, 3)), ("c", (300, 1000)))}
    torch.distributed.checkpoint.save(tensors, checkpoint_id=tmp_path, no_dist=True)
    there = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    there["b"] = there["b"].to(memory_format=torch.channels_last)
    places = {name: tensor.data_ptr() for name, tensor in there.items()}
    files.load(tmp_path, there)
    for name, tensor in tensors.items():
        assert torch.equal(there[name], tensor), name
        assert there[name].data_ptr() == places[name], name
    with pytest.raises(UserError, match="a is of another size or type there"):
        files.load(tmp_path, {"a": torch.zeros(3, dtype=torch.float64)})


def test_a_process_that_is_lost_while_a_checkpoint_is_read_is_no_reason_to_start_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: object, **__: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:31234")

    monkeypatch.setattr(files.dcp, "load", lose)
    with pytest.raises(RuntimeError, match="closed by peer"):
        files.load(tmp_path, {})


def test_differences_name_the_keys_and_both_values() -> None:
    assert files.describe_differences({"a": 1, "b": 2}, {"a": 1, "b": 2}) == ""
    text = files.describe_differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4})
    assert text == "b is 2 there and 3 here; c is None there and 4 here"
