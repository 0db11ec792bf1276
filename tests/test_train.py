import json
import re
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import processes

from n2n_dist.checkpoint import format
from n2n_dist.checkpoint.run_folder import OWNER
from n2n_dist.config import load
from n2n_dist.data.prefetch import Prefetcher
from n2n_dist.errors import UserError
from n2n_dist.models.resunet import ResUNet
from n2n_dist.models.weights import load_model
from n2n_dist.shards.indexing import write_index
from n2n_dist.train import Due, due_after, train, train_step

STEPS = 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run and what it said."""
    run_dir = tmp_path_factory.mktemp("loop") / "run"
    settings = ("data.validation=shards/demo/validation", "validate.images=1", "checkpoint.every=2")
    done = processes.train(f"run.dir={run_dir}", f"train.steps={STEPS}", *settings).checked()
    return run_dir, done.out[0]


def copied(finished: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_leaves_what_it_promises(finished: tuple[Path, str]) -> None:
    run_dir, said = finished
    names = {path.name for path in run_dir.iterdir()}
    assert names == {"config.yaml", "tensorboard", "checkpoints", "samples", "best.safetensors", "last.safetensors"}
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"step-00000002", "step-00000004"}
    assert load(run_dir / "config.yaml").to_yaml() == (run_dir / "config.yaml").read_text()
    assert load_model(run_dir).settings.width == 8
    for line in (
        f"world    single process: 1 process(es) on {socket.gethostname()}, cpu, fp32",
        "batch    global batch 8 = 1 ranks x 1 accumulation steps x 8 crops, 32 x 32 pixels",
        "data     64 samples in 4 shards, 8 steps an epoch",
        "step 4: validation/noisy_psnr ",
        "done: 4 steps, 32 samples, best validation score ",
        f"next: python launch/denoise.py --run {run_dir} ",
    ):
        assert line in said
    assert re.search(
        r"time     \d+\.\d (second|minute)s an epoch at .* images/s, without validation$", said, re.MULTILINE
    )


def test_a_single_validation_set_has_its_curves_once_in_the_name(
    finished: tuple[Path, str], interrupted_run: Path
) -> None:
    names = {name for name in processes.curves(finished[0]) if name.startswith("validation")}
    assert {"validation/psnr", "validation/noisy_psnr"} <= names
    assert all(name.count("validation") == 1 for name in names)
    assert {"validation/demo/psnr", "validation/again/psnr"} <= processes.curves(interrupted_run).keys()


def test_a_refused_run_stops_what_it_reads_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Prefetcher] = []

    class Noted(Prefetcher):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    def refuse(*arguments: object) -> None:
        assert not made[0].stopped.is_set()
        raise UserError("no more")

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("n2n_dist.train.Prefetcher", Noted)
    monkeypatch.setattr("n2n_dist.train.train_step", refuse)
    monkeypatch.chdir(processes.ROOT)
    settings = [f"run.dir={tmp_path / 'run'}", "train.steps=1", "train.threads=2"]
    with pytest.raises(UserError, match="no more"):
        train(load(Path("configs/demo.yaml"), [*processes.TINY[1:], *settings]))
    assert made[0].stopped.is_set()


def test_a_refused_run_holds_its_folder_until_its_last_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []
    refused, commit = threading.Event(), format.commit

    def slow_commit(*arguments: Any) -> None:
        refused.wait(20)
        time.sleep(0.5)
        held.append((tmp_path / OWNER).exists())
        commit(*arguments)

    def refuse_the_second_step(nets: Any, optimizer: Any, batches: Any, config: Any, step: int, backend: Any) -> Any:
        if step == 1:
            refused.set()
            raise UserError("no more")
        return train_step(nets, optimizer, batches, config, step, backend)

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(format, "commit", slow_commit)
    monkeypatch.setattr("n2n_dist.train.train_step", refuse_the_second_step)
    monkeypatch.chdir(processes.ROOT)
    settings = [f"run.dir={tmp_path}", "train.steps=3", "checkpoint.every=1", "train.threads=2"]
    with pytest.raises(UserError, match="no more"):
        train(load(Path("configs/demo.yaml"), [*processes.TINY[1:], *settings]))
    assert held == [True]
    assert not (tmp_path / OWNER).exists()
    assert [path.name for path in format.list_checkpoints(tmp_path / "checkpoints")] == ["step-00000001"]


def test_a_run_continued_in_one_process_ends_with_the_same_bits(interrupted_run: Path, tmp_path: Path) -> None:
    # what a run folder keeps is enough to make the run again
    settings = ("--config", interrupted_run / "config.yaml", f"run.dir={tmp_path / 'whole'}")
    processes.run("launch/train.py", *settings).checked()
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (interrupted_run / name).read_bytes(), name
    whole, continued = processes.curves(tmp_path / "whole"), processes.curves(interrupted_run)
    for name in whole:
        if name.startswith(("train/", "validation/")):
            assert continued[name] == whole[name], name


def test_a_finished_run_that_is_started_again_stays_as_it_is(finished: tuple[Path, str], tmp_path: Path) -> None:
    run_dir = copied(finished, tmp_path)
    settings = ("data.validation=shards/demo/validation", f"train.steps={STEPS}")
    again = processes.train(f"run.dir={run_dir}", *settings).checked()
    assert "continuing after step 4 of 4" in again.out[0]
    for name in ("last.safetensors", "best.safetensors"):
        assert (run_dir / name).read_bytes() == (finished[0] / name).read_bytes(), name
    assert processes.curves(run_dir) == processes.curves(finished[0])


def test_steps_may_grow_and_the_message_says_what_that_does(finished: tuple[Path, str], tmp_path: Path) -> None:
    run_dir = copied(finished, tmp_path)
    longer = processes.train(f"run.dir={run_dir}", "train.steps=6", "data.workers=1", "checkpoint.keep=3").checked()
    assert "continuing after step 4 of 6" in longer.out[0]
    assert "train.steps was 4: the cosine of the learning rate now ends at step 6" in longer.out[0]
    assert list(processes.curves(run_dir)["train/total"]) == [1, 2, 3, 4, 5, 6]
    assert (run_dir / "checkpoints" / "step-00000006").is_dir()
    # said once: the next start knows the new number
    again = processes.train(f"run.dir={run_dir}", "train.steps=6").checked()
    assert "train.steps was" not in again.out[0]


def test_a_run_of_another_configuration_is_left_alone(finished: tuple[Path, str]) -> None:
    before = contents(finished[0])
    other = ("run.seed=3", "noise.name=poisson", "optim.lr=0.1", "data.crop=40", "model.depths=[1]")
    refused = processes.train(f"run.dir={finished[0]}", "train.steps=9", *other)
    assert refused.codes == [2]
    message = (finished[0] / "error.txt").read_text().strip()
    assert f"error: {message}" in refused.err[0]
    for part in (
        "run.seed is 0 there and 3 here",
        "noise.name is gaussian there and poisson here",
        "noise.sigma is 25.0 there and None here",
        "noise.lam is None there and 30.0 here",
        "optim.lr is 0.0005 there and 0.1 here",
        "data.crop is 32 there and 40 here",
        "model.depths is [1, 1] there and [1] here",
    ):
        assert part in message
    for key in ("train.steps", "data.batch", "model.width", "validate"):
        assert key not in message
    (finished[0] / "error.txt").unlink()
    assert contents(finished[0]) == before


def test_other_samples_in_the_shards_are_refused(finished: tuple[Path, str], tmp_path: Path) -> None:
    run_dir = copied(finished, tmp_path)
    shards = Path(shutil.copytree(processes.ROOT / "shards/demo/train", tmp_path / "shards"))
    moved = processes.train(f"run.dir={run_dir}", f"data.shards={shards}", "train.steps=5")
    assert moved.codes == [0], "the same samples in another place are the same samples"
    (shards / "shard-000003.tar").unlink()
    (shards / "shard-000003.index.json").unlink()
    write_index(shards)
    refused = processes.train(f"run.dir={run_dir}", f"data.shards={shards}", "train.steps=6")
    assert refused.codes == [2]
    assert "was trained on other samples; use the same shards, or a new run.dir" in refused.err[0]
    assert processes.curves(run_dir).keys() >= {"train/total"}
    assert (run_dir / "checkpoints" / "step-00000005").is_dir()


def test_dry_run_prints_the_plan_and_writes_nothing(finished: tuple[Path, str], tmp_path: Path) -> None:
    for run_dir in (tmp_path / "new", copied(finished, tmp_path)):
        before = contents(tmp_path)
        dry = processes.train("--dry-run", f"run.dir={run_dir}", "train.steps=1000", "train.micro_batch=4").checked()
        assert contents(tmp_path) == before
        assert not (tmp_path / "new").exists()
        lines = {line.split()[0]: line for line in dry.out[0].splitlines() if line}
        assert "1 process(es)" in lines["world"]
        assert "8 = 1 ranks x 2 accumulation steps x 4 crops" in lines["batch"]
        assert "GiB at most on rank 0" in lines["memory"]
        assert "s a step" in lines["time"]
        assert "for 1,000 steps" in lines["time"]
        assert "nothing was written" in lines["dry"]


def test_a_new_run_starts_from_what_the_seed_draws_and_a_continued_one_draws_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*processes.TINY[1:], "train.steps=1", "optim.lr=1e-30", "optim.ema=0"]
    for seed in (0, 1):
        config = load(
            processes.ROOT / "configs/demo.yaml", [*settings, f"run.seed={seed}", f"run.dir={tmp_path / str(seed)}"]
        )
        train(config)
        torch.manual_seed(seed)
        drawn = ResUNet(config.model, config.data.crop).state_dict()
        there = load_model(tmp_path / str(seed)).state_dict()
        torch.testing.assert_close(there, drawn, rtol=0, atol=1e-20)
    monkeypatch.setattr("n2n_dist.train.initialise", pytest.fail)
    config.train.steps += 1
    train(config)
    again = load_model(tmp_path / "1" / "last.safetensors").state_dict()
    torch.testing.assert_close(again, drawn, rtol=0, atol=1e-20)


def test_a_run_can_start_from_the_weights_of_another(finished: tuple[Path, str], tmp_path: Path) -> None:
    start = ("train.steps=1", "optim.lr=1e-30", "optim.ema=0")
    for init in (finished[0], finished[0] / "best.safetensors"):
        run_dir = tmp_path / init.name
        processes.train(f"run.dir={run_dir}", f"run.init={init}", *start).checked()
        there, here = (load_model(folder).state_dict() for folder in (finished[0], run_dir))
        assert all(torch.equal(here[name], there[name]) for name in there)
    refused = processes.train(f"run.dir={tmp_path / 'wide'}", f"run.init={finished[0]}", "model.width=16", *start)
    assert refused.codes == [2]
    assert f"run.init {finished[0]}: weights of another network (width is 8 there and 16 here)" in refused.err[0]
    assert "give the model.* settings it was trained with" in refused.err[0]


def damaged_shards(folder: Path, every: int) -> Path:
    """Copy the demo's shards and overwrite the pixels of every n-th sample, as a bad disk would."""
    shards = Path(shutil.copytree(processes.ROOT / "shards/demo/train", folder))
    for tar in shards.glob("*.tar"):
        data = bytearray(tar.read_bytes())
        for sample in json.loads(tar.with_suffix(".index.json").read_text())["samples"][::every]:
            offset, size = sample["captures"][0]["offset"], sample["captures"][0]["size"]
            data[offset + 200 : offset + size] = bytes(size - 200)
        tar.write_bytes(data)
    return shards


