import re
from dataclasses import replace
from typing import Any

import pytest
from support.audits import audit, pair

from n2n_dist.audit.findings import find

NOISE = audit().noise
assert NOISE is not None
SINGLE = {"captures": [1, 1], "pairs": [], "shared": None, "noise": replace(NOISE, sigma=1.0)}


def test_nothing_is_said_of_good_captures() -> None:
    assert find(audit()) == []


@pytest.mark.parametrize(
    ("values", "severity", "subject", "said"),
    [
        ({"differing": ["1.tar"]}, "harms", "digest", "1.tar: not the bytes that were indexed"),
        ({"unreadable": dict.fromkeys("abcde", "NaN")}, "harms", "unreadable", "5: a, b, c and 2 more"),
        ({"measured": 0, "noise": None}, "note", "no pixels", "no sample could be measured"),
        ({"clipped_low": 0.02}, "harms", "clipped at black", "2.00% of the pixels"),
        ({"clipped_low": 0.02, **SINGLE}, "note", "clipped at black", "2.00% of the pixels"),
        ({"clipped_high": 0.02}, "note", "clipped at white", "2.00% of the pixels"),
        ({"highest": 0.06}, "note", "range", "0.060 of the range, 339.7 in the file"),
        ({"identical": ["a"]}, "harms", "identical captures", "1: a"),
        ({"pairs": [pair(), pair("b", shift=[0.3, 0.4])]}, "harms", "shift", "1 of 2 scenes .* worst, b, by 0.50"),
        ({"pairs": [pair(difference=0.02, gain=1.04)]}, "harms", "gain, offset", "a, by 5.1/255 .gain 1.040"),
        ({"fixed": 0.2}, "harms", "fixed pattern", "20.0% of the variance"),
        ({"fixed": 0.2, **SINGLE}, "note", "fixed pattern", "20.0% of the variance"),
        ({"fixed": None, "shared": 0.2}, "harms", "shared noise", "20.0% of the variance"),
        ({"shared": 0.2}, "note", "shared noise", "20.0% of the variance"),
        (
            {"autocorrelation": [[0.0, 0.3, 1.0, 0.3, 0.0], [0.0] * 5]},
            "note",
            "correlated noise",
            r"\+0.30 at a distance of 0 down, 1 right",
        ),
        ({"noise": replace(NOISE, sigma=0.2)}, "harms", "no noise", "0.20/255 only"),
        ({**SINGLE, "noise": NOISE}, "note", "noisy images", "12.0/255"),
        ({"noise": replace(NOISE, deviation=0.5)}, "note", "noise model", "by 50%"),
        ({"noise": replace(NOISE, b=-0.0003)}, "note", "black level", "at 0.100 of the range"),
    ],
)
def test_a_fault_is_named_with_its_severity_and_value(
    values: dict[str, Any], severity: str, subject: str, said: str
) -> None:
    (finding,) = find(audit(**values))
    assert (finding.severity, finding.subject) == (severity, subject)
    assert re.search(said, finding.what), finding.what
    assert finding.remedy


@pytest.mark.parametrize(
    "values",
    [
        {"clipped_low": 0.0005, "clipped_high": 0.0005},
        {"pairs": [pair(shift=[0.05, 0.05]), pair("b", shift=[2.0, 0.0], shift_error=1.0)]},  # small, or unsure
        {"pairs": [pair(shift=[0.2, 0.0], shift_error=None)]},  # too little contrast to tell
        {"pairs": [pair(difference=0.02, difference_error=0.02)]},
        {"fixed": 0.2, "fixed_error": 0.1},
        SINGLE,
    ],
)
def test_what_is_small_or_uncertain_is_no_finding(values: dict[str, Any]) -> None:
    assert find(audit(**values)) == []


def test_displaced_captures_are_not_said_to_differ_in_brightness() -> None:
    (finding,) = find(audit(pairs=[pair(shift=[5.0, 0.0], difference=0.1)]))
    assert finding.subject == "shift"


def test_what_harms_comes_first() -> None:
    found = find(audit(clipped_high=0.1, identical=["a"]))
    assert [finding.severity for finding in found] == ["harms", "note"]
