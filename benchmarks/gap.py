"""Cost of noisy targets: Noise2Noise against Noise2Clean, trained alike but for the target.

Both see the same samples, crops, noise on the input and budget; only the clean run sees the clean image as target.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.figures import ROOT, Figure
from n2n_dist import rng
from n2n_dist.config import Config, load
from n2n_dist.devices import set_threads, use_gpu
from n2n_dist.errors import UserError
from n2n_dist.inference.tile import denoise_tiled
from n2n_dist.metrics import score
from n2n_dist.models.weights import LAST, load_model, trained_steps
from n2n_dist.shards.index import Index
from n2n_dist.shards.reading import read_pixels

COMBINATIONS = {
    "gaussian 25, L2": ("noise.name=gaussian", "noise.sigma=25", "loss.pixel=l2", "loss.perceptual=0"),
    "gaussian 25, L1": ("noise.name=gaussian", "noise.sigma=25", "loss.pixel=l1", "loss.perceptual=0"),
    "poisson 30, L2": ("noise.name=poisson", "noise.lam=30", "loss.pixel=l2", "loss.perceptual=0"),
    "bernoulli 0.5, masked L2": ("noise.name=bernoulli", "noise.keep=0.5", "loss.pixel=masked_l2", "loss.perceptual=0"),
    "poisson 30, L1": ("noise.name=poisson", "noise.lam=30", "loss.pixel=l1", "loss.perceptual=0"),
    "gaussian 25, L1 + plain VGG": ("noise.name=gaussian", "noise.sigma=25", "loss.pixel=l1", "loss.perceptual=0.01"),
    "gaussian 25, L1 + matched VGG": (
        "noise.name=gaussian",
        "noise.sigma=25",
        "loss.pixel=l1",
        "loss.perceptual=0.01",
        "loss.form=matched",
    ),
}
"""Noise and loss: four that learn the clean image, and three that are known to be biased or made up for it."""
CHOICES = ("noise.", "loss.")
BINS = 10
FEW = 0.01
"""Bins of brightness with a smaller share of the pixels are left out."""
TABLE, PICTURE = "gap.md", "gap.png"
BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15)}
"""Place of a legend that hides nothing."""


@dataclass
class Measured:
    """The weights at the end of one run, on the validation shards."""

    psnr: float
    """Mean over the samples in dB; the output is clipped."""
    bias: list[float]
    """Mean of the output minus that of the clean image, in 1/255 of white, by tenths of the output's brightness."""
    share: list[float]
    """Of the pixels in each tenth."""


@dataclass
class Row:
    """One combination of noise and loss, over all seeds."""

    name: str
    noisy: list[Measured]
    clean: list[Measured]

    @property
    def gaps(self) -> list[float]:
        """PSNR with noisy targets minus PSNR with clean ones in dB, by seed."""
        return [noisy.psnr - clean.psnr for noisy, clean in zip(self.noisy, self.clean, strict=True)]


def mean_bias(runs: Sequence[Measured]) -> list[float]:
    """Return the mean bias over the seeds by brightness, not a number where there are few pixels."""
    tenths = zip(*(zip(run.bias, run.share, strict=True) for run in runs), strict=True)
    return [
        statistics.mean(bias for bias, _ in tenth) if min(share for _, share in tenth) >= FEW else math.nan
        for tenth in tenths
    ]


