"""The configuration of a run: gather the dataclasses of all parts, load YAML and key=value, check everything."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import omegaconf
from omegaconf import OmegaConf

from n2n_dist.checkpoint.format import describe_differences
from n2n_dist.checkpoint.manager import CheckpointSettings
from n2n_dist.checkpoint.run_folder import RunLock
from n2n_dist.commands import CONFIGS, PACKAGE, find_config
from n2n_dist.data.dataset import DataSettings
from n2n_dist.errors import UserError, one_line
from n2n_dist.files import write_text
from n2n_dist.models import MODELS as NETWORKS
from n2n_dist.models.network import NetworkSettings
from n2n_dist.noise import MODELS as NOISES
from n2n_dist.noise import Noise
from n2n_dist.objective import LossSettings, check_objective
from n2n_dist.pairs import PAIRS, Pairs
from n2n_dist.shards.cache import location
from n2n_dist.training.optim import OptimSettings
from n2n_dist.training.precision import TrainSettings
from n2n_dist.training.validation import ValidateSettings

IDENTITY = (
    "run.seed",
    "data.crop",
    "data.batch",
    "data.streams",
    "noise",
    "pairs",
    "model",
    "loss",
    "optim",
)
"""Settings and sections that make a run what it is: they must agree when it is continued. All others may change."""


@dataclasses.dataclass
class RunSettings:
    """Where the run lives and how it starts."""

    dir: str = "runs/default"
    """Folder of the run: configuration, checkpoints, curves, weights. The same command continues it."""
    seed: int = 0
    """Chooses the initial weights, the order of samples, the crops and the noise."""
    init: str | None = None
    """Weights to start from: a .safetensors file or another run's folder."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise UserError(f"run.seed {self.seed}: must be 0 or more and below 2**63")


@dataclasses.dataclass
class Config:
    """All settings of a run; each section is described where it is used."""

    run: RunSettings
    data: DataSettings
    noise: Noise
    pairs: Pairs
    model: NetworkSettings
    loss: LossSettings
    optim: OptimSettings
    train: TrainSettings
    validate: ValidateSettings
    checkpoint: CheckpointSettings

    def to_yaml(self) -> str:
        """Write every setting, defaults too."""
        return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(self)))

    def validation_sets(self) -> dict[str, Path | str]:
        """Return the named validation sets, paths or URLs; a single one is called `validation`."""
        value = self.data.validation
        if value is None:
            return {}
        named = {"validation": value} if isinstance(value, str) else value
        if not isinstance(named, dict) or not all(
            isinstance(folder, str) and str(name).isidentifier() for name, folder in named.items()
        ):
            raise UserError(f"data.validation {value!r}: give a folder of shards, {{name: folder, ...}}, or null")
        return {name: location(folder) for name, folder in named.items()}

    def identity(self) -> dict[str, Any]:
        """Return the settings that must agree when a run is continued, by key."""
        return _identity(dataclasses.asdict(self))

    def check_run_dir(self, run_dir: Path) -> None:
        """Check that the run folder is free, or holds this run.

        Raises:
            UserError: it holds a run of another identity (names the differing keys), or something else.

        """
        path = run_dir / "config.yaml"
        try:
            there = OmegaConf.to_container(OmegaConf.load(path))
        except (FileNotFoundError, NotADirectoryError):
            return
        except Exception as error:
            raise UserError(f"run.dir {run_dir}: its config.yaml cannot be read ({one_line(error)})") from None
        if not isinstance(there, dict) or not there.keys() >= {field.name for field in dataclasses.fields(self)}:
            raise UserError(f"run.dir {run_dir}: its config.yaml is not that of a run; choose another run.dir")
        if differences := describe_differences(_identity(there), self.identity()):
            raise UserError(f"run.dir {run_dir}: holds another run: {differences}. Choose another run.dir")

    def write(self, run_dir: Path) -> None:
        """Write every setting to RUN/config.yaml.

        Raises:
            UserError: the folder cannot be written.

        """
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            write_text(run_dir / "config.yaml", self.to_yaml())
        except OSError as error:
            raise UserError(
                f"run.dir {run_dir}: cannot be written ({error.strerror or error}); choose another folder"
            ) from None


def load(source: str | Path | None, overrides: Sequence[str] = (), leave_error: bool = False) -> Config:
    """Load a YAML file, put `key=value` settings over it, and check every key, type and range.

    Args:
        source: the file, or the name of a configuration that comes with the package; None for the defaults.
        overrides: `key=value`.
        leave_error: write an error to the run folder that the settings name, if no run holds it.

    Raises:
        UserError: names the key, its value, what is allowed and the nearest known key.

    """
    path = find_config(source) if source else None
    where = path or "the settings on the command line"
    try:
        given: Any = OmegaConf.load(path) if path else OmegaConf.create()
        if not OmegaConf.is_dict(given):
            raise UserError(f"{where}: not a configuration; it must hold sections such as data: and train:")
        if path and path.parent == CONFIGS:
            _use_shards_of_package(given)
        wrong = next((item for item in overrides if "=" not in item), None)
        if wrong is not None:
            raise UserError(f"{wrong!r}: settings are given as key=value, such as train.steps=1000")
        given = OmegaConf.merge(given, OmegaConf.from_dotlist(list(overrides)))
        settings: Any = OmegaConf.to_container(given, resolve=True)
    except (OSError, ValueError, omegaconf.errors.OmegaConfBaseException) as error:
        raise UserError(f"{where}: not a configuration ({one_line(error)})") from None
    except Exception as error:  # the YAML parser's own kinds of error
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: not valid YAML ({one_line(error)})") from None
    try:
        return _check(settings)
    except UserError as refusal:
        run = settings.get("run")
        if leave_error and isinstance(run, dict) and isinstance(run.get("dir"), str):
            RunLock(Path(run["dir"])).leave_error(refusal)
        raise


