from support.audits import audit

from n2n_dist.audit.results import Finding
from n2n_dist.audit.table import WIDTH, count_findings, list_facts, table


def test_facts_are_in_units_of_the_range_and_of_the_file() -> None:
    facts = list_facts(audit())
    assert facts["captures"] == "2"
    assert facts["images"] == "1 channel, uint16"
    assert facts["black, white"] == "100, 4095"
    assert facts["lowest, highest"] == "0.010, 0.900 of the range (139.95, 3695.5)"
    assert facts["noise"] == "12.00/255 (188 in the file)"
    assert facts["noise variance"] == "0.003 x + 0.0007, off by 2%"
    assert facts["shift"] == "median 0.02, largest 0.02 pixels"
    assert facts["neighbours"] == "noise correlated by 0.01 at most"


def test_what_was_not_measured_is_a_dash() -> None:
    facts = list_facts(audit(noise=None, pairs=[], gain=None, offset=None, fixed=None, shared=None, autocorrelation=[]))
    for label in ("noise", "noise variance", "shift", "gain, offset", "brightness", "fixed pattern", "neighbours"):
        assert facts[label] == "-", label


def test_values_of_the_file_are_left_out_where_ranges_differ() -> None:
    facts = list_facts(audit(ranges=[[0.0, 255.0], [100.0, 4095.0]]))
    assert facts["black, white"] == "100, 4095 and 1 more"
    assert facts["lowest, highest"] == "0.010, 0.900 of the range"
    assert facts["noise"] == "12.00/255"


def test_findings_stand_below_the_columns() -> None:
    found = [Finding("harms", "shift", "half a pixel " * 12, "align them"), Finding("note", "range", "dark", "none")]
    text = table([audit(), audit(findings=found)])
    assert text.splitlines()[0].split() == ["data", "set", "shards/mine", "shards/mine"]
    assert "findings on shards/mine: nothing found that breaks training\n" in text
    below = text.partition("findings on shards/mine: 1 harmful to training, 1 to note\n")[2].splitlines()
    assert below[0].startswith("  harms  shift: half a pixel")
    assert max(map(len, below)) <= WIDTH
    assert below[-1] == "  note   range: dark; none"


def test_findings_are_counted_by_severity() -> None:
    note = Finding("note", "range", "dark", "none")
    assert count_findings(audit()) == "nothing found that breaks training"
    assert count_findings(audit(findings=[note])) == "none harmful to training, 1 to note"
