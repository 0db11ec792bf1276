"""Validation during training, on shards, with the moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from n2n_dist import interrupt
from n2n_dist.data.dataset import ATTEMPTS, DataSettings, is_tolerated
from n2n_dist.data.remote import Unavailable
from n2n_dist.data.shard import Index, read_pixels
from n2n_dist.errors import Refusal
from n2n_dist.inference.tile import denoise_tiled
from n2n_dist.metrics import LPIPS, psnr, ssim
from n2n_dist.model.resunet import ResUNet
from n2n_dist.noise import keys
from n2n_dist.noise.models import Noise, NoNoise
from n2n_dist.training.backend import Backend

SMALLEST = 32
"""Least height and width of an image that LPIPS can measure, in pixels."""
Strips = dict[str, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]


@dataclass
class ValidateSettings:
    """When and on what the run is measured."""

    every: int = 1000
    """Steps between two validations; one is always made at the end."""
    level: float | None = None
    """Level of the noise that is put on clean images, in its own unit; default: the middle of the training range."""
    images: int = 64
    """Most samples of each validation set that are used."""
    strips: int = 4
    """Samples shown as noisy | denoised | reference, spread over those used."""

    def __post_init__(self) -> None:
        for name, smallest in (("every", 1), ("images", 1), ("strips", 0)):
            if getattr(self, name) < smallest:
                raise Refusal(f"validate.{name} {getattr(self, name)}: must be {smallest} or more")
        if self.level is not None and not 0 < self.level < float("inf"):
            raise Refusal(f"validate.level {self.level}: must be above 0")


@contextlib.contextmanager
def _any_algorithm() -> Iterator[None]:
    """Allow algorithms that are not deterministic: sums along an image have no other one on a GPU."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)