def combinations(chosen: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the chosen settings of noise and loss by their name, or all combinations if there are none."""
    if not chosen:
        return COMBINATIONS
    known = {frozenset(combination): name for name, combination in COMBINATIONS.items()}
    return {known.get(frozenset(chosen), ", ".join(chosen)): tuple(chosen)}


def gap(config: str | Path, settings: Sequence[str], seeds: int, output: Path) -> Iterator[Figure]:
    """Train every combination with noisy and with clean targets, and write `gap.md` and `gap.png`.

    Runs that are finished stay, and an unfinished one is continued, so the same command goes on after an interruption.

    Args:
        config: what the runs have in common.
        settings: over `config`; where they choose a noise or a loss, that is the only combination, under its name in
            COMBINATIONS if it is one of them.
        seeds: runs of each kind, with run.seed 0, 1, ...
        output: folder for the runs and the report.

    Raises:
        UserError: before any run, where a combination is not a valid configuration, there is nothing to validate on, or
            no seed; later, where a run failed or an earlier one is of another version's network.

    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be 1 or more")
    chosen = [setting for setting in settings if setting.startswith(CHOICES)]
    common = [setting for setting in settings if not setting.startswith(CHOICES)]
    wanted = {name: [*common, *combination] for name, combination in combinations(chosen).items()}
    for given in wanted.values():
        for supervised in (False, True):
            _check(load(config, [*given, f"pairs.supervised={supervised}"]), several=len(wanted) > 1)
    rows = []
    for name, given in wanted.items():
        row = Row(name, [], [])
        for seed in range(seeds):
            for supervised, measured in ((False, row.noisy), (True, row.clean)):
                folder = output / f"{_file_name(name)}-{'clean' if supervised else 'noisy'}-{seed}"
                own = [f"pairs.supervised={supervised}", f"run.seed={seed}", f"run.dir={folder}"]
                measured.append(_measured(config, [*given, *own], folder))
        rows.append(row)
        yield Figure(f"{name}, noisy targets", [run.psnr for run in row.noisy], "dB")
        yield Figure(f"{name}, clean targets", [run.psnr for run in row.clean], "dB")
        yield Figure(f"{name}, gap", row.gaps, "dB", "one value a seed")
    (output / TABLE).write_text(table(rows))
    draw(rows, output / PICTURE)
    print(f"written: {TABLE} and {PICTURE} in {output}")


def table(rows: Sequence[Row]) -> str:
    """Lay out the report as Markdown."""
    head = [
        "| noise, loss | noisy targets, dB | clean targets, dB | gap, dB | standard error | largest bias, levels "
        "| with clean targets |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(_line, rows)]) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Plot PSNR of both kinds of runs, and the bias of the mean by brightness, as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 2.5 + 0.45 * max(len(rows), 5)), constrained_layout=True)
    names = [textwrap.fill(row.name, 30) for row in rows]
    for number, row in enumerate(rows):
        for measured, colour, shift, label in (
            (row.noisy, "#b3402e", -0.12, "noisy targets"),
            (row.clean, "#2f5d8a", 0.12, "clean targets"),
        ):
            values = [m.psnr for m in measured]
            left.plot(values, [number + shift] * len(values), "o", color=colour, label=label if number == 0 else None)
        tenths = [(k + 0.5) / BINS for k in range(BINS)]
        (line,) = right.plot(tenths, mean_bias(row.noisy), "o-", label=names[number])
        right.plot(tenths, mean_bias(row.clean), "--", color=line.get_color(), linewidth=1)
    left.set(yticks=range(len(rows)), yticklabels=names, xlabel="PSNR in dB, one dot a seed")
    left.invert_yaxis()
    left.set_title("Noisy against clean targets", loc="left")
    left.legend(frameon=False, ncols=2, **BELOW)
    right.axhspan(-0.5, 0.5, color="0.92", zorder=0)
    right.set(xlabel="brightness of the output", ylabel="output - clean image, levels of 255")
    right.set_title("Mean bias (dashed: with clean targets; grey: half a level)", loc="left")
    right.legend(frameon=False, ncols=2, fontsize=8, **BELOW)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def brightness_bias(output: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Sum over the pixels whose output falls in each tenth of [0, 1]: count, output and clean, float64 [3, BINS].

    What lies below black or above white counts in the first or the last. The bins are of the output: sorted by the
    clean image, even the best estimator looks biased, because it draws what is rare towards what is frequent.
    """
    flat, wanted = output.double().flatten(), clean.double().flatten()
    bins = (flat * BINS).floor().clamp(0, BINS - 1).long()
    return torch.stack(
        [torch.bincount(bins, weights, minlength=BINS) for weights in (torch.ones_like(flat), flat, wanted)]
    )


def _check(config: Config, several: bool) -> None:
    if not config.validation_sets():
        raise UserError("data.validation null: the gap is measured there; name a folder of shards")
    if config.pairs.name != "synthetic":
        raise UserError(f"pairs.name {config.pairs.name}: the gap needs clean images, which only synthetic pairs have")
    if several and config.validate.level is not None:
        raise UserError(f"validate.level {config.validate.level}: not of all noises; leave it out, or choose one noise")


def _measured(config: str | Path, settings: Sequence[str], folder: Path) -> Measured:
    found, loaded = folder / "gap.json", load(config, settings)
    if found.exists() and (folder / "config.yaml").read_text() == loaded.to_yaml():
        load_model(folder / LAST)  # refuses that of another version
    else:
        found.unlink(missing_ok=True)  # else it would be taken for that of a run that is stopped now
        launch = [sys.executable, "-m", "accelerate.commands.launch"]
        command = [*launch, str(ROOT / "launch/train.py"), "--config", str(config), *settings]
        variables = {**os.environ, "OMP_NUM_THREADS": str(loaded.train.threads or torch.get_num_threads())}
        if subprocess.run(command, env=variables, check=False).returncode:
            raise UserError(f"{folder}: this run failed; its message is above")
        if trained_steps(folder / LAST) != loaded.train.steps:
            raise UserError(f"{folder}: this run was stopped; the same command continues it")
        found.write_text(json.dumps(vars(_measure(folder / LAST, loaded))))
    return Measured(**json.loads(found.read_text()))


@torch.inference_mode()
def _measure(weights: Path, config: Config) -> Measured:
    device = torch.device("cuda" if use_gpu() else "cpu")
    set_threads(config.train.threads)
    model = load_model(weights, device)
    scores, sums = [], torch.zeros(3, BINS, dtype=torch.float64)
    level = config.noise.sample_level(0.5) if config.validate.level is None else config.validate.level
    for folder in config.validation_sets().values():
        index = Index([folder], config.data.open_cache())
        for number in range(min(len(index), config.validate.images)):
            tar, sample = index.sample(number)
            window = (0, 0, *sample.shape[:2])
            pixels = read_pixels(tar, sample, sample.captures[0], window)  # as in training and validation
            clean = torch.from_numpy(pixels).permute(2, 0, 1)
            generator = rng.generator(0, number, "validation", clean.device)
            noisy = config.noise(clean, level, generator)
            denoised = denoise_tiled(model, noisy, device)
            scores.append(score(noisy[None], denoised[None], clean[None], ["psnr"])["psnr"].item())
            sums += brightness_bias(denoised, clean)
    count, output, clean_sum = sums
    bias = torch.where(count > 0, (output - clean_sum) / count.clamp(min=1) * 255, 0)
    return Measured(statistics.mean(scores), bias.tolist(), (count / count.sum()).tolist())


def _line(row: Row) -> str:
    noisy, clean = (statistics.mean(m.psnr for m in measured) for measured in (row.noisy, row.clean))
    seeds = len(row.gaps)
    error = f"{statistics.stdev(row.gaps) / math.sqrt(seeds):.3f}" if seeds > 1 else "one seed"
    with_noisy, with_clean = (
        max((bias for bias in mean_bias(measured) if not math.isnan(bias)), key=abs)
        for measured in (row.noisy, row.clean)
    )
    return (
        f"| {row.name} | {noisy:.3f} | {clean:.3f} | {noisy - clean:+.3f} | {error} "
        f"| {with_noisy:+.2f} | {with_clean:+.2f} |"
    )


def _file_name(name: str) -> str:
    return "".join(character if character.isalnum() or character == "." else "-" for character in name)
