from pathlib import Path

import pytest

from n2n_dist.errors import PeerLostError, StorageError, UserError, one_line, run_command, write_error_file


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


def test_the_loss_of_a_process_does_not_hide_what_that_one_left(tmp_path: Path) -> None:
    write_error_file(tmp_path, PeerLostError("rank 0 is gone"))
    assert (tmp_path / "error.txt").read_text() == "rank 0 is gone\n"
    write_error_file(tmp_path, ValueError("a bug"))
    write_error_file(tmp_path, PeerLostError("rank 1 is gone"))
    assert (tmp_path / "error.txt").read_text().endswith("ValueError: a bug\n")


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
    write_error_file(tmp_path / "none", UserError("x"))
    assert not list(tmp_path.iterdir())


def test_error_file_of_a_refusal_is_written_by_rank_0_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    write_error_file(tmp_path, UserError("x"))
    assert not list(tmp_path.iterdir())
    write_error_file(tmp_path, ValueError("of this rank"))
    assert "of this rank" in (tmp_path / "error.txt").read_text()


def test_error_file_that_cannot_be_written_hides_no_error(tmp_path: Path) -> None:
    (tmp_path / "error.txt").mkdir()
    write_error_file(tmp_path, UserError("x"))
    assert (tmp_path / "error.txt").is_dir()


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
