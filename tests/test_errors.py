import os
import subprocess
import sys
from pathlib import Path

import pytest

from n2n_dist.errors import PeerLostError, StorageError, UserError, one_line, run_command


def refuse() -> None:
    raise UserError("data.batch 10: use a multiple of 4")


def fail() -> None:
    raise ValueError("a bug")


def test_refusal_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command(refuse)
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "error: data.batch 10: use a multiple of 4\n")


def test_failure_is_one_line_too_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    def fall_short() -> None:
        raise StorageError("step 7 could not be saved")

    with pytest.raises(SystemExit) as caught:
        run_command(fall_short)
    assert caught.value.code == 1
    assert capsys.readouterr() == ("", "error: step 7 could not be saved\n")


@pytest.mark.parametrize(("rank", "local", "printed"), [("0", "0", True), ("8", "0", True), ("9", "1", False)])
def test_the_first_process_of_each_machine_prints_and_all_leave_with_the_same_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, local: str, printed: bool
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local)
    with pytest.raises(SystemExit) as caught:
        run_command(refuse)
    assert caught.value.code == 2
    assert bool(capsys.readouterr().err) == printed


def test_the_loss_of_a_process_is_one_line_and_no_refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose() -> None:
        raise PeerLostError("rank 0 is gone")

    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as caught:
        run_command(lose)
    assert caught.value.code == 1
    assert capsys.readouterr() == ("", "error: rank 0 is gone\n")


def test_success_and_bugs_pass_through(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(lambda: print("done"))
    with pytest.raises(ValueError, match="a bug"):
        run_command(fail)
    assert capsys.readouterr() == ("done\n", "")


def test_an_interrupted_script_says_so_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_command(interrupted)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_one_line_of_an_error_is_short_and_never_empty() -> None:
    assert one_line(ValueError("a\n   b")) == "a b"
    assert len(one_line(ValueError("word " * 1000))) == 300
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


@pytest.mark.parametrize("left_over", [{"LOCAL_RANK": "1"}, {"LOCAL_RANK": "1", "WORLD_SIZE": ""}])
def test_a_variable_that_is_left_over_hides_no_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], left_over: dict[str, str]
) -> None:
    def fail() -> None:
        raise UserError("no such file")

    for name, value in left_over.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        run_command(fail)
    assert capsys.readouterr().err == "error: no such file\n"


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "| true"])
def test_a_program_goes_on_without_its_standard_output(tmp_path: Path, redirection: str) -> None:
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    program = tmp_path / "program.py"
    program.write_text(
        "import pathlib, time\n"
        "from n2n_dist.errors import run_command\n"
        "def main():\n"
        "    for number in range(5):\n"
        "        print('line', number, flush=True)\n"
        "        time.sleep(0.1)\n"
        f"    pathlib.Path({str(tmp_path / 'end')!r}).touch()\n"
        "run_command(main)\n"
    )
    command = f"set -o pipefail; {sys.executable} {program} {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (tmp_path / "end").exists(), done.stderr
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if redirection != ">&-":
        assert done.stderr.startswith("standard output cannot be written (")
        assert done.stderr.count("\n") == 1


def test_standard_output_keeps_its_encoding(capfd: pytest.CaptureFixture[str]) -> None:
    # by which the progress bar chooses its characters
    program = "import sys; from n2n_dist.errors import run_command; run_command(lambda: print(sys.stdout.encoding))"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    assert capfd.readouterr().out == "utf-8\n"
