"""The number of processes and the way they are connected change neither what is learned from nor what is learned."""

from pathlib import Path

from support import processes
import pytest

STEPS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worlds")


def trained(folder: Path, name: str, *settings: str, world: int, zero: int = 0) -> tuple[dict, dict]:
    pairs = folder / f"{name}-pairs"
    run_dir = folder / name
    finished = processes.train(
        f"run.dir={run_dir}", f"train.steps={STEPS}", *settings, world=world, zero=zero, pairs=pairs
    ).checked()
    expected = {0: "single process", 1: "ZeRO-1", 2: "ZeRO-2"}[zero] if world < 2 or zero else "DDP"
    assert f"world    {expected}: {max(world, 1)} process(es)" in finished.out[0]
    assert not any(finished.out[1:]), "only rank 0 prints"
    curves = processes.curves(run_dir)
    assert list(curves["train/total"]) == list(range(1, STEPS + 1))
    return curves, processes.pairs_by_position(pairs)


@pytest.fixture(scope="module")
def alone(folder: Path) -> tuple[dict, dict]:
    return trained(folder, "alone", world=0)


@pytest.mark.parametrize(
    ("world", "zero", "settings"),
    [
        pytest.param(0, 0, ["data.workers=2"], id="one process, two workers"),
        pytest.param(0, 0, ["train.micro_batch=2"], id="one process, four micro-batches"),
        pytest.param(1, 0, [], id="one launched process"),
        pytest.param(2, 0, ["data.workers=2"], id="two processes, two workers each"),
        pytest.param(2, 0, ["train.micro_batch=3"], id="two processes, two micro-batches each"),
        pytest.param(4, 0, [], id="four processes"),
        pytest.param(2, 1, [], id="ZeRO-1"),
        pytest.param(2, 2, ["train.micro_batch=2"], id="ZeRO-2, two micro-batches each"),
    ],
)
def test_pairs_and_losses_are_those_of_one_process(
    folder: Path, alone: tuple[dict, dict], world: int, zero: int, settings: list[str]
) -> None:
    curves, pairs = trained(folder, f"{world}-{zero}-{'-'.join(settings)}", *settings, world=world, zero=zero)
    assert list(pairs) == list(range(STEPS * 8))
    assert pairs == alone[1]  # samples and noise: bit-equal
    for name, steps in (("train/total", STEPS), ("train/gradient_norm", 4)):
        # the norm of an L1 loss jumps where a pixel's error changes its sign, so that only the first ones are compared
        there, here = ([c[name][step] for step in range(1, steps + 1)] for c in (alone[0], curves))
        assert here == pytest.approx(there, rel=1e-5), name


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(["pairs.name=neighbours", "noise.sigma=[5,50]", "loss.pixel=l2"], id="neighbours"),
        pytest.param(
            ["noise.name=bernoulli", "loss.pixel=masked_l2", "loss.perceptual=0.01", "loss.form=matched"],
            id="masked and matched",
        ),
    ],
)
def test_neighbours_masks_and_fresh_noise_are_those_of_one_process(folder: Path, settings: list[str]) -> None:
    one, pairs = trained(folder, f"one-{settings[0]}", *settings, world=0)
    two, again = trained(folder, f"two-{settings[0]}", *settings, "train.micro_batch=2", world=2)
    assert again == pairs
    for name in one.keys() & {"train/pixel", "train/consistency", "train/perceptual", "train/total"}:
        assert list(two[name].values()) == pytest.approx(list(one[name].values()), rel=1e-4), name
    assert len(one.keys() & {"train/consistency", "train/perceptual"}) == 1


def test_the_seed_changes_samples_and_noise(folder: Path, alone: tuple[dict, dict]) -> None:
    _, pairs = trained(folder, "seed", "run.seed=1", world=0)
    assert [pair[0] for pair in pairs.values()] != [pair[0] for pair in alone[1].values()]
    assert not {pair[1] for pair in pairs.values()} & {pair[1] for pair in alone[1].values()}
