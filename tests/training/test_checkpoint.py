from pathlib import Path

import processes
import pytest
import torch

from n2n_dist.errors import Refusal
from n2n_dist.model.resunet import ModelSettings, ResUNet
from n2n_dist.training.backend import Backend
from n2n_dist.training.checkpoint import Checkpoints, CheckpointSettings
from n2n_dist.training.checkpoint_files import Progress
from n2n_dist.training.optim import OptimSettings, make_optimizer

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def network(seed: int, width: int = 8) -> ResUNet:
    torch.manual_seed(seed)
    model = ResUNet(ModelSettings(width=width, depths=[1, 1]))
    torch.nn.init.normal_(model.exit.weight)
    return model


def trained(seed: int) -> tuple[ResUNet, ResUNet, torch.optim.AdamW]:
    model, ema = network(seed), network(seed + 1)
    optimizer = make_optimizer(model, OptimSettings())
    for _ in range(3):
        model(torch.rand(1, 3, 16, 16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, ema, optimizer


def progress(step: int) -> Progress:
    return Progress(step=step, samples_seen=8 * step, best=31.4159, steps=100, data="abc", identity={"run.seed": 0})


@pytest.fixture(scope="module")
def parts() -> tuple[ResUNet, ResUNet, torch.optim.AdamW]:
    return trained(0)


@pytest.fixture
def checkpoints(tmp_path: Path, backend: Backend) -> Checkpoints:
    return Checkpoints(tmp_path, CheckpointSettings(keep=3), backend)


def write(checkpoints: Checkpoints, *what: object) -> None:
    checkpoints.save(*what)
    checkpoints.finish()


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def largest_file(folder: Path) -> Path:
    return max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_is_saved_comes_back_bit_by_bit(checkpoints: Checkpoints, parts: tuple) -> None:
    model, ema, optimizer = parts
    write(checkpoints, model, ema, optimizer, progress(7))
    path, found = checkpoints.newest(warn=pytest.fail)
    assert found == progress(7)
    assert path.name == "step-00000007"

    other, other_ema = network(10), network(11)
    other_optimizer = make_optimizer(other, OptimSettings())
    checkpoints.load(path, other, other_ema, other_optimizer, found)
    for saved, loaded in ((model, other), (ema, other_ema)):
        for name, tensor in saved.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        optimizer.state[p]["step"].fill_(7)  # that of the checkpoint
        assert optimizer.state[p].keys() == other_optimizer.state[q].keys()
        for key, value in optimizer.state[p].items():
            assert torch.equal(other_optimizer.state[q][key], value), (name, key)


def test_no_checkpoint_is_no_error(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest(warn=pytest.fail) is None


def test_the_newest_are_kept(checkpoints: Checkpoints, parts: tuple) -> None:
    for step in (1, 2, 9, 10, 100):
        write(checkpoints, *parts, progress(step))
    assert names(checkpoints) == ["step-00000009", "step-00000010", "step-00000100"]
    assert checkpoints.newest(warn=pytest.fail)[1].step == 100


def test_a_step_that_is_saved_again_replaces_the_old_one(checkpoints: Checkpoints, parts: tuple) -> None:
    write(checkpoints, *parts, progress(5))
    write(checkpoints, *trained(20), progress(5))
    path, found = checkpoints.newest(warn=pytest.fail)
    assert names(checkpoints) == ["step-00000005"]
    other = trained(30)
    checkpoints.load(path, *other, found)
    assert torch.equal(other[0].exit.weight, trained(20)[0].exit.weight)


def test_an_unfinished_one_is_ignored_and_written_over(checkpoints: Checkpoints, parts: tuple) -> None:
    write(checkpoints, *parts, progress(4))
    write(checkpoints, *parts, progress(6))
    (checkpoints.folder / "step-00000006" / "manifest.json").unlink()  # the last file to be written
    leftover = checkpoints.folder / "step-00000008.tmp"
    leftover.mkdir()
    (leftover / "__0_0.distcp").write_bytes(b"half")
    (leftover / "__7_0.distcp").write_bytes(b"of a larger world")
    assert checkpoints.newest(warn=pytest.fail)[1].step == 4
    write(checkpoints, *parts, progress(8))
    path, found = checkpoints.newest(warn=pytest.fail)
    assert found.step == 8
    assert not (path / "__7_0.distcp").exists()
    assert not leftover.exists()


@pytest.mark.parametrize(
    "damage",
    [
        "a flipped byte",
        "a missing file",
        "half a manifest",
        "another step in the manifest",
        "a manifest of another kind",
    ],
)
def test_a_damaged_one_is_set_aside_loudly_and_the_one_before_used(
    checkpoints: Checkpoints, parts: tuple, damage: str
) -> None:
    write(checkpoints, *parts, progress(4))
    write(checkpoints, *parts, progress(6))
    newest = checkpoints.folder / "step-00000006"
    manifest = newest / "manifest.json"
    match damage:
        case "a flipped byte":
            flip_a_byte(largest_file(newest))
        case "a missing file":
            (newest / ".metadata").unlink()
        case "half a manifest":
            manifest.write_text(manifest.read_text()[:100])
        case "another step in the manifest":
            manifest.write_text(manifest.read_text().replace('"samples_seen": 48', '"samples_seen": 56'))
        case "a manifest of another kind":
            manifest.write_text("[]")
    said: list[str] = []
    path, found = checkpoints.newest(warn=said.append)
    assert (path.name, found.step) == ("step-00000004", 4)
    assert len(said) == 1
    assert said[0].startswith("checkpoint step-00000006 is damaged (")
    assert "set aside as step-00000006.damaged" in said[0]
    assert names(checkpoints) == ["step-00000004", "step-00000006.damaged"]
    assert checkpoints.newest(warn=pytest.fail)[1].step == 4, "said once"


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_until_someone_looks(
    checkpoints: Checkpoints, parts: tuple
) -> None:
    for step in (4, 6):
        write(checkpoints, *parts, progress(step))
        flip_a_byte(largest_file(checkpoints.folder / f"step-{step:08d}"))
    said: list[str] = []
    for _ in range(2):  # a job that is requeued must not begin anew over the weights that are there
        with pytest.raises(Refusal, match=r"all checkpoints are damaged; start in a new run.dir"):
            checkpoints.newest(warn=said.append)
    assert len(said) == 2


def test_one_of_another_version_is_refused_and_left_alone(checkpoints: Checkpoints, parts: tuple) -> None:
    write(checkpoints, *parts, progress(4))
    manifest = checkpoints.folder / "step-00000004" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 99'))
    with pytest.raises(Refusal, match="written by another version of n2n_dist; continue it with that, or"):
        checkpoints.newest(warn=pytest.fail)
    assert names(checkpoints) == ["step-00000004"]


def test_one_of_another_network_is_refused(checkpoints: Checkpoints, parts: tuple) -> None:
    write(checkpoints, *parts, progress(4))
    wide = network(0, width=16)
    path, found = checkpoints.newest(warn=pytest.fail)
    with pytest.raises(Refusal, match="does not fit this network"):
        checkpoints.load(path, wide, network(1, width=16), make_optimizer(wide, OptimSettings()), found)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"minutes": 0.0}, {"minutes": float("nan")}, {"keep": 1}])
def test_values_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(Refusal, match=rf"checkpoint\.{next(iter(wrong))} .*: must be"):
        CheckpointSettings(**wrong)


def test_a_run_falls_back_to_the_checkpoint_before(tmp_path: Path) -> None:
    settings = (f"run.dir={tmp_path}", "train.steps=4", "checkpoint.every=2")
    processes.train(*settings).checked()
    weights = (tmp_path / "last.safetensors").read_bytes()
    (tmp_path / "last.safetensors").unlink()
    flip_a_byte(largest_file(tmp_path / "checkpoints" / "step-00000004"))
    again = processes.train(*settings).checked()
    assert "checkpoint step-00000004 is damaged (the bytes of " in again.out[0]
    assert "continuing after step 2 of 4" in again.out[0]
    assert (tmp_path / "last.safetensors").read_bytes() == weights
