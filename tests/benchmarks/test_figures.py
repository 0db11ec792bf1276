import csv
from pathlib import Path

from benchmarks.figures import COLUMNS, Figure, record


def test_a_line_has_the_spread_of_several_values() -> None:
    assert str(Figure("a step", [3.0, 1.0, 2.0], "s", "wanted 1")) == "a step: 2 s (median of 3, 1 to 3), wanted 1"
    assert str(Figure("memory", [0.25], "GiB")) == "memory: 0.25 GiB"


def test_rows_are_appended_with_their_origin(tmp_path: Path) -> None:
    path = tmp_path / "results" / "loop.csv"
    for value in (1.0, 2.0):
        record(path, [Figure("a, quoted", [value, value + 2], "s")], "python launch/bench.py --loop")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["figure"], row["median"], row["lowest"], row["highest"], row["count"]) for row in rows] == [
        ("a, quoted", "2", "1", "3", "2"),
        ("a, quoted", "3", "2", "4", "2"),
    ]
    assert all(row["machine"] and row["torch"] and row["date"] for row in rows)
