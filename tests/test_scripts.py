"""Bad input through the real scripts: exit code 2, a message that helps, no traceback, and nothing written over."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.images import random_pixels
from support.processes import ROOT, TINY, run, train
from support.tars import read_whole, write_tar

from n2n_dist.images.codecs import encode
from n2n_dist.images.image import read_image, write_image
from n2n_dist.shards.index import Index
from n2n_dist.shards.indexing import write_index

DEMO = ROOT / "shards/demo/train"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(script: str, *arguments: object) -> str:
    """Run a script that must refuse its input, and return the message."""
    finished = run(script, *arguments)
    error = finished.err[0]
    assert finished.codes == [2], finished.out[0] + error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error.removeprefix("error: ").strip()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.bacth=4"], "data.bacth: unknown setting (did you mean data.batch?)"),
        (["data.batch=many"], "data.batch 'many': wrong type, must be int"),
        (["noise.name=poisson", "noise.sigma=25"], "noise.sigma: unknown setting"),
        (["data.batch=65"], "data.batch 65: more than the 64 samples of data.shards; lower it to 64 or less"),
        (["data.streams=3"], "data.streams 3: must divide data.batch 8"),
        (["data.crop=300"], "data.crop 300: "),
        (["data.shards=nowhere"], "nowhere: no such folder of shards; make one with: python shards/build.py"),
        (["data.validation=nowhere"], "nowhere: no such folder of shards"),
        (["pairs.name=captures"], "has samples with 1 capture(s), pairs.name captures needs 2; build the shards"),
        (["model.channels=1"], "has images of 3 channels, model.channels is 1; set it to that, or use other shards"),
        (["loss.perceptual=1", "loss.layers=[relu9_9]"], "relu9_9"),
        (["loss.perceptual=1", "loss.weights=nowhere.safetensors"], "nowhere.safetensors"),
        (["run.init=nowhere"], "nowhere: no weights there; give a run folder"),
        (["train.steps"], "'train.steps': settings are given as key=value"),
    ],
)
def test_train_refuses_settings(tmp_path: Path, settings: list[str], message: str) -> None:
    assert message in refusal("launch/train.py", *TINY, f"run.dir={tmp_path / 'run'}", *settings)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_refused_start_does_not_keep_the_folder_from_another(tmp_path: Path) -> None:
    run_dir = f"run.dir={tmp_path / 'run'}"
    refusal("launch/train.py", *TINY, run_dir, "data.validation=nowhere")
    run("launch/train.py", *TINY, run_dir, "run.seed=1", "train.steps=1").checked()


def missing(shards: Path) -> str:
    (shards / "shard-000001.tar").unlink()
    return "shard-000001.tar: missing, but the index lists it"


def without_index(shards: Path) -> str:
    (shards / "index.json").unlink()
    return "index.json: missing; index anew with: python shards/build.py index"


def empty_tar(shards: Path) -> str:
    (shards / "shard-000001.tar").write_bytes(b"")
    return "shard-000001.tar: 0 bytes, but 1,269,760 in the index"


def truncated(shards: Path) -> str:
    with (shards / "shard-000001.tar").open("r+b") as file:
        file.truncate(1_000_000)
    return "shard-000001.tar: 1,000,000 bytes, but 1,269,760 in the index: truncated"


def of_another_tar(shards: Path) -> str:
    shutil.copy(shards / "shard-000002.tar", shards / "shard-000001.tar")
    return "shard-000001.tar: 1,126,400 bytes, but 1,269,760 in the index"


def broken_index(shards: Path) -> str:
    (shards / "index.json").write_text('{"format": 3, "shards": [{"name": "a.tar"}]}')
    return "index.json: not an index of this version"


def empty_folder(shards: Path) -> str:
    shutil.rmtree(shards)
    shards.mkdir()
    return "no *.tar file in it; give a folder of shards"


@pytest.mark.parametrize(
    "damage", [missing, without_index, empty_tar, truncated, of_another_tar, broken_index, empty_folder]
)
def test_train_refuses_shards(tmp_path: Path, damage: Callable[[Path], str]) -> None:
    shards = Path(shutil.copytree(DEMO, tmp_path / "shards"))
    message = damage(shards)
    for setting in (f"data.shards={shards}", f"data.validation={shards}"):
        assert message in refusal("launch/train.py", *TINY, f"run.dir={tmp_path / 'run'}", setting)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_train_refuses_an_index_whose_offsets_are_of_other_bytes(tmp_path: Path) -> None:
    # the same size, other content: nothing but the pixels themselves can tell while training
    shards = Path(shutil.copytree(DEMO, tmp_path / "shards"))
    for tar in shards.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    message = refusal("launch/train.py", *TINY, f"run.dir={tmp_path / 'run'}", f"data.shards={shards}")
    assert "samples cannot be read, named above; check the shards with: python shards/build.py verify" in message
    assert "not the bytes that were indexed" in refusal("shards/build.py", "verify", shards)


def test_train_refuses_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    message = refusal("launch/train.py", *TINY, f"run.dir={tmp_path / 'file' / 'run'}")
    assert message == f"run.dir {tmp_path}/file/run: cannot be written (Not a directory); choose another folder"
    assert (tmp_path / "file").read_text() == "mine"


def test_scripts_started_by_hand_refuse_alike(tmp_path: Path) -> None:
    # once without the fork server: a new interpreter, from another folder
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    for command, message in (
        (["launch/train.py", "--config", "nowhere.yaml"], "error: nowhere.yaml: no such file"),
        (
            ["shards/build.py", str(tmp_path), str(tmp_path / "new")],
            f"error: {tmp_path}: no image in it; give a folder",
        ),
    ):
        script = [sys.executable, str(ROOT / command[0]), *command[1:]]
        done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(message)
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "script", ["launch/train.py", "launch/evaluate.py", "launch/denoise.py", "shards/build.py", "shards/audit.py"]
)
def test_help_shows_how_to_call(script: str) -> None:
    finished = run(script, "--help").checked()
    assert "usage: " in finished.out[0]
    assert f"{script} " in finished.out[0]


def test_run_folder_is_that_of_the_same_training() -> None:
    config = ("--config", "configs/demo.yaml")
    for arguments, folder in (
        ((*config, "train.steps=1"), "runs/demo"),
        ((*config, "run.dir=runs/mine", "--dry-run", "train.steps=1"), "runs/mine"),
        (("run.dir=runs/a b",), "runs/a b"),
        ((), "runs/default"),
    ):
        assert run("launch/slurm/run_folder.py", *arguments).checked().out[0] == f"{folder}\n"
    assert "train.stepps: unknown setting" in refusal("launch/slurm/run_folder.py", *config, "train.stepps=1")


def test_build_refuses(tmp_path: Path, write_images: Callable[..., Path]) -> None:
    images = write_images("a.png", "b.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    new = tmp_path / "new"
    for arguments, message in (
        ([tmp_path / "empty", new], "no image in it; give a folder of .png"),
        ([tmp_path / "nowhere", new], "nowhere: no such folder"),
        ([images, tmp_path / "there"], "there: exists already; remove it or choose another folder"),
        ([images, new, "--tile", 8], "--tile 8: must be 16 or more"),
        ([images, new, "--holdout", 2], "--holdout 2: must be 0 or more and below the 2 recordings"),
        ([images, new, "--encoding", "jpg"], "--encoding jpg: must be npy, png or webp"),
        ([images, new, "--captures", "folder"], "images outside a scene folder, such as a.png"),
        (["index", tmp_path / "empty"], "no *.tar file to index"),
        (["verify", tmp_path / "nowhere"], "nowhere: no such folder of shards"),
    ):
        before = contents(tmp_path)
        assert message in refusal("shards/build.py", *arguments)
        assert contents(tmp_path) == before
    assert not new.exists()


def test_build_index_and_verify_own_images(tmp_path: Path, write_images: Callable[..., Path]) -> None:
    images = write_images("a.png", "b.png", "c.png")
    built = run("shards/build.py", images, tmp_path / "new", "--holdout", 1).checked()
    assert f"{tmp_path / 'new'}: 3 tiles of 3 scenes\n" in built.out[0]
    assert f"1 of the tiles are in {tmp_path / 'new' / 'validation'}\n" in built.out[0]
    settings = f"data.shards={tmp_path / 'new'} data.validation={tmp_path / 'new' / 'validation'}"
    assert f"next: accelerate launch launch/train.py --config gaussian25 {settings}\n" in built.out[0]
    assert "indexed 2 samples in 1 shards" in run("shards/build.py", "index", tmp_path / "new").checked().out[0]
    for folder in (tmp_path / "new", tmp_path / "new" / "validation"):
        assert "every tar is as it was indexed" in run("shards/build.py", "verify", folder).checked().out[0]
    write_index(tmp_path / "new")


def test_tars_of_others_train_with_declared_levels(tmp_path: Path) -> None:
    """One image a sample, a member of another kind beside it, and nothing that says what its values mean."""
    images = [random_pixels((40, 36, 1), np.uint16, seed) % 4096 for seed in range(12)]
    members = [[(f"{n}.cls", b"7"), (f"{n}.png", encode(pixels, ".png"))] for n, pixels in enumerate(images)]
    write_tar(tmp_path / "theirs" / "a.tar", [member for sample in members for member in sample])
    run("shards/build.py", "index", tmp_path / "theirs", "--black=256", "--white=4095").checked()
    index = Index([tmp_path / "theirs"])
    for number, pixels in enumerate(images):
        np.testing.assert_allclose(read_whole(index, number), (pixels - 256.0) / (4095 - 256), atol=1e-6)
    settings = (f"data.shards={tmp_path / 'theirs'}", "model.channels=1", "train.steps=2")
    train(f"run.dir={tmp_path / 'run'}", *settings).checked()
    assert (tmp_path / "run" / "last.safetensors").is_file()


def test_denoise_refuses_and_writes_nothing_over(
    tmp_path: Path, write_images: Callable[..., Path], make_weights: Callable[..., Path]
) -> None:
    weights, images = make_weights(), write_images("a.png", "b.png")
    write_image(tmp_path / "two.tif", random_pixels((20, 20, 2), np.uint8, 0))
    (tmp_path / "damaged.safetensors").write_bytes(weights.read_bytes()[:-100])
    (tmp_path / "done").mkdir()
    shutil.copy(images / "a.png", tmp_path / "done" / "b.png")
    for arguments, message in (
        (["--run", tmp_path / "nowhere", images, tmp_path / "new"], "nowhere: no weights there"),
        (["--run", tmp_path / "damaged.safetensors", images, tmp_path / "new"], "or damaged ("),
        (["--run", weights, tmp_path / "nowhere", tmp_path / "new"], "nowhere: no such file or folder"),
        (["--run", weights, tmp_path / "two.tif", tmp_path / "new.tif"], "an image with 2 channels, but these weights"),
        (["--run", weights, images, tmp_path / "done"], "b.png: exists already; remove it or choose another"),
        (["--run", weights, images / "a.png", images / "a.png"], "a.png: exists already"),
    ):
        before = contents(tmp_path)
        assert message in refusal("launch/denoise.py", *arguments)
        assert contents(tmp_path) == before


def test_denoise_does_what_it_can_and_names_the_rest(
    tmp_path: Path, write_images: Callable[..., Path], make_weights: Callable[..., Path]
) -> None:
    images = write_images("a.png", "c.png")
    (images / "b.png").write_bytes((images / "a.png").read_bytes()[:200])
    message = refusal("launch/denoise.py", "--run", make_weights(), images, tmp_path / "new")
    assert message.startswith("1 of 3 images were not denoised, the first: ")
    assert "b.png" in message
    for name in ("a.png", "c.png"):  # an untrained network returns its input
        assert np.array_equal(read_image(tmp_path / "new" / name).pixels, read_image(images / name).pixels)


def test_evaluate_refuses(tmp_path: Path, write_images: Callable[..., Path], make_weights: Callable[..., Path]) -> None:
    images, grey = write_images("a.png"), write_images("a.png", size=(40, 36, 1), folder="grey")
    for arguments, message in (
        (
            ["--run", make_weights(), "--images", images, "--level", -1],
            "noise.sigma -1.0: must be a finite number >= 0",
        ),
        (["--run", make_weights(), "--images", images, "--noise", "rain"], "noise rain: must be one of gaussian, "),
        (["--run", make_weights(), "--images", tmp_path / "nowhere"], "nowhere: no such folder"),
        (["--run", make_weights(), "--images", grey], "a.png: has 1 channels, these weights are for 3"),
        (["--run", make_weights(), "--images", images, "--output", images / "a.png"], "a.png: cannot be written"),
    ):
        assert message in refusal("launch/evaluate.py", "--output", tmp_path / "scores", *arguments)
    assert not list(tmp_path.rglob("scores.csv"))
