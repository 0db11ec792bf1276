"""The documents are true: their commands run, one after the other, and what they name exists.

Training is cut short. Commands of a cluster are run by tests/slurm; what installs or copies over the network is not.
"""

import itertools
import pydoc
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from accelerate.commands.launch import launch_command_parser
from support import processes
from support.documents import DOCUMENTS, SHORT, anchors, checkout, commands, messages, said
from support.images import random_pixels, smooth_scene
from support.servers import s3, upload

from benchmarks import checkpoint, data, gap
from benchmarks.figures import Figure
from n2n_dist.config import load
from n2n_dist.images.image import write_image

CLUSTER = ("sbatch", "squeue", "tail", "scontrol")
NETWORK = ("pip", "aws", "diff", "pytest", "python shards/demo/rebuild.py")
"""What needs a network, or what comes from it; and this suite."""
RUN = (("README.md", "docs/operations.md"), ("docs/shards.md",))
"""Documents whose commands run here, one after the other in one folder."""
ELSEWHERE = ("docs/cluster.md", "docs/noise-and-loss.md")
"""Documents whose commands are run by tests/slurm, or are benchmarks."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the images that the documents speak of."""
    root = checkout(tmp_path / "root")
    for number in range(24):
        write_image(root / "photos" / f"{number}.png", random_pixels((40, 36, 3), seed=number))
    for number in range(12):
        write_image(root / "noisy" / f"{number}.png", random_pixels((40, 36, 3), seed=number))
        scene = smooth_scene((96, 96), seed=number)
        frames = (1000 + 50000 * (scene + np.random.default_rng(number).normal(0, 0.03, (2, 96, 96)))).astype(np.uint16)
        for capture, frame in enumerate(frames):
            write_image(root / "scenes" / str(number) / f"{capture}.tif", frame[..., None])
            write_image(root / "all" / f"{number}_t{capture}.tif", frame[..., None])
        for name in ("stacks", "films"):
            (root / name).mkdir(exist_ok=True)
            tifffile.imwrite(root / name / f"{number}.tif", frames[[0, 1, 0]], photometric="minisblack")
    write_image(root / "photo.png", random_pixels((64, 64, 3)))
    write_image(root / "Kodak" / "1.png", random_pixels((64, 64, 3)))
    return root


