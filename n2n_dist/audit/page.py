"""An audit as a page: facts, findings and plots in one PNG. Importing matplotlib for it takes a second."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from n2n_dist.audit.findings import DIFFERENCE, SHIFT
from n2n_dist.audit.results import HARMS, Audit, Finding
from n2n_dist.audit.table import count_findings, list_facts
from n2n_dist.files import write_atomically

PLOTS = 7.6
"""Height of the plots in inches."""
LINE = 0.185
"""Height of a line of text in inches."""
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
WrappedFinding = tuple[str, list[tuple[str, str]]]
"""Severity, and lines of text with the weight of their letters."""


def draw(audit: Audit, path: Path) -> None:
    """Write a page of facts, findings and plots as PNG, through a temporary file."""
    facts = list(list_facts(audit).items())[1:]
    findings = [_wrapped(finding) for finding in audit.findings]
    text = LINE * (3 + max(len(facts), sum(len(lines) + 0.6 for _, lines in findings)))
    height = PLOTS + text + 0.6
    with rc_context(STYLE):
        figure = Figure(figsize=(14, height), facecolor="white")
        figure.text(0.02, (height - 0.35) / height, f"Audit of {audit.name}", size=15, weight="bold", va="center")
        _write_facts(figure, height - 0.85, facts)
        figure.text(0.41, (height - 0.85) / height, count_findings(audit), weight="bold")
        _write_findings(figure, height - 0.85 - 1.5 * LINE, findings)
        grid = figure.add_gridspec(
            2, 3, left=0.055, right=0.98, bottom=0.6 / height, top=(PLOTS - 0.2) / height, hspace=0.4, wspace=0.24
        )
        for number, panel in enumerate((_pictures, _histogram, _noise, _shifts, _brightness, _correlation)):
            panel(figure.add_subplot(grid[number // 3, number % 3]), audit)
        with write_atomically(path) as temporary:
            figure.savefig(temporary, format="png")


def _write_facts(figure: Figure, top: float, facts: Sequence[tuple[str, str]]) -> None:
    """Write labels and values below each other; `top` in inches above the bottom of the page."""
    height = figure.get_figheight()
    for number, (label, value) in enumerate(facts):
        y = (top - LINE * number) / height
        figure.text(0.02, y, label, color=GREY)
        figure.text(0.115, y, value)


def _write_findings(figure: Figure, top: float, findings: Sequence[WrappedFinding]) -> None:
    """Write findings below each other; `top` in inches above the bottom of the page."""
    height = figure.get_figheight()
    for severity, lines in findings:
        figure.text(0.41, top / height, severity, color=RED if severity == HARMS else GREY, weight="bold")
        for number, (text, weight) in enumerate(lines):
            figure.text(0.45, (top - LINE * number) / height, text, weight=weight)
        top -= LINE * (len(lines) + 0.6)


def _wrapped(finding: Finding) -> WrappedFinding:
    what = textwrap.wrap(f"{finding.subject}: {finding.what}", 90)
    lines = [(words, "bold") for words in what]
    return finding.severity, lines + [(words, "normal") for words in textwrap.wrap(finding.remedy, 104)]


def _pictures(axes: Axes, audit: Audit) -> None:
    axes.set_title("One tile: " + ("two captures and their difference" if len(audit.pictures) > 1 else "as it is"))
    axes.axis("off")
    if not audit.pictures:
        return _note(axes, "no tile was measured")
    part = 2 if len(audit.pictures) > 1 else 1  # three narrow pictures fill the panel better than three square ones
    shown = [picture[:, : picture.shape[1] // part].mean(axis=2) for picture in audit.pictures]
    low, high = np.percentile(shown[0], (0.5, 99.5))
    scaled = [(picture - low) / max(high - low, 1e-6) for picture in shown]
    if len(shown) > 1:
        difference = shown[1] - shown[0]
        scaled.append(0.5 + (difference - np.median(difference)) / max(8 * difference.std(), 1e-6))
    gap = np.ones((scaled[0].shape[0], 6))
    row = np.concatenate([part for picture in scaled for part in (picture, gap)][:-1], axis=1)
    axes.imshow(row.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    return None


def _histogram(axes: Axes, audit: Audit) -> None:
    axes.set(title="Values", xlabel="brightness (black 0, white 1)", ylabel="pixels", yscale="log")
    if not sum(audit.histogram):
        return _note(axes, "no tile was measured")
    edges = np.linspace(audit.lowest, audit.highest, len(audit.histogram) + 1)
    axes.stairs(audit.histogram, edges, fill=True, color=BLUE, alpha=0.8)
    axes.set_ylim(0.7, 20 * max(audit.histogram))
    for share, x, side in ((audit.clipped_low, audit.lowest, "left"), (audit.clipped_high, audit.highest, "right")):
        if share:
            axes.axvline(x, color=RED, linewidth=1)
            x_text = 0.06 if side == "left" else 0.94
            axes.text(x_text, 0.95, f"{share:.2%} clipped", color=RED, ha=side, va="top", transform=axes.transAxes)
    return None


def _noise(axes: Axes, audit: Audit) -> None:
    axes.set(title="Variance of the noise", xlabel="brightness (black 0, white 1)", ylabel="variance in (1/255)²")
    if audit.noise is None:
        return _note(axes, "too few blocks without clipping")
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
        return _note(axes, "needs two captures of a scene" if not audit.pairs else "scenes have too little contrast")
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
        return _note(axes, "needs two captures of a scene")
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
        return _note(axes, "needs two captures of a scene")
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


def _note(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, color=GREY, ha="center", va="center", transform=axes.transAxes)
