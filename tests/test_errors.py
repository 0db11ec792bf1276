from pathlib import Path

import pytest

from n2n_dist.errors import Refusal, run_command, write_error_file


def refuse() -> None:
    raise Refusal("data.batch 10: use a multiple of 4")


def fail() -> None:
    raise ValueError("a bug")


def test_refusal_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command(refuse)
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "error: data.batch 10: use a multiple of 4\n")


def test_other_ranks_leave_with_the_same_code_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as caught:
        run_command(refuse)
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "")


def test_success_and_bugs_pass_through(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(lambda: print("done"))
    with pytest.raises(ValueError, match="a bug"):
        run_command(fail)
    assert capsys.readouterr() == ("done\n", "")


def test_error_file_holds_a_message_for_a_refusal_and_a_traceback_for_a_bug(tmp_path: Path) -> None:
    for command, expected in ((refuse, "data.batch 10: use a multiple of 4\n"), (fail, None)):
        try:
            command()
        except Exception as error:
            write_error_file(tmp_path, error)
        text = (tmp_path / "error.txt").read_text()
        if expected is None:
            assert text.startswith("Traceback")
            assert "in fail" in text
            assert text.endswith("ValueError: a bug\n")
        else:
            assert text == expected


def test_error_file_makes_no_folder(tmp_path: Path) -> None:
    write_error_file(tmp_path / "none", Refusal("x"))
    assert not list(tmp_path.iterdir())
