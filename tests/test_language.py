"""The words of the field: one word, one meaning, and none of a private dialect (CONTRIBUTING.md, Language)."""

import ast
import re
from pathlib import Path

import pytest
from support.processes import ROOT

FORBIDDEN = {
    r"(?<!in )(?<!in-)(?<!take )(?<!takes )\bplaces?\b": "position (in a run), sample (in an index), slot (in a batch)",
    r"\bgone\b": "removed, lost, missing",
    r"\btold\b": "reported, named",
    r"\bstrips\b(?! or tiles)": "panels",  # a TIFF has strips
    r"\b(?:stands?|stood)\b(?! in? ?for\b| for\b)": "is, is in",
    r"\b(?:lest|whoever|for ever)\b": "plain English",
    r"\bwithout a word\b|\beach one's word\b": "without a message, value",
    r"\b(?:files?|folders?|index|checkpoint|manifest|metadata|script|table|page)s? (?:says?|tells?|knows?|speaks?)\b": (
        "the field's verb: a file holds, names, lists"
    ),
    r"\bsays of itself\b": "contents",
    r"\bentrance\b|\bself\.exit\b": "stem_conv, head",
    r"\bagree\(|\bon_main\b|\bon_all\b": "all_gather_or_raise, run_on_rank0, run_on_all_ranks",
    r"\b(?:Refusal|LostProcess|Unavailable)\b": "UserError, PeerLostError, SourceUnavailableError",
    r"\bset_aside\b|\btidy\b|\bshare_out\b": "quarantine, recover, partition_by_size",
}
"""Patterns, and what to write instead."""
SOURCES = [
    path
    for folder in ("n2n_dist", "launch", "shards", "benchmarks", "docs", "configs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".md", ".yaml", ".sh", ".sbatch")
]
SOURCES += [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]


def violations(text: str, python: bool) -> list[str]:
    """Return the lines with a forbidden word, and the docstrings that start with What."""
    found = [
        f"{number}: {line.strip()} -> {instead}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern, instead in FORBIDDEN.items()
        if re.search(pattern, line)
    ]
    for node in ast.walk(ast.parse(text)) if python else []:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            first = node.value.value.strip().splitlines()[0]
            if re.match(r"Whats?\b", first):
                found.append(f"{node.lineno}: {first} -> the noun or verb of the field first")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_of_the_field(path: Path) -> None:
    found = violations(path.read_text(), path.suffix == ".py")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "place = 3  # the place of a sample",
        "# the folder is gone",
        '"""Say what the user is told."""',
        '"""What a checkpoint says of itself."""',
        '"""What is learned."""',
        "# stands in config.yaml",
        "backend.agree(None)",
        "raise Refusal(message)",
    ],
)
def test_a_forbidden_word_is_found(text: str) -> None:
    assert violations(text, python=True)


@pytest.mark.parametrize(
    "text", ["# filled in place", "placeholder = replace(name)", "x = text.strip()", "# n1 stands for the noise"]
)
def test_words_that_only_look_alike_are_not(text: str) -> None:
    assert not violations(text, python=True)
