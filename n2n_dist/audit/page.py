"""An audit for people: a table for the terminal, and a page of plots."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from n2n_dist.audit.findings import DIFFERENCE, HARMS, SHIFT, Finding
from n2n_dist.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from n2n_dist.audit.results import Audit

WIDTH = 100
"""Characters of a line of the table."""
PLOTS = 7.6
"""Height of the plots in inches."""
LINE = 0.185
"""Height of a line of text in inches."""
NONE = "-"
BLUE, RED, GREY = "#2f5d8a", "#b3402e", "0.45"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 110,
}


def table(audits: Sequence[Audit]) -> str:
    """Lay out data sets side by side, and their findings below."""
    rows = [_rows(audit) for audit in audits]
    widths = [max(len(values[label]) for label in values) for values in rows]
    label_width = max(map(len, rows[0]))
    lines = [
        "  ".join([label.ljust(label_width), *(values[label].ljust(w) for values, w in zip(rows, widths, strict=True))])
        for label in rows[0]
    ]
    lines = [line.rstrip() for line in lines]
    for audit in audits:
        lines += ["", f"findings on {audit.name}: {_count(audit)}"]
        for finding in audit.findings:
            text = f"{finding.subject}: {finding.what}; {finding.remedy}"
            lines += textwrap.wrap(text, WIDTH, initial_indent=f"  {finding.severity:5}  ", subsequent_indent=" " * 9)
    return "\n".join(lines)


def draw(audit: Audit, path: Path) -> None:
    """Write a page of facts, findings and plots as PNG, through a temporary file."""
    from matplotlib import rc_context  # takes a second to import, and only a page needs it
    from matplotlib.figure import Figure

    facts = list(_rows(audit).items())[1:]
    findings = [_wrapped(finding) for finding in audit.findings]
    text = LINE * (3 + max(len(facts), sum(len(lines) + 0.6 for _, lines in findings)))
    height = PLOTS + text + 0.6
    with rc_context(STYLE):
        figure = Figure(figsize=(14, height), facecolor="white")
        top = height - 0.35
        figure.text(0.02, top / height, f"Audit of {audit.name}", size=15, weight="bold", va="center")
        top -= 0.5
        for number, (label, value) in enumerate(facts):
            y = (top - LINE * number) / height
            figure.text(0.02, y, label, color=GREY)
            figure.text(0.115, y, value)
        figure.text(0.41, top / height, _count(audit), weight="bold")
        line = 1.5
        for severity, lines in findings:
            y = (top - LINE * line) / height
            figure.text(0.41, y, severity, color=RED if severity == HARMS else GREY, weight="bold")
            for number, (words, weight) in enumerate(lines):
                figure.text(0.45, y - LINE * number / height, words, weight=weight)
            line += len(lines) + 0.6
        grid = figure.add_gridspec(
            2, 3, left=0.055, right=0.98, bottom=0.6 / height, top=(PLOTS - 0.2) / height, hspace=0.4, wspace=0.24
        )
        for number, panel in enumerate((_pictures, _histogram, _noise, _shifts, _brightness, _correlation)):
            panel(figure.add_subplot(grid[number // 3, number % 3]), audit)
        with write_atomically(path) as temporary:
            figure.savefig(temporary, format="png")


def _rows(audit: Audit) -> dict[str, str]:
    noise, sizes = audit.noise, [math.hypot(*pair.shift) for pair in audit.pairs if pair.shift_error is not None]
    black, white = audit.ranges[-1] if audit.ranges else (0.0, 1.0)
    alike = len(audit.ranges) == 1
    differences = [255 * pair.difference for pair in audit.pairs]
    nearest = max((abs(v) for v in _neighbours(audit)), default=None)
    return {
        "data set": audit.name,
        "tars": f"{audit.tars:,}, {len(audit.differing) or 'none'} other than indexed",
        "scenes": f"{audit.scenes:,} in {audit.samples:,} samples, {audit.measured:,} measured",
        "captures": " to ".join(map(str, sorted(set(audit.captures)))) or NONE,
        "images": f"{' and '.join(map(str, audit.channels))} channel{'s' * (audit.channels != [1])}, "
        + ", ".join(audit.types),
        "black, white": f"{black:g}, {white:g}" + ("" if alike else f" and {len(audit.ranges) - 1} more"),
        "lowest, highest": f"{audit.lowest:.3f}, {audit.highest:.3f} of the range"
        + (f" ({_in_file(audit.lowest, audit)}, {_in_file(audit.highest, audit)})" if alike else ""),
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


def _in_file(value: float, audit: Audit) -> str:
    black, white = audit.ranges[-1]
    return f"{round(black + value * (white - black), 4):g}"


def _count(audit: Audit) -> str:
    harmful = sum(finding.severity == HARMS for finding in audit.findings)
    if not audit.findings:
        return "nothing found that breaks training"
    return f"{harmful or 'none'} harmful to training, {len(audit.findings) - harmful or 'none'} to note"


def _wrapped(finding: Finding) -> tuple[str, list[tuple[str, str]]]:
    """Return the severity, and lines with the weight of their letters."""
    what = textwrap.wrap(f"{finding.subject}: {finding.what}", 90)
    lines = [(words, "bold") for words in what]
    return finding.severity, lines + [(words, "normal") for words in textwrap.wrap(finding.remedy, 104)]


def _neighbours(audit: Audit) -> list[float]:
    flat = [value for row in audit.autocorrelation for value in row]
    return [value for number, value in enumerate(flat) if number != len(audit.autocorrelation[0]) // 2]


def _pictures(axes: Axes, audit: Audit) -> None:
    axes.set_title("One tile: " + ("two captures and their difference" if len(audit.pictures) > 1 else "as it is"))
    axes.axis("off")
    if not audit.pictures:
        return _say(axes, "no tile was measured")
    part = 2 if len(audit.pictures) > 1 else 1  # three narrow pictures fill the panel better than three square ones
    shown = [picture[:, : picture.shape[1] // part].mean(axis=2) for picture in audit.pictures]
    low, high = np.percentile(shown[0], (0.5, 99.5))
    scaled = [(picture - low) / max(high - low, 1e-6) for picture in shown]
    if len(shown) > 1:
        difference = shown[1] - shown[0]
        scaled.append(0.5 + (difference - np.median(difference)) / max(8 * difference.std(), 1e-6))
    gap = np.ones((scaled[0].shape[0], 6))
    strip = np.concatenate([part for picture in scaled for part in (picture, gap)][:-1], axis=1)
    axes.imshow(strip.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    return None


def _histogram(axes: Axes, audit: Audit) -> None:
    axes.set(title="Values", xlabel="brightness (black 0, white 1)", ylabel="pixels", yscale="log")
    if not sum(audit.histogram):
        return _say(axes, "no tile was measured")
    edges = np.linspace(audit.lowest, audit.highest, len(audit.histogram) + 1)
    axes.stairs(audit.histogram, edges, fill=True, color=BLUE, alpha=0.8)
    axes.set_ylim(0.7, 20 * max(audit.histogram))
    for share, x, side in ((audit.clipped_low, audit.lowest, "left"), (audit.clipped_high, audit.highest, "right")):
        if share:
            axes.axvline(x, color=RED, linewidth=1)
            x = 0.06 if side == "left" else 0.94
            axes.text(x, 0.95, f"{share:.2%} clipped", color=RED, ha=side, va="top", transform=axes.transAxes)
    return None


def _noise(axes: Axes, audit: Audit) -> None:
    axes.set(title="Variance of the noise", xlabel="brightness (black 0, white 1)", ylabel="variance in (1/255)²")
    if audit.noise is None:
        return _say(axes, "too few blocks without clipping")
    noise, scale = audit.noise, 255**2
    axes.plot(noise.brightness, np.array(noise.variance) * scale, "o", color=BLUE, label="measured")
    ends = np.array([min(0, noise.brightness[0]), max(noise.brightness)])
    axes.plot(ends, (noise.a * ends + noise.b) * scale, color=RED, label=f"{noise.a:.3g} x + {noise.b:.3g}")
    axes.set_ylim(0, max(1.3 * max(noise.variance) * scale, 1e-3))
    axes.legend(loc="upper left")
    return None


def _shifts(axes: Axes, audit: Audit) -> None:
    axes.set(title="Shift between captures", xlabel="pixels right", ylabel="pixels down")
    pairs = [pair for pair in audit.pairs if pair.shift_error is not None]
    if not pairs:
        return _say(axes, "needs two captures of a scene" if not audit.pairs else "scenes have too little contrast")
    down, right = np.array([pair.shift for pair in pairs]).T
    error = np.array([pair.shift_error for pair in pairs])
    axes.errorbar(right, down, error, error, "o", color=BLUE, ecolor="0.8", markersize=4, label="a pair of captures")
    angle = np.linspace(0, 2 * np.pi, 100)
    axes.plot(SHIFT * np.cos(angle), SHIFT * np.sin(angle), color=RED, linewidth=1, label=f"{SHIFT:g} pixels")
    reach = 1.4 * max(2 * SHIFT, np.abs(down).max(), np.abs(right).max())
    axes.set(xlim=(-reach, reach), ylim=(reach, -reach), box_aspect=1)
    axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.legend()
    return None


def _brightness(axes: Axes, audit: Audit) -> None:
    title = "Difference in brightness, second capture - first"
    axes.set(title=title, xlabel="brightness (black 0, white 1)", ylabel="1/255")
    if not audit.pairs:
        return _say(axes, "needs two captures of a scene")
    ends = np.array([0.0, max(audit.highest, 1e-6)])
    lines = [255 * ((pair.gain - 1) * ends + pair.offset) for pair in audit.pairs]
    limit = 255 * DIFFERENCE
    axes.axhspan(-limit, limit, color="0.93", label=f"within {limit:g}/255")
    for number, line in enumerate(lines):
        axes.plot(ends, line, color=BLUE, linewidth=0.8, alpha=0.6, label=None if number else "a pair of captures")
    reach = 1.3 * max(2 * limit, np.abs(lines).max())
    axes.set_ylim(-reach, reach)
    axes.legend(loc="upper left")
    return None


def _correlation(axes: Axes, audit: Audit) -> None:
    axes.set_title("Correlation of noise with its neighbours")
    if not audit.autocorrelation:
        axes.axis("off")
        return _say(axes, "needs two captures of a scene")
    half = np.array(audit.autocorrelation)
    full = np.concatenate([half[:0:-1, ::-1], half])  # a correlation at a lag is that at the opposite one
    lags = half.shape[0] - 1
    axes.imshow(full, cmap="RdBu_r", vmin=-1, vmax=1)
    for (row, column), value in np.ndenumerate(full):
        colour = "white" if abs(value) > 0.6 else "black"
        axes.text(column, row, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center", color=colour)
    names = [f"{lag:+d}" if lag else "0" for lag in range(-lags, lags + 1)]
    axes.set(xlabel="pixels right", ylabel="pixels down")
    axes.set_xticks(range(2 * lags + 1), names)
    axes.set_yticks(range(2 * lags + 1), names)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return None


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, color=GREY, ha="center", va="center", transform=axes.transAxes)
