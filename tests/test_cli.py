import os
import subprocess
import sys
from pathlib import Path

import pytest

from n2n_dist import cli
from n2n_dist.images.readers import READERS


def test_help_of_every_command_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            cli.run(name, argv=[])
        shown = capsys.readouterr().out
        assert f"usage: n2n-dist {name} " in shown
        assert f"\nn2n-dist {name} " in shown


@pytest.mark.parametrize("name", ["build", "denoise"])
def test_help_lists_every_format(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.run(name, argv=["--help"])
    shown = capsys.readouterr().out
    assert all(reader.name in shown for reader in READERS.values())


def test_without_a_command_all_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["n2n-dist"])
    cli.main()
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in cli.COMMANDS)


def test_an_unknown_command_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["n2n-dist", "denoize"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "n2n-dist denoize: unknown command; known are train, denoise" in capsys.readouterr().err


def test_arguments_are_parsed_without_torch() -> None:
    program = "import sys; from n2n_dist import cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_signals_are_noted_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys; from n2n_dist import cli, signals\n"
        "signals.install = lambda: sys.exit('torch' in sys.modules)\n"
        "cli.run('train', argv=['--config', 'demo'])"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_module_runs_the_commands_from_any_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "n2n_dist", "train", "--config", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: nowhere: no such file; give a YAML file, or a configuration of the package")