def _use_shards_of_package(given: Any) -> None:
    """Replace folders that come with the package by their paths, which lead there from any folder."""
    for key in ("data.shards", "data.validation"):
        folder = OmegaConf.select(given, key)
        if isinstance(folder, str) and (PACKAGE / folder).is_dir():
            OmegaConf.update(given, key, str(PACKAGE / folder))


def _check(settings: dict[str, Any]) -> Config:
    pairs = _chosen("pairs", settings, PAIRS, "synthetic")
    classes: dict[str, type] = {
        "run": RunSettings,
        "data": DataSettings,
        "noise": _chosen("noise", settings, NOISES, _default_noise(settings, pairs)),
        "pairs": pairs,
        "model": _chosen("model", settings, NETWORKS, "resunet").settings_class,
        "loss": LossSettings,
        "optim": OptimSettings,
        "train": TrainSettings,
        "validate": ValidateSettings,
        "checkpoint": CheckpointSettings,
    }
    for name in settings:
        if name not in classes:
            raise UserError(f"{name}: unknown section{_nearest(name, classes)}; known are {', '.join(classes)}")
    config = Config(**{name: _section(name, cls, settings.get(name) or {}) for name, cls in classes.items()})
    config.validation_sets()
    check_objective(config.noise, config.pairs, config.loss)
    _check_crop(config)
    return config


def _default_noise(settings: dict[str, Any], pairs: type[Pairs]) -> str:
    """Return the noise where none is named; where nothing is said of it, images of real pairs are taken as they are."""
    return "gaussian" if settings.get("noise") else pairs.default_noise


def _chosen(section: str, settings: dict[str, Any], choices: dict[str, Any], default: str) -> Any:
    """Return what a section's `name` chooses."""
    given = settings.get(section)
    name = given.get("name", default) if isinstance(given, dict) else default
    if not isinstance(name, str) or name not in choices:
        raise UserError(
            f"{section}.name {name!r}: unknown{_nearest(str(name), choices)}; known are {', '.join(choices)}"
        )
    return choices[name]


def _check_crop(config: Config) -> None:
    """Check that what pairs make of a crop fits the network, in terms of the crop that was given."""
    crop = config.data.crop
    size = config.pairs.network_crop(crop)
    multiple = round(crop / size) * config.model.divisor
    if size != crop and crop % multiple:
        raise UserError(
            f"data.crop {crop}: pairs.name {config.pairs.name} trains on {size} pixels of it, so for this network it "
            f"must be a multiple of {multiple}"
        )


def _section(name: str, cls: type, settings: Any) -> Any:
    if not isinstance(settings, dict):
        raise UserError(
            f"{name} {settings!r}: must be a section of settings, such as {name}.{dataclasses.fields(cls)[0].name}"
        )
    known = {field.name: field.type for field in dataclasses.fields(cls)}
    for key in settings:
        if key not in known:
            raise UserError(
                f"{name}.{key}: unknown setting{_nearest(key, known, f'{name}.')}; known are {', '.join(known)}"
            )
    types = typing.get_type_hints(cls)
    schema = OmegaConf.structured(cls)
    for key, value in settings.items():
        try:
            schema[key] = _as_written(value, types[key])
        except omegaconf.errors.OmegaConfBaseException:
            type_ = types[key]
            allowed = type_.__name__ if isinstance(type_, type) else type_
            raise UserError(f"{name}.{key} {value!r}: wrong type, must be {allowed}") from None
    return OmegaConf.to_object(schema)


def _as_written(value: Any, type_: Any) -> Any:
    """Undo what YAML makes of `1` for a float, and of `on`, `off` and a number for a text."""
    allowed = set(typing.get_args(type_) or [type_]) - {type(None)}
    if type(value) is int and allowed == {float}:
        return float(value)
    if allowed == {str} and isinstance(value, bool):
        return "on" if value else "off"
    if allowed == {str} and isinstance(value, int | float):
        return str(value)
    return value


def _nearest(key: str, known: Any, section: str = "") -> str:
    near = difflib.get_close_matches(str(key), list(known), n=1)
    return f" (did you mean {section}{near[0]}?)" if near else ""


def _identity(settings: Any) -> dict[str, Any]:
    return {key: value for key, value in _flat(settings).items() if key in IDENTITY or key.split(".")[0] in IDENTITY}


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