def follow(folder: Path, command: str, variables: dict[str, str]) -> None:
    """Run a command of a document."""
    words = shlex.split(command)
    if "shards/build.py" in command and "shards/mine" in words and "index" not in words:
        shutil.rmtree(folder / "shards/mine", ignore_errors=True)  # another way to make the same
    if words[0] in CLUSTER or command.startswith(NETWORK):
        return
    if words[:2] == ["accelerate", "launch"]:
        given = launch_command_parser().parse_args(words[2:])
        assert given.config_file is None or (folder / given.config_file).is_file()
        settings = (*SHORT, f"data.cache={folder / 'cache'}") if given.training_script == "launch/train.py" else ()
        processes.run(
            given.training_script,
            *given.training_script_args,
            *settings,
            world=given.num_processes or 0,
            variables=variables,
            folder=folder,
        ).checked()
    elif words[0] == "python" and words[1].endswith(".py"):
        processes.run(*words[1:], folder=folder).checked()
    else:
        if words[0] == "n2n-dist":
            command = shlex.join(["python", "-m", "n2n_dist", *words[1:], *(SHORT if words[1] == "train" else ())])
        command = command.replace("--export 1000", "--export 2").replace("--logdir runs", "--logdir runs --inspect")
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        environment = {"PATH": path, "PYTHONPATH": str(processes.ROOT)}
        done = subprocess.run(["bash", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("documents", RUN, ids=" ".join)
def test_the_commands_run(folder: Path, documents: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [command for document in documents for command in commands(document)]
    found = [command for command in found if not command.startswith("python launch/bench.py")]
    assert len(found) > 12
    with s3() if any(command.startswith("aws") for command in found) else nullcontext({}) as variables:
        for command in found:
            if command.startswith("aws s3 sync"):
                upload(folder / "shards", "bucket")
            follow(folder, command, variables)
    monkeypatch.chdir(folder)
    for block in (block for document in documents for block in commands(document, "python")):
        array = random_pixels((40, 36, 3))
        names = {"array": array}
        exec(block, names)
        assert names["denoised"].shape == array.shape


def test_the_benchmarks_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def only_load(name: str, config: str, settings: list[str], *_: object) -> list[Figure]:
        load(processes.ROOT / config if config != "demo" else config, settings)
        measured.append(name)
        return [Figure(name, [1.0])]

    for module in (gap, data, checkpoint):
        name = module.__name__.removeprefix("benchmarks.")
        monkeypatch.setattr(module, name, partial(only_load, name))
    found = [command for name in DOCUMENTS for command in commands(name) if "launch/bench.py" in command]
    for command in found:
        monkeypatch.setattr(sys, "argv", shlex.split(command)[1:])
        runpy.run_path(str(processes.ROOT / "launch/bench.py"), run_name="__main__")
    assert sorted(measured) == ["checkpoint", "data", "gap"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_command_stands_where_it_is_not_tested(document: str) -> None:
    text = (processes.ROOT / document).read_text()
    assert not commands(document) or document in (*itertools.chain(*RUN), *ELSEWHERE)
    assert not re.findall(r"^    (?:python|accelerate|sbatch|pip) .*", text, re.MULTILINE)


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md", "CHANGELOG.md", "shards/README.md"])
def test_links_files_and_names_exist(document: str) -> None:
    text = (processes.ROOT / document).read_text()
    assert len(text.splitlines()) < 200
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text):
        path = (processes.ROOT / document).parent / target if target else processes.ROOT / document
        assert path.exists(), target
        assert not anchor or anchor in anchors(str(path.resolve().relative_to(processes.ROOT))), anchor
    for path in re.findall(
        r"`((?:n2n_dist|launch|configs|shards|tests|docs)/[\w./-]+\.(?:py|ya?ml|md|sbatch|sh))", text
    ):
        assert any((root / path).exists() for root in (processes.ROOT, processes.ROOT / "n2n_dist")), path
    for name in re.findall(r"`(n2n_dist(?:\.\w+)+)[`(]", text):
        assert pydoc.locate(name), name


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != "docs/settings.md"])
def test_the_settings_exist(document: str) -> None:
    page = (processes.ROOT / "docs/settings.md").read_text()
    known = set(re.findall(r"`(\w+\.\w+)` \|", page)) | set(re.findall(r"\*\*(\w+\.name)\*\*", page))
    sections = "|".join(sorted({key.partition(".")[0] for key in known}))
    text = (processes.ROOT / document).read_text()
    named = re.findall(rf"(?<![\w./-])((?:{sections})\.[a-z_]+)\b(?!/)", text)
    assert {key for key in named if key.partition(".")[2] not in ("py", "sbatch", "safetensors", "a", "b")} <= known


def test_the_page_of_settings_is_that_of_the_code() -> None:
    written = runpy.run_path(str(processes.ROOT / "docs/settings.py"))["page"]()
    assert (processes.ROOT / "docs/settings.md").read_text() == written, "run: python docs/settings.py"


def test_the_layers_are_those_that_are_checked() -> None:
    contract = tomllib.loads((processes.ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    text = (processes.ROOT / "docs/architecture.md").read_text().partition("## Layers")[2].partition("\n## ")[0]
    shown = re.findall(r"^    (\S.*?)(?:  |$)", text, re.MULTILINE)
    assert shown == [layer.replace("n2n_dist.", "") for layer in contract["layers"]]


def test_the_changelog_has_the_formats_of_the_code() -> None:
    text = (processes.ROOT / "CHANGELOG.md").read_text()
    rows = re.findall(r"\(`(?:\w+\.)?(\w+)` in `(\S+)`\) \| (\d+) \|", text.partition("## 0.1.0")[0])
    assert len(rows) == 3
    for name, path, written in rows:
        assert re.search(rf"^ *{name}(?:: \S+)? = {written}\b", (processes.ROOT / path).read_text(), re.MULTILINE), path


def test_every_page_is_found_from_the_readme() -> None:
    text = (processes.ROOT / "README.md").read_text()
    assert all(f"({document})" in text for document in DOCUMENTS if document != "README.md")


@pytest.mark.parametrize("document", ["docs/operations.md", "docs/cluster.md"])
def test_the_messages_that_have_a_remedy_exist(document: str) -> None:
    foreign = ("`sbatch", "`squeue", "`Requested node", "`CUDA out of memory`")
    sources, found = said(), messages(document)
    assert len(found) >= 10
    for message in found:
        quoted = re.match(r"`(?:error: |warning: )?(.*?)`", message)
        if quoted and not message.startswith(foreign):
            filled_in = re.split(r"\.\.\.|\b[A-Z][A-Z0-9]{2,}\b|\b\d+\b", quoted[1])
            for part in filter(None, (part.strip(" :") for part in filled_in)):
                assert part in sources, message
