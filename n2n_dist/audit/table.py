"""An audit as text: a table for the terminal, whose facts are on the page too."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np

from n2n_dist.audit.results import HARMS, Audit

WIDTH = 100
"""Characters of a line of the table."""
NONE = "-"


def table(audits: Sequence[Audit]) -> str:
    """Lay out data sets side by side, and their findings below."""
    rows = [list_facts(audit) for audit in audits]
    widths = [max(len(values[label]) for label in values) for values in rows]
    label_width = max(map(len, rows[0]))
    lines = [
        "  ".join([label.ljust(label_width), *(values[label].ljust(w) for values, w in zip(rows, widths, strict=True))])
        for label in rows[0]
    ]
    lines = [line.rstrip() for line in lines]
    for audit in audits:
        lines += ["", f"findings on {audit.name}: {count_findings(audit)}"]
        for finding in audit.findings:
            text = f"{finding.subject}: {finding.what}; {finding.remedy}"
            lines += textwrap.wrap(text, WIDTH, initial_indent=f"  {finding.severity:5}  ", subsequent_indent=" " * 9)
    return "\n".join(lines)


def list_facts(audit: Audit) -> dict[str, str]:
    """Return the measurements of a data set as text, by label; the first is its name."""
    noise, sizes = audit.noise, [math.hypot(*pair.shift) for pair in audit.pairs if pair.shift_error is not None]
    black, white = audit.ranges[-1] if audit.ranges else (0.0, 1.0)
    alike = len(audit.ranges) == 1
    differences = [255 * pair.difference for pair in audit.pairs]
    nearest = max((abs(v) for v in _correlations(audit)), default=None)
    return {
        "data set": audit.name,
        "tars": f"{audit.tars:,}, {len(audit.differing) or 'none'} other than indexed",
        "scenes": f"{audit.scenes:,} in {audit.samples:,} samples, {audit.measured:,} measured",
        "captures": " to ".join(map(str, sorted(set(audit.captures)))) or NONE,
        "images": f"{' and '.join(map(str, audit.channels))} channel{'s' * (audit.channels != [1])}, "
        + ", ".join(audit.types),
        "black, white": f"{black:g}, {white:g}" + ("" if alike else f" and {len(audit.ranges) - 1} more"),
        "lowest, highest": f"{audit.lowest:.3f}, {audit.highest:.3f} of the range"
        + (f" ({_file_value(audit.lowest, audit)}, {_file_value(audit.highest, audit)})" if alike else ""),
        "clipped": f"{audit.clipped_low:.2%} at the lowest, {audit.clipped_high:.2%} at the highest",
        "noise": f"{noise.sigma:.2f}/255"
        + (f" ({noise.sigma / 255 * (white - black):.4g} in the file)" if alike else "")
        + ("" if audit.shared is not None else ", from single images")
        if noise
        else NONE,
        "noise variance": f"{noise.a:.3g} x + {noise.b:.3g}, off by {noise.deviation:.0%}" if noise else NONE,
        "shift": f"median {np.median(sizes):.2f}, largest {max(sizes):.2f} pixels" if sizes else NONE,
        "gain, offset": f"{audit.gain:.4f}, {255 * audit.offset:+.2f}/255"
        if audit.gain is not None and audit.offset is not None
        else NONE,
        "brightness": f"differs by {np.median(differences):.2f}/255 (median), {max(differences):.2f} (largest)"
        if differences
        else NONE,
        "fixed pattern": f"{audit.fixed:.1%} of the noise (± {audit.fixed_error:.1%}), between scenes"
        if audit.fixed is not None
        else NONE,
        "shared noise": f"{audit.shared:.1%} of the noise, between captures" if audit.shared is not None else NONE,
        "neighbours": f"noise correlated by {nearest:.2f} at most" if nearest is not None else NONE,
    }


def _file_value(value: float, audit: Audit) -> str:
    black, white = audit.ranges[-1]
    return f"{round(black + value * (white - black), 4):g}"


def count_findings(audit: Audit) -> str:
    """Say how many findings there are of each severity."""
    harmful = sum(finding.severity == HARMS for finding in audit.findings)
    if not audit.findings:
        return "nothing found that breaks training"
    return f"{harmful or 'none'} harmful to training, {len(audit.findings) - harmful or 'none'} to note"


def _correlations(audit: Audit) -> list[float]:
    flat = [value for row in audit.autocorrelation for value in row]
    return [value for number, value in enumerate(flat) if number != len(audit.autocorrelation[0]) // 2]