class Validation:
    """Named sets of shards; every sample has a noisy input and something to compare with.

    Synthetic pairs are compared with the clean image. Captures are compared with the clean reference where the
    shards have one, else with another capture: that PSNR is far lower, but ranks networks in the same way.
    A sample that cannot be read is replaced by another one, which only its number chooses.
    """

    def __init__(
        self,
        sets: dict[str, Path | str],
        noise: Noise,
        source: str,
        settings: ValidateSettings,
        channels: int,
        device: torch.device,
        data: DataSettings,
    ) -> None:
        self.sets = {name: Index([folder], data.open_cache()) for name, folder in sets.items()}
        for name, index in self.sets.items():
            index.require(f"data.validation {name}", channels, captures=2 if source == "captures" else 1)
            for path, shard in zip(index.paths, index.shards, strict=True):
                if min(shard.smallest) < SMALLEST:
                    raise Refusal(f"data.validation {name}: {path} has tiles below {SMALLEST} pixels; leave them out")
        self.max_bad = data.max_bad
        self.noise = noise
        # single images that are noisy already are compared as captures are
        self.source = "captures" if isinstance(noise, NoNoise) else source
        if self.source == "captures":
            self._require_reference()
        elif settings.level is not None:
            noise.check_level("validate.level", settings.level)
        self.settings = settings
        self.device = device
        self.lpips = LPIPS().to(device) if self.sets and channels in (1, 3) else None

    def _require_reference(self) -> None:
        for name, index in self.sets.items():
            for path, shard in zip(index.paths, index.shards, strict=True):
                if shard.captures < 2 and not shard.clean:
                    raise Refusal(
                        f"data.validation {name}: {path} has single images, nothing to compare them with; give shards "
                        "with KEY.clean or several captures, or set data.validation=null"
                    )

    @torch.inference_mode()
    @_any_algorithm()
    def run(self, model: ResUNet, backend: Backend) -> tuple[dict[str, float], Strips] | None:
        """Measure `model`; every rank takes a part of the samples.

        Returns:
            `SET/noisy_psnr`, `SET/psnr` in dB, `SET/ssim`, `SET/lpips`, means over the samples and equal on all ranks;
            and for rank 0 some samples spread over each set. None if a signal to any rank has stopped it: on a slow
            machine it may take longer than the time that is left.

        Raises:
            Refusal: on all ranks, where more than `max_bad` of the samples cannot be read, or a source is gone.

        """
        values: dict[str, float] = {}
        strips: Strips = {}
        for name, index in self.sets.items():
            count = min(len(index), self.settings.images)
            spread = {count * k // self.settings.strips for k in range(self.settings.strips)}
            sums, strips[name], refusal = torch.zeros(5, dtype=torch.float64), [], None
            for number in range(count):
                shown = backend.main and number in spread
                counted = number % backend.world_size == backend.rank
                try:
                    if shown or counted:
                        noisy, reference, damage = self._readable_pair(index, number)
                        denoised = denoise_tiled(model, noisy, self.device)
                    if shown:
                        strips[name].append((noisy, denoised, reference))
                    if counted:
                        sums[:4] += self._measure(noisy[None], denoised[None], reference[None])
                        if damage:
                            print(f"replaced an unreadable sample of data.validation {name}: {damage}", flush=True)
                            sums[4] += 1
                except Refusal as error:  # of a sample that only this rank reads
                    refusal = refusal or error
                every_rank_had_one = (number + 1) % backend.world_size == 0 or number + 1 == count
                if every_rank_had_one and any(backend.agree(refusal, interrupt.received())):
                    return None
            *totals, bad = backend.sum(sums).tolist()
            means = [total / count for total in totals]
            if not is_tolerated(bad, count, self.max_bad):
                raise Refusal(
                    f"data.max_bad {self.max_bad:g}: {bad:.0f} of {count} samples of data.validation {name} cannot be "
                    "read, named above; check the shards with: python shards/build.py verify FOLDER"
                )
            values |= {
                f"{name}/{metric}": mean for metric, mean in zip(("noisy_psnr", "psnr", "ssim"), means, strict=False)
            }
            if self.lpips is not None:
                values[f"{name}/lpips"] = means[3]
        return values, strips

    def _readable_pair(self, index: Index, number: int) -> tuple[torch.Tensor, torch.Tensor, Refusal | None]:
        """Return input and reference of a sample, or of another one and why."""
        sample, damage = number, None
        for attempt in range(ATTEMPTS):
            try:
                return *self._pair(index, sample), damage
            except Unavailable:
                raise
            except Refusal as refusal:
                damage = damage or refusal
                sample = keys.integer(0, number, f"replacement-{attempt}", len(index))
        raise Refusal(f"data.validation: no sample can be read; the first: {damage}")

    def _pair(self, index: Index, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        tar, sample = index.sample(number)
        height, width, _ = sample.shape

        def read(member: Any) -> torch.Tensor:
            pixels = read_pixels(tar, sample, member, (0, 0, height, width))
            return torch.from_numpy(pixels).permute(2, 0, 1).to(self.device)

        first = read(sample.captures[0])
        if self.source == "captures":
            return first, read(sample.clean or sample.captures[1])
        level = self.noise.level(0.5) if self.settings.level is None else self.settings.level
        return self.noise(first, level, keys.generator(0, number, "validation", self.device)), first

    def _measure(self, noisy: torch.Tensor, denoised: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        clipped = denoised.clamp(0, 1)
        # the noisy input is not clipped: its PSNR is that of the data
        found = [psnr(noisy, reference), psnr(clipped, reference), ssim(clipped, reference)]
        found.append(self.lpips(clipped, reference) if self.lpips is not None else torch.zeros(1))
        return torch.cat([value.double().cpu() for value in found])


def mean_psnr(values: dict[str, float]) -> float:
    """Return the mean PSNR over the validation sets, which chooses the best weights."""
    scores = [value for name, value in values.items() if name.endswith("/psnr")]
    return sum(scores) / len(scores)
