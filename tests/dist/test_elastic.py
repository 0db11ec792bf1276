"""A run that moves between numbers of processes and ways to connect them is the run that never moved."""

from pathlib import Path

from support import processes
import pytest
import torch

from n2n_dist.config import load
from n2n_dist.models.resunet import ResUNet
from n2n_dist.checkpoint import format
from n2n_dist.checkpoint.tensors import named_tensors
from n2n_dist.distributed.zero import MOMENTS

STEPS, PART, BATCH = 20, 5, 8
SETTINGS = (f"train.steps={STEPS}", f"checkpoint.every={PART}")


def moved(run_dir: Path, *worlds: tuple[int, int], settings: tuple[str, ...] = ()) -> dict[int, tuple[str, ...]]:
    """Train in parts of five steps, each with another (world, zero); all but the last are killed in their next step."""
    pairs = run_dir.with_name(f"{run_dir.name}-pairs")
    for number, (world, zero) in enumerate(worlds, 1):
        last = number == len(worlds)
        finished = processes.train(
            f"run.dir={run_dir}",
            *SETTINGS,
            *settings,
            world=world,
            zero=zero,
            pairs=pairs,
            kill_at=None if last else number * PART * BATCH,
        )
        if last:
            finished.checked()
        else:
            assert 0 not in finished.codes
        if number > 1:
            assert f"continuing after step {(number - 1) * PART} of {STEPS}" in finished.out[0]
    return processes.pairs_by_position(pairs)


def state(run_dir: Path) -> dict[str, torch.Tensor]:
    """Read the last checkpoint as one process does, whoever wrote it."""
    config = load(run_dir / "config.yaml")
    model = ResUNet(config.model, config.data.crop)
    named = named_tensors(model, model, lambda parameter: dict.fromkeys(MOMENTS, parameter))
    tensors = {name: torch.zeros_like(tensor) for name, tensor in named}
    format.load(format.list_checkpoints(run_dir / "checkpoints")[0], tensors)
    return tensors


def difference(here: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    return (here - there).norm() / there.norm().clamp(min=1e-12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elastic")


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[int, tuple[str, ...]]:
    return moved(folder / "whole", (1, 0))


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, torch.Tensor]:
    """Train on two processes that never move.

    Their sums are in another order than those of one, which shows in moments of gradients that nearly cancel.
    """
    moved(folder / "two", (2, 0))
    return state(folder / "two")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(
    "worlds",
    [
        pytest.param([(2, 0), (1, 0), (4, 0), (2, 0)], id="2, 1, 4 and 2 processes"),
        pytest.param([(2, 0), (2, 1), (2, 2), (2, 0)], id="DDP, ZeRO-1, ZeRO-2 and DDP", marks=pytest.mark.slow),
    ],
)
def test_samples_noise_losses_and_state_are_those_of_one_process(
    folder: Path, whole: dict[int, tuple[str, ...]], two: dict[str, torch.Tensor], worlds: list[tuple[int, int]]
) -> None:
    run_dir = folder / "-".join(f"{world}.{zero}" for world, zero in worlds)
    assert moved(run_dir, *worlds) == whole
    there, here = processes.curves(folder / "whole"), processes.curves(run_dir)
    assert list(here["train/total"]) == list(range(1, STEPS + 1))
    assert list(here["train/total"].values()) == pytest.approx(list(there["train/total"].values()), rel=1e-5)
    assert here["train/learning_rate"] == there["train/learning_rate"]
    one, tensors = state(folder / "whole"), state(run_dir)
    for kind in ("model.", "ema.", *(f".{moment}" for moment in MOMENTS)):
        names = [name for name in one if name.startswith(kind) or name.endswith(kind)]
        assert difference(*(torch.cat([t[name].flatten() for name in names]) for t in (tensors, one))) < 1e-2, kind
    for name, tensor in tensors.items():
        assert difference(tensor, two[name]) < 1e-2, name  # lost moments would differ by half
        assert tensor.any(), name


def test_every_rank_keeps_and_writes_an_even_share(folder: Path, whole: dict[int, tuple[str, ...]]) -> None:
    run_dir = folder / "shares"
    processes.train(f"run.dir={run_dir}", "train.steps=1", "model.width=32", world=4).checked()
    files = list((run_dir / "checkpoints/step-00000001").glob("*.safetensors"))
    assert sorted(file.name for file in files) == [f"rank-{rank:04d}.safetensors" for rank in range(4)]
    sizes = [file.stat().st_size for file in files]
    assert sizes == pytest.approx([sum(sizes) / 4] * 4, rel=0.1)


def test_bfloat16_moves_no_further_than_the_worlds_lie_apart(folder: Path) -> None:
    settings = ("train.precision=bf16",)
    for world in (1, 2):
        moved(folder / f"bf16-{world}", (world, 0), settings=settings)
    moved(folder / "bf16", (2, 0), (1, 0), settings=settings)
    one, two, both = (
        torch.tensor(list(processes.curves(folder / name)["train/total"].values()))
        for name in ("bf16-1", "bf16-2", "bf16")
    )
    assert (one - two).abs().max() > 0
    assert torch.minimum((both - one).abs(), (both - two).abs()).max() <= (one - two).abs().max()
