import shutil
from pathlib import Path

import numpy as np
import pytest
from support import processes

from n2n_dist.checkpoint import format
from n2n_dist.checkpoint.command import export, show
from n2n_dist.errors import ReportedError, UserError
from n2n_dist.images.image import read_image, write_image


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("inspected") / "run"
    settings = ("train.steps=4", "checkpoint.every=2", "data.validation=shards/demo/validation", "validate.images=1")
    processes.train(f"run.dir={run_dir}", *settings).checked()
    return run_dir


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def damage(checkpoint: Path) -> None:
    path = next(checkpoint.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines(said: str) -> dict[str, str]:
    """Take the table apart: name of the checkpoint -> the rest of its line, blanks joined."""
    return {line.split()[0]: " ".join(line.split()[1:]) for line in said.splitlines()[1:]}


def test_every_checkpoint_is_listed_newest_first_with_what_it_holds(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run_dir)
    show(run_dir)
    said = lines(capsys.readouterr().out)
    assert list(said) == ["step-00000004", "step-00000002"]
    samples, mebibytes, *by, best = said["step-00000004"].partition(" good")[0].split()
    assert (samples, by) == ("32", ["single", "process"])
    size = sum(path.stat().st_size for path in (run_dir / "checkpoints/step-00000004").iterdir())
    assert float(mebibytes) == pytest.approx(size / 2**20, abs=0.06)
    assert 5 < float(best) < 50
    assert said["step-00000004"].endswith(" good: the run continues here")
    assert said["step-00000002"].startswith("16 ")
    assert said["step-00000002"].endswith(" single process good"), "no validation before it"
    assert contents(run_dir) == before


def test_what_is_not_good_is_explained_and_left_alone(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_dir / "checkpoints"
    shutil.copytree(folder / "step-00000002", folder / "step-00000001.damaged")
    shutil.copytree(folder / "step-00000002", folder / "step-00000003")
    shutil.copytree(folder / "step-00000002", folder / "step-00000006.tmp")
    damage(folder / "step-00000004")
    before = contents(run_dir)
    with pytest.raises(UserError, match=r"step-00000004: damaged; the next start continues from step-00000003$"):
        show(run_dir)
    said = lines(capsys.readouterr().out)
    assert list(said) == [f"step-0000000{name}" for name in ("6.tmp", "4", "3", "2", "1.damaged")]
    assert said["step-00000006.tmp"].endswith("unfinished: being written, or the run died in it")
    assert "damaged: the bytes of rank-0000.safetensors have changed" in said["step-00000004"]
    assert said["step-00000003"].endswith(" good: the run continues here")
    assert said["step-00000002"].endswith(" good")
    assert said["step-00000001.damaged"].endswith("damaged, quarantined by a start")
    assert contents(run_dir) == before

    manifest = folder / "step-00000003" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format": {format.FORMAT}', '"format": 99'))
    with pytest.raises(UserError, match=r"is refused, because step-00000003 is of another version of n2n_dist$"):
        show(run_dir)
    said = lines(capsys.readouterr().out)
    assert said["step-00000003"].endswith(" of another version of n2n_dist")
    assert said["step-00000002"].endswith(" good")

    for name in ("step-00000002", "step-00000003"):
        damage(folder / name)
    (folder / "step-00000003" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"the next start is refused, because none is good: give a new run.dir$"):
        show(run_dir)


def test_what_is_no_checkpoint_or_goes_away_meanwhile_stops_nothing(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_dir / "checkpoints"
    (folder / "step-notes").write_text("mine")
    verify = format.verify

    def verify_while_the_run_removes_the_oldest(path: Path, files: dict[str, str]) -> None:
        shutil.rmtree(folder / "step-00000002", ignore_errors=True)
        verify(path, files)

    monkeypatch.setattr(format, "verify", verify_while_the_run_removes_the_oldest)
    show(run_dir)
    said = lines(capsys.readouterr().out)
    assert said["step-notes"].endswith("no checkpoint")
    assert said["step-00000004"].endswith(" good: the run continues here")
    assert said["step-00000002"].endswith("removed meanwhile")


def test_an_exported_checkpoint_denoises(run_dir: Path, tmp_path: Path) -> None:
    export(run_dir, 4, tmp_path / "four.safetensors")
    assert (tmp_path / "four.safetensors").read_bytes() == (run_dir / "last.safetensors").read_bytes()

    module = ("n2n_dist/checkpoint/__main__.py", run_dir)
    done = processes.run(*module, "--export", 2, tmp_path / "two.safetensors").checked()
    assert f"next: python launch/denoise.py --run {tmp_path / 'two.safetensors'} " in done.out[0]
    noisy = np.random.default_rng(0).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    write_image(tmp_path / "noisy.png", noisy)
    for name in ("two", "four"):
        weights, output = tmp_path / f"{name}.safetensors", tmp_path / f"{name}.png"
        processes.run("launch/denoise.py", "--run", weights, tmp_path / "noisy.png", output).checked()
    two, four = (read_image(tmp_path / f"{name}.png").pixels for name in ("two", "four"))
    assert two.shape == noisy.shape
    assert not np.array_equal(two, four), "another step, other weights"


def test_what_cannot_be_exported_is_refused(run_dir: Path, tmp_path: Path) -> None:
    damage(run_dir / "checkpoints" / "step-00000002")
    weights, taken = tmp_path / "weights.safetensors", run_dir / "last.safetensors"
    before = contents(tmp_path)
    for step, path, message in (
        (3, weights, "--export 3: no checkpoint of that step in .*; there are 4, 2"),
        (2, weights, r"step-00000002: damaged \(the bytes of .* have changed\); export another step"),
        (4, tmp_path / "weights.pt", r"weights.pt: weights are written as .safetensors; give such a name"),
        (4, taken, r"last.safetensors: exists already; remove it or choose another"),
        (4, tmp_path / "nowhere" / "weights.safetensors", r"nowhere/weights.safetensors: cannot be written \("),
    ):
        with pytest.raises(ReportedError, match=message):
            export(run_dir, step, path)
    assert contents(tmp_path) == before


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    for action in (show, lambda folder: export(folder, 1, tmp_path / "weights.safetensors")):
        with pytest.raises(UserError, match=r"nowhere: no checkpoints there; give the folder of a run \(run.dir\)"):
            action(tmp_path / "nowhere")


def test_the_command_refuses_as_all_others_do(run_dir: Path, tmp_path: Path) -> None:
    script = "n2n_dist/checkpoint/__main__.py"
    for arguments, message in (
        ([tmp_path / "nowhere"], "nowhere: no checkpoints there"),
        ([run_dir, "--export", "newest", tmp_path / "a.safetensors"], "--export newest: not a step"),
    ):
        refused = processes.run(script, *arguments)
        assert refused.codes == [2]
        assert refused.err[0].startswith("error: ")
        assert message in refused.err[0]
