import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from n2n_dist.audit import command


def test_the_report_is_written_into_the_folder_or_where_it_is_wanted(
    make_shards: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = make_shards()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    for arguments, output in (([], shards / "audit"), (["--output", str(tmp_path / "there")], tmp_path / "there")):
        command.run(parser.parse_args([str(shards), "--samples", "3", *arguments]))
        assert f"findings on {shards}" in capsys.readouterr().out
        (report,) = json.loads((output / "audit.json").read_text())
        assert (report["name"], report["samples"], report["measured"]) == (str(shards), 6, 3)
