from pathlib import Path

import pytest
from support.processes import ROOT

from n2n_dist.commands import SCRIPTS, backend_file, command, config_names, find_config
from n2n_dist.errors import UserError


def test_a_checkout_names_its_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert command("denoise", "--run", Path("runs/a b")) == "python launch/denoise.py --run 'runs/a b'"
    assert command("train", "--config", "demo") == "accelerate launch launch/train.py --config demo"
    for line in SCRIPTS.values():
        assert all((ROOT / word).exists() for word in line.split() if word.endswith(".py"))
    assert (ROOT / backend_file("cpu")).is_file()


def test_other_folders_name_the_installed_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("denoise", "--run", "runs/demo") == "n2n-dist denoise --run runs/demo"
    assert command("train", "--config", "demo") == "accelerate launch -m n2n_dist train --config demo"
    assert Path(backend_file("cpu")).is_file()


def test_a_configuration_is_a_file_or_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_names() == sorted(path.stem for path in (ROOT / "configs").iterdir())
    assert find_config("demo").read_text() == (ROOT / "configs/demo.yaml").read_text()
    Path("demo").write_text("{}")
    assert find_config("demo") == Path("demo")
    with pytest.raises(UserError, match=r"^dmo: no such file; .*demo, gaussian25"):
        find_config("dmo")
