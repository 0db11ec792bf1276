"""Validation during training, on shards, with the moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from n2n_dist import rng, signals
from n2n_dist.commands import command
from n2n_dist.data.dataset import ATTEMPTS, DataSettings, is_tolerated
from n2n_dist.distributed.backend import Backend
from n2n_dist.errors import UserError
from n2n_dist.inference.tile import denoise_tiled
from n2n_dist.metrics import Totals, check_metrics, score, score_captures
from n2n_dist.models.network import Network
from n2n_dist.noise import Noise
from n2n_dist.pairs.base import Pairs
from n2n_dist.shards.cache import SourceUnavailableError
from n2n_dist.shards.index import Index
from n2n_dist.shards.reading import read_pixels

SMALLEST = 32
"""Least height and width of an image that LPIPS can measure, in pixels."""
Panels = dict[str, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]


@dataclass
class ValidateSettings:
    """When and on what the run is measured."""

    every: int = 1000
    """Steps between two validations; one is always made at the end."""
    level: float | None = None
    """Level of the noise that is put on clean images, in its own unit; default: the middle of the training range."""
    images: int = 64
    """Most samples of each validation set that are used."""
    panels: int = 4
    """Samples shown as noisy | denoised | reference or other capture, spread over those used."""

    def __post_init__(self) -> None:
        for name, smallest in (("every", 1), ("images", 1), ("panels", 0)):
            if getattr(self, name) < smallest:
                raise UserError(f"validate.{name} {getattr(self, name)}: must be {smallest} or more")
        if self.level is not None and not 0 < self.level < float("inf"):
            raise UserError(f"validate.level {self.level}: must be above 0")


@contextlib.contextmanager
def _any_algorithm() -> Iterator[None]:
    """Allow algorithms that are not deterministic: sums along an image have no other one on a GPU."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)


@dataclass
class _Pair:
    """One sample of a validation set, [C, H, W] each."""

    noisy: torch.Tensor
    other: torch.Tensor
    """The clean image or reference, or a second capture."""
    clean: bool
    """Whether `other` is clean."""