def test_damaged_samples_are_named_and_replaced_up_to_the_tolerated_share(tmp_path: Path) -> None:
    shards = damaged_shards(tmp_path / "shards", every=16)  # 4 of 64
    settings = (f"data.shards={shards}", "train.steps=8")
    some = processes.train(f"run.dir={tmp_path / 'some'}", *settings, "data.max_bad=0.1", pairs=tmp_path / "pairs")
    some.checked()
    named = [line for line in some.out[0].splitlines() if "replaced an unreadable sample: " in line]
    assert len(named) >= 4
    assert all("shard-00000" in line and "sample 0000" in line for line in named)
    assert len(processes.pairs_by_position(tmp_path / "pairs")) == 64

    none = processes.train(f"run.dir={tmp_path / 'none'}", *settings)
    assert none.codes == [2]
    assert "data.max_bad 0.001: " in none.err[0]
    assert "samples cannot be read, named above; check the shards with: " in none.err[0]
    assert (tmp_path / "none" / "error.txt").is_file()
    assert not (tmp_path / "none" / "last.safetensors").exists()


def test_an_error_of_the_program_leaves_its_traceback_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.chdir(processes.ROOT)
    monkeypatch.setattr("n2n_dist.train.train_step", fail)
    config = load(Path("configs/demo.yaml"), [*processes.TINY[1:], f"run.dir={tmp_path}", "train.threads=2"])
    with pytest.raises(ZeroDivisionError):
        train(config)
    text = (tmp_path / "error.txt").read_text()
    assert text.startswith("Traceback")
    assert text.endswith("ZeroDivisionError: by nought\n")


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    settings = (f"run.dir={tmp_path}", "train.steps=3")
    assert processes.train(*settings, kill_at=2 * 8).codes == [-9]
    (tmp_path / "checkpoints" / "step-00000003.tmp").mkdir(parents=True)  # it was just being written
    processes.train(*settings).checked()
    assert list(processes.curves(tmp_path)["train/total"]) == [1, 2, 3]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def test_weights_without_a_checkpoint_are_not_written_over(finished: tuple[Path, str], tmp_path: Path) -> None:
    run_dir = copied(finished, tmp_path)
    shutil.rmtree(run_dir / "checkpoints")
    refused = processes.train(f"run.dir={run_dir}", f"train.steps={STEPS}")
    assert refused.codes == [2]
    assert "it has no checkpoint; choose another run.dir" in refused.err[0]
    assert (run_dir / "best.safetensors").read_bytes() == (finished[0] / "best.safetensors").read_bytes()


def test_steps_cannot_shrink_below_what_is_done(finished: tuple[Path, str]) -> None:
    before = contents(finished[0])
    refused = processes.train(f"run.dir={finished[0]}", "train.steps=3")
    assert refused.codes == [2]
    assert "train.steps 3: the run in " in refused.err[0]
    (finished[0] / "error.txt").unlink()
    assert contents(finished[0]) == before


def test_what_follows_a_step() -> None:
    settings = ["train.steps=100", "train.log_every=10", "checkpoint.every=25", "validate.every=40"]
    config = load(processes.ROOT / "configs/demo.yaml", settings)
    assert due_after(9, config) == Due(log=False, validate=False, save=False)
    assert due_after(10, config) == Due(log=True, validate=False, save=False)
    assert due_after(25, config) == Due(log=True, validate=False, save=True)
    assert due_after(40, config) == Due(log=True, validate=True, save=True)
    assert due_after(100, config) == Due(log=True, validate=True, save=True)
    config = load(processes.ROOT / "configs/demo.yaml", [*settings, "data.validation=null"])
    assert due_after(40, config) == Due(log=True, validate=False, save=False)
    assert due_after(100, config) == Due(log=True, validate=False, save=True)
