import ast
import dataclasses
import importlib
import inspect
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy.io import fits
from support import processes
from support.images import random_pixels

from n2n_dist import config
from n2n_dist.building.build import build
from n2n_dist.building.plan import Options
from n2n_dist.config import IDENTITY, Config, load
from n2n_dist.errors import UserError
from n2n_dist.estimand import expectation
from n2n_dist.images.image import write_image
from n2n_dist.models import MODELS as NETWORKS
from n2n_dist.models.resunet import ResUNetSettings
from n2n_dist.noise import MODELS, Bernoulli, Gaussian, NoNoise, Poisson, PoissonGaussian
from n2n_dist.pairs import PAIRS, Synthetic
from n2n_dist.scenes import Grouping

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = {
    field.name: getattr(config, str(field.type))
    for field in dataclasses.fields(Config)
    if field.name not in ("noise", "pairs", "model")
}
"""Those that have one dataclass."""
CLASSES = [
    *SECTIONS.values(),
    *MODELS.values(),
    *PAIRS.values(),
    *(network.settings_class for network in NETWORKS.values()),
]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "given.yaml"
    path.write_text(text)
    return path


def test_nothing_given_is_all_defaults() -> None:
    defaults = {name: settings() for name, settings in SECTIONS.items()}
    assert load(None) == Config(**defaults, noise=Gaussian(), pairs=Synthetic(), model=ResUNetSettings())


def test_the_command_line_goes_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "data: {batch: 32, crop: 64}\nnoise: {sigma: [5, 50]}\ntrain: {compile: on}\n")
    loaded = load(path, ["data.crop=96", "model.depths=[1,2]", "optim.lr=3e-4", "data.validation={a: x, b: y}"])
    assert (loaded.data.batch, loaded.data.crop, loaded.data.workers) == (32, 96, 1)
    assert loaded.noise == Gaussian(sigma=[5, 50])
    assert loaded.model.depths == [1, 2]
    assert loaded.optim.lr == 3e-4
    assert loaded.train.compile == "on"
    assert loaded.validation_sets() == {"a": Path("x"), "b": Path("y")}


def test_the_last_of_two_values_counts() -> None:
    assert load(None, ["data.crop=96", "data.crop=64"]).data.crop == 64


@pytest.mark.parametrize(
    ("given", "section", "value"),
    [
        ("train.compile=on", "train.compile", "on"),
        ("train.compile=off", "train.compile", "off"),
        ("run.dir=2026", "run.dir", "2026"),
        ("optim.lr=1", "optim.lr", 1.0),
        ("validate.level=15", "validate.level", 15.0),
        ("train.micro_batch=null", "train.micro_batch", None),
        ("data.shards=[a,b]", "data.shards", ["a", "b"]),
        ("pairs.supervised=yes", "pairs.supervised", True),
    ],
)
@pytest.mark.filterwarnings("error")
def test_values_are_read_as_their_setting_means_them(given: str, section: str, value: object) -> None:
    part, _, key = section.partition(".")
    found = getattr(getattr(load(None, [given]), part), key)
    assert found == value
    assert type(found) is type(value)


def test_choosing_a_noise_chooses_its_settings() -> None:
    assert load(None, ["noise.name=poisson", "noise.lam=[10, 30]"]).noise == Poisson(lam=[10, 30])
    sensor = load(None, ["noise.name=poisson-gaussian", "noise.lam=50", "noise.read=3"]).noise
    assert sensor == PoissonGaussian(lam=50, read=3.0)
    masked = ["noise.name=bernoulli", "noise.keep=[0.2,0.8]", "loss.pixel=masked_l2"]
    assert load(None, masked).noise == Bernoulli(keep=[0.2, 0.8])


def test_a_configuration_of_a_noise_keeps_it_with_any_source_of_pairs() -> None:
    noise = load(Path("configs/gaussian25.yaml"), ["pairs.name=neighbours"]).noise
    assert (noise.name, noise.level) == ("gaussian", 25.0)