class Validation:
    """Named sets of shards; every sample has a noisy input and something to compare with.

    Synthetic pairs are compared with the clean image, captures with the clean reference where the shards have one.
    Captures without one give the unbiased estimate of `metrics.unbiased_mse` from the first two of each scene.
    A sample that cannot be read is replaced by another one, which only its number chooses.
    """

    def __init__(
        self,
        sets: dict[str, Path | str],
        noise: Noise,
        pairs: Pairs,
        settings: ValidateSettings,
        channels: int,
        device: torch.device,
        data: DataSettings,
    ) -> None:
        self.sets = {name: Index([folder], data.open_cache()) for name, folder in sets.items()}
        for name, index in self.sets.items():
            index.require(f"data.validation {name}", channels)
            for path, shard in zip(index.paths, index.shards, strict=True):
                if min(shard.smallest) < SMALLEST:
                    raise UserError(f"data.validation {name}: {path} has tiles below {SMALLEST} pixels; leave them out")
        self.max_bad = data.max_bad
        self.noise = noise
        # single images that are noisy already are compared as captures are
        self.noisy = not (pairs.adds_noise and noise.adds_noise)
        if self.noisy:
            self._require_reference(pairs)
        elif settings.level is not None:
            noise.check_level("validate.level", settings.level, "")
        self.settings = settings
        self.device = device
        if self.sets:
            with torch.inference_mode(), _any_algorithm():
                check_metrics(channels, device)

    def _require_reference(self, pairs: Pairs) -> None:
        clean = "" if not pairs.adds_noise else "put noise on them if they are clean (noise.sigma=25), "
        for name, index in self.sets.items():
            for path, shard in zip(index.paths, index.shards, strict=True):
                if shard.captures < 2 and not shard.clean:
                    raise UserError(
                        f"data.validation {name}: {path} has single images, nothing to compare them with; give shards "
                        f"with KEY.clean or several captures, {clean}or set data.validation=null"
                    )

    @torch.inference_mode()
    @_any_algorithm()
    def run(self, model: Network, backend: Backend) -> tuple[dict[str, float], Panels] | None:
        """Measure `model`; every rank takes a part of the samples.

        Returns:
            Values that are equal on all ranks, and for rank 0 some samples spread over each set. Where there is
            something clean to compare with, means over the samples: `SET/noisy_psnr` and `SET/psnr` in dB, `SET/ssim`
            and `SET/lpips`. Elsewhere, in dB of the squared error over all samples: `SET/noisy_upsnr`, `SET/upsnr`
            with its 95 % interval `SET/upsnr_low` to `SET/upsnr_high` (where chance took the estimated error to zero or
            below, `upsnr` is the lower end, a bound), and `SET/psnr_to_capture` against the second capture, noise and
            all, which only ranks. None if a signal to any rank has stopped it: on a slow machine it may take longer
            than the time that is left.

        Raises:
            UserError: on all ranks, where more than `max_bad` of the samples cannot be read, or a source is lost.

        """
        values: dict[str, float] = {}
        panels: Panels = {}
        for name, index in self.sets.items():
            count = min(len(index), self.settings.images)
            spread = {count * k // self.settings.panels for k in range(self.settings.panels)}
            totals, bad, panels[name], refusal = Totals(), 0, [], None
            for number in range(count):
                shown = backend.is_main and number in spread
                counted = number % backend.world_size == backend.rank
                try:
                    if shown or counted:
                        pair, damage = self._readable_pair(index, number)
                        denoised = denoise_tiled(model, pair.noisy, self.device)
                    if shown:
                        panels[name].append((pair.noisy, denoised, pair.other))
                    if counted and pair.clean:
                        totals.add(score(pair.noisy[None], denoised[None], pair.other[None]))
                    elif counted:
                        other = denoise_tiled(model, pair.other, self.device)
                        totals.add(score_captures(pair.noisy[None], pair.other[None], denoised[None], other[None]))
                    if counted and damage:
                        print(f"replaced an unreadable sample of data.validation {name}: {damage}", flush=True)
                        bad += 1
                except UserError as error:  # of a sample that only this rank reads
                    refusal = refusal or error
                every_rank_had_one = (number + 1) % backend.world_size == 0 or number + 1 == count
                if every_rank_had_one and any(backend.all_gather_or_raise(refusal, signals.received())):
                    return None
            totals.add_up(backend.sum)
            bad = int(backend.sum(torch.tensor([bad]).double()).item())
            if not is_tolerated(bad, count, self.max_bad):
                raise UserError(
                    f"data.max_bad {self.max_bad:g}: {bad} of {count} samples of data.validation {name} cannot be "
                    f"read, named above; check the shards with: {command('verify', 'FOLDER')}"
                )
            values |= {f"{name}/{metric}": value for metric, value in totals.summary().items()}
        return values, panels

    def _readable_pair(self, index: Index, number: int) -> tuple[_Pair, UserError | None]:
        """Return a sample, or another one and why."""
        sample, damage = number, None
        for attempt in range(ATTEMPTS):
            try:
                return self._pair(index, sample), damage
            except SourceUnavailableError:
                raise
            except UserError as refusal:
                damage = damage or refusal
                sample = rng.integer(0, number, f"replacement-{attempt}", len(index))
        raise UserError(f"data.validation: no sample can be read; the first: {damage}")

    def _pair(self, index: Index, number: int) -> _Pair:
        tar, sample = index.sample(number)
        height, width, _ = sample.shape

        def read(member: Any) -> torch.Tensor:
            pixels = read_pixels(tar, sample, member, (0, 0, height, width))
            return torch.from_numpy(pixels).permute(2, 0, 1).to(self.device)

        first = read(sample.captures[0])
        if self.noisy:
            return _Pair(first, read(sample.clean or sample.captures[1]), clean=sample.clean is not None)
        level = self.noise.sample_level(0.5) if self.settings.level is None else self.settings.level
        noisy = self.noise(first, level, rng.generator(0, number, "validation", self.device))
        return _Pair(noisy, first, clean=True)


def selection_score(values: dict[str, float]) -> float:
    """Return what chooses the best weights, in dB: the mean over the validation sets of PSNR or the lower end of uPSNR.

    uPSNR itself grows without end where chance takes the estimated error just above zero. A set of both kinds of
    samples gives both.
    """
    scores = [value for name, value in values.items() if name.endswith(("/psnr", "/upsnr_low"))]
    return sum(scores) / len(scores)