def test_images_of_real_pairs_are_taken_as_they_are_unless_a_noise_is_named() -> None:
    for source in ("captures", "neighbours"):
        assert load(None, [f"pairs.name={source}"]).noise == NoNoise()
        assert load(None, [f"pairs.name={source}", "noise.sigma=10"]).noise == Gaussian(sigma=10)
    assert load(None, ["noise.sigma=10"]).noise == Gaussian(sigma=10)
    assert load(None, ["pairs.name=captures", "noise.name=poisson"]).noise == Poisson()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("dta.batch=4", r"^dta: unknown section \(did you mean data\?\); known are run, data, noise, "),
        ("batch=4", "^batch: unknown section"),
        ("data.bacth=4", r"^data.bacth: unknown setting \(did you mean data\.batch\?\); known are shards, "),
        ("train.stepz=4", r"^train.stepz: unknown setting \(did you mean train\.steps\?\)"),
        ("noise.name=poisson noise.sigma=25", "^noise.sigma: unknown setting.*known are name, lam$"),
        ("noise.lam=25", "^noise.lam: unknown setting.*known are name, sigma$"),
        ("noise.name=poison", r"^noise.name 'poison': unknown \(did you mean poisson\?\); known are gaussian, "),
        ("noise.name=[1]", r"^noise.name \[1\]: unknown"),
        ("noise=25", "^noise 25: must be a section of settings, such as noise.name"),
        ("train=fast", "^train 'fast': must be a section of settings"),
        ("data.batch=many", "^data.batch 'many': wrong type, must be int"),
        ("data.batch=1.5", "^data.batch 1.5: wrong type, must be int"),
        ("train.steps=true", "^train.steps True: wrong type, must be int"),
        ("train.steps=", "^train.steps None: wrong type, must be int"),
        ("optim.lr=fast", "^optim.lr 'fast': wrong type, must be float"),
        ("model.depths=3", r"^model.depths 3: wrong type, must be list\[int\]"),
        ("model.depths=[1,a]", r"^model.depths \[1, 'a'\]: wrong type"),
        ("pairs.supervised=perhaps", "^pairs.supervised 'perhaps': wrong type, must be bool"),
        ("data.shards={a: b}", "^data.shards .*: give a folder of shards or a list of folders"),
        ("data.batch=0", "^data.batch 0: must be 1 or more"),
        ("data.crop=4", "^data.crop 4: must be 8 or more"),
        ("data.max_bad=2", "^data.max_bad 2.0: must be between 0 and 1"),
        ("run.seed=-1", "^run.seed -1: must be 0 or more and below"),
        ("run.seed=99999999999999999999", "^run.seed 99999999999999999999: must be 0 or more and below"),
        ("noise.sigma=-1", "^noise.sigma -1: must be a finite number >= 0"),
        ("noise.sigma=[50,5]", r"^noise.sigma \[50, 5\]: .* a range \[low, high\] of such$"),
        ("noise.sigma=[1,2,3]", r"^noise.sigma \[1, 2, 3\]: must be"),
        ("noise.sigma=much", "^noise.sigma 'much': must be"),
        ("noise.name=poisson noise.lam=0", "^noise.lam 0: must be"),
        (
            "pairs.name=captive",
            "^pairs.name 'captive': unknown .did you mean captures..; known are synthetic, captures, neig",
        ),
        ("pairs.target=mean", "^pairs.target: unknown setting; known are name, supervised"),
        ("noise.name=none", "^noise.name none: pairs.name synthetic puts noise on clean images; choose a noise"),
        ("noise.name=bernoulli", "^loss.pixel l1: counts the pixels that noise.name bernoulli has lost; use masked_l2"),
        ("noise.name=bernoulli noise.keep=1.5", "^noise.keep 1.5: must be"),
        ("noise.name=correlated noise.blur=wide", "^noise.blur 'wide': wrong type, must be float"),
        ("pairs.name=captures loss.form=matched", "^loss.form matched: needs the noise of the captures: noise.name="),
        (
            "pairs.name=neighbours data.crop=72",
            "^data.crop 72: pairs.name neighbours trains on 36 pixels of it, .* multiple of 32$",
        ),
        ("model.channels=5", "^model.channels 5: must be 1 to 4"),
        ("model.width=12", "^model.width 12: must be a multiple of 8"),
        ("model.depths=[]", r"^model.depths \[\]: give 1 to 6 numbers"),
        ("model.unshuffle=3", "^model.unshuffle 3: must be 1, 2 or 4"),
        ("loss.pixel=l3", "^loss.pixel 'l3': must be one of l1, l2, charbonnier, l0, masked_l2, relative_l2"),
        ("loss.perceptual=-1", "^loss.perceptual -1.0: must be 0 or more"),
        ("optim.lr=0", "^optim.lr 0.0: must be above 0"),
        ("train.precision=fp16", "^train.precision 'fp16': must be auto, bf16 or fp32"),
        ("checkpoint.keep=1", "^checkpoint.keep 1: must be 2 or more"),
        ("validate.level=-5", "^validate.level -5.0: must be above 0"),
        ("train.steps", "^'train.steps': settings are given as key=value"),
        ("train.steps=[", "^the settings on the command line: not valid YAML"),
    ],
)
def test_what_is_wrong_is_refused_with_its_key_value_and_remedy(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        load(None, given.split() if "=" in given and "{" not in given else [given])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: [", "given.yaml: not valid YAML"),
        ("- a\n- b\n", "given.yaml: not a configuration"),
        ("just words", "^just words: unknown section"),
        ("data: {batch: '${nowhere}'}", "given.yaml: not a configuration"),
        ("data: {batch: ???}", "data.batch|given.yaml"),
        ("\x00\x01", "given.yaml: not "),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        load(written(tmp_path, text))
    assert "\n" not in str(refusal.value)


def test_the_demo_finds_its_shards_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load("demo")
    assert (Path(str(config.data.shards)) / "index.json").is_file()
    assert (Path(config.validation_sets()["validation"]) / "index.json").is_file()
    assert load("demo", ["data.shards=mine"]).data.shards == "mine"


def test_a_missing_file_a_folder_and_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.yaml: no such file; give a YAML file, or a configuration"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="not a configuration"):
        load(tmp_path)
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    with pytest.raises(UserError, match=r"picture.yaml: not "):
        load(tmp_path / "picture.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_loads_and_starts_with_what_it_is_for(path: Path) -> None:
    loaded = load(path)
    assert path.read_text().startswith("# ")
    assert loaded.run.dir == f"runs/{path.stem}"
    for section, settings in yaml.safe_load(path.read_text()).items():
        for key, value in settings.items():
            assert getattr(getattr(loaded, section), key) == value


@pytest.fixture(scope="session")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of grey captures, three of each scene: those of 16 bit, and of float FITS for astrophotography."""
    folder = tmp_path_factory.mktemp("captures")
    for scene, capture in itertools.product(range(8), range(3)):
        pixels = random_pixels((64, 64, 1), np.uint16, 3 * scene + capture)
        write_image(folder / "tiff" / str(scene) / f"{capture}.tif", pixels)
        exposure = folder / "fits" / str(scene) / f"{capture}.fits"
        exposure.parent.mkdir(parents=True, exist_ok=True)
        fits.writeto(exposure, pixels[..., 0].astype(np.float32) - 500)  # calibrated: the sky may lie below black
    for kind, scale in (("tiff", {}), ("fits", {"black": 0.0, "white": 65535.0})):
        build(folder / kind, folder / "shards" / kind, Options(Grouping("folder"), **scale), warn=lambda message: None)
    return folder / "shards"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_starts(path: Path, captures: Path, tmp_path: Path) -> None:
    loaded = load(path)
    own = loaded.pairs.name == "captures"
    kind = "fits" if path.stem == "astrophotography" else "tiff"
    shards, channels = (captures / kind, 1) if own else ("shards/demo/train", 3)
    settings = [
        *processes.TINY[1:],
        f"data.shards={shards}",
        f"model.channels={channels}",
        f"run.dir={tmp_path / 'run'}",
    ]
    keeps = f"loss.perceptual={loaded.loss.perceptual}"
    dry = processes.run("launch/train.py", "--config", path, "--dry-run", *settings, keeps).checked()
    learned, warnings = expectation(loaded.noise, loaded.pairs, loaded.loss)
    assert f"learns   {learned}\n" in dry.out[0]
    assert dry.out[0].count("warning: ") == len(warnings)
    # every one learns the clean image; the default perceptual term, which a few keep, is biased and says so
    assert all(warning.startswith("loss.form plain") for warning in warnings)


def test_what_is_written_loads_as_the_same(tmp_path: Path) -> None:
    given = ["noise.name=poisson", "noise.lam=[10.5, 30]", "data.shards=[a, b]", "data.validation={x: y}", "optim.lr=1"]
    first = load(None, given)
    again = load(written(tmp_path, first.to_yaml()))
    assert again == first
    assert again.to_yaml() == first.to_yaml()


def test_validation_sets_are_named() -> None:
    assert load(None).validation_sets() == {}
    assert load(None, ["data.validation=x/y"]).validation_sets() == {"validation": Path("x/y")}
    for wrong in ("data.validation=5", "data.validation=[a,b]", "data.validation={a: 1}", "data.validation={a/b: c}"):
        with pytest.raises(
            UserError, match=r"^data.validation .*: give a folder of shards, \{name: folder, ...\}, or null"
        ):
            load(None, [wrong])


def test_a_run_folder_is_continued_with_what_may_change(tmp_path: Path) -> None:
    run_dir = tmp_path / "new" / "run"
    load(None).check_run_dir(run_dir)
    assert not (tmp_path / "new").exists()
    load(None).write(run_dir)
    assert load(run_dir / "config.yaml") == load(None)
    may_change = ["train.steps=9", "data.workers=0", "data.shards=elsewhere", "train.threads=1", "validate.every=5"]
    longer = load(None, [*may_change, "checkpoint.keep=4", "train.micro_batch=2", "train.log_every=1"])
    longer.check_run_dir(run_dir)
    longer.write(run_dir)
    assert load(run_dir / "config.yaml").train.steps == 9

    before = (run_dir / "config.yaml").read_text()
    with pytest.raises(UserError) as refusal:
        load(None, ["data.batch=8", "optim.ema=0.5", "train.steps=9"]).check_run_dir(run_dir)
    assert str(refusal.value) == (
        f"run.dir {run_dir}: holds another run: data.batch is 16 there and 8 here; "
        "optim.ema is 0.999 there and 0.5 here. Choose another run.dir"
    )
    assert (run_dir / "config.yaml").read_text() == before


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    load(None).check_run_dir(tmp_path / "file" / "run")
    with pytest.raises(UserError, match=r"^run.dir .*/file/run: cannot be written \(Not a directory\); choose another"):
        load(None).write(tmp_path / "file" / "run")


@pytest.mark.parametrize("text", ["data: [", "words", "- a", "data: {batch: 16}", ""])
def test_a_folder_with_the_configuration_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"its config.yaml (cannot be read|is not that of a run)"):
        load(None).check_run_dir(tmp_path)


def test_the_settings_that_make_a_run_exist() -> None:
    loaded = load(None)
    for name in IDENTITY:
        section, _, key = name.partition(".")
        assert hasattr(getattr(loaded, section), key) if key else hasattr(loaded, section)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_setting_is_followed_by_what_it_means(cls: type) -> None:
    module = ast.parse(inspect.getsource(importlib.import_module(cls.__module__)))
    body = next(node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    fields = [index for index, node in enumerate(body) if isinstance(node, ast.AnnAssign)]
    assert len(fields) == len(dataclasses.fields(cls))
    for index in fields:
        name, after = body[index].target.id, body[index + 1]
        assert isinstance(after, ast.Expr), name
        assert isinstance(after.value, ast.Constant), name
        assert isinstance(after.value.value, str), name
        assert re.fullmatch(r"[^\n]{10,}[.!?)\"]", after.value.value.strip()), f"{name}: one line, a sentence"
