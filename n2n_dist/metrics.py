"""Image quality by name: PSNR, SSIM and LPIPS against a reference, and PSNR from two noisy captures without one.

Images are float32 [N, C, H, W], black 0 and white 1.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import warnings
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from n2n_dist.errors import UserError
from n2n_dist.vision import import_torchvision

ALEXNET = Path(__file__).parent / "weights" / "alexnet_features_fp16.safetensors"
EXACT = 100.0
"""PSNR of an image without any error, in dB: a black tile has no shot noise, and its mean must stay finite."""
BLOCK = 8
"""Side of the blocks that the standard error of uMSE counts as independent, in pixels: wider than noise correlates."""


def psnr(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, at most `EXACT`, [N]; the mean squared error is over all channels jointly."""
    return (-10 * torch.log10((image.double() - reference.double()).square().mean((1, 2, 3)))).clamp(max=EXACT)


def clip(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Clip images to black and white, or as far as their references go beyond: high dynamic range, a dark sky's noise.

    Both are [N, C, H, W] or [C, H, W].
    """
    darkest, brightest = (extreme((-3, -2, -1), keepdim=True) for extreme in (reference.amin, reference.amax))
    return image.maximum(darkest.clamp(max=0)).minimum(brightest.clamp(min=1))


def decibels(mse: float) -> float:
    """Return the PSNR of a mean squared error; infinite where that is not above zero."""
    return math.inf if mse <= 0 else -10 * math.log10(mse)


@dataclass
class UnbiasedMSE:
    """An estimate of the mean squared error against the clean image, which nobody has."""

    mse: float
    """uMSE; chance may push it below zero where the error is small."""
    standard_error: float
    """Of `mse`, from the noise alone."""

    @property
    def psnr(self) -> float:
        """Estimated PSNR (uPSNR) in dB; where `mse` is not above zero, the lower end of its interval, a bound."""
        return self.interval[0] if self.mse <= 0 else decibels(self.mse)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the PSNR in dB; its upper end is infinite where an error of zero cannot be excluded.

        No error is below zero: for the lower end such an estimate counts as zero.
        """
        margin = 1.96 * self.standard_error
        return decibels(max(self.mse, 0) + margin), decibels(self.mse - margin)


def unbiased_mse(
    first: torch.Tensor, second: torch.Tensor, first_denoised: torch.Tensor, second_denoised: torch.Tensor
) -> torch.Tensor:
    """Estimate the squared error of two denoised captures of a scene without its clean image: uMSE.

    With captures y1, y2 of independent noise, denoised to f1 and f2, each pixel contributes

        (y1 - f1) (y2 - f2) + (f1 - f2)^2 / 2 = ((f1 - y2)^2 + (f2 - y1)^2 - (y1 - y2)^2) / 2,

    whose expectation is the mean of the squared errors of f1 and f2. Marcos-Morales et al. 2022 (Evaluating
    unsupervised denoising requires unsupervised metrics) compare f1 with one further capture and estimate its noise
    from two more. Two captures are enough where both have the same noise level; taken both ways, as here, their
    levels may differ. Noise that the captures share counts as image.

    The standard error takes the scene as fixed. It comes from the differences of neighbouring blocks of 8 x 8 pixels,
    so that noise may be correlated over a few pixels. Of the two parts the first has the noise that the network
    removed; half the variance of the second stands for the product of the noise that it left.

    Args:
        first: [N, C, H, W] noisy, not clipped; 16 pixels or more a side.
        second: likewise.
        first_denoised: `first`, denoised and not clipped.
        second_denoised: likewise.

    Returns:
        [N, 2], float64: uMSE and its variance.

    """
    removed = ((first.double() - first_denoised.double()) * (second.double() - second_denoised.double())).mean(1)
    left = (first_denoised.double() - second_denoised.double()).square().mean(1) / 2
    variance = _variance_of_mean(removed) + _variance_of_mean(left) / 2
    return torch.stack([(removed + left).mean((1, 2)), variance], dim=1)


def _variance_of_mean(values: torch.Tensor) -> torch.Tensor:
    """Variance of the mean of each [H, W] of [N, H, W]; what changes slowly over the image does not count."""
    blocks = F.avg_pool2d(values[:, None], BLOCK)[:, 0]
    across, down = (blocks.diff(dim=dim).square().flatten(1) for dim in (1, 2))
    return torch.cat([across, down], dim=1).mean(1) / 2 / blocks[0].numel()


def ssim(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Structural similarity, [N]: Gaussian windows of 11x11, sigma 1.5, inside the image (Wang et al. 2004)."""
    torchmetrics = import_torchvision("torchmetrics.functional.image")
    _, values = torchmetrics.structural_similarity_index_measure(
        image, reference, data_range=1.0, reduction="none", return_full_image=True
    )
    # torchmetrics mirrors the image, and whether it counts windows over the edge depends on its version
    return values[..., 5:-5, 5:-5].mean((1, 2, 3))


def to_8_bit(image: torch.Tensor) -> torch.Tensor:
    """Clip to [0, 1] and round to multiples of 1/255, as a saved image would be."""
    return (image.clamp(0, 1) * 255).round() / 255


class LPIPS(nn.Module):
    """Learned perceptual distance v0.1 on AlexNet features, [N]; lower is nearer (Zhang et al. 2018)."""

    def __init__(self) -> None:
        """Build the network of the `lpips` package with the bundled ImageNet backbone: nothing is downloaded.

        Raises:
            UserError: the bundled weights are missing or damaged, or torchvision does not fit torch.

        """
        super().__init__()
        try:
            weights = safetensors.torch.load_file(ALEXNET)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(
                f"{ALEXNET}: the weights of AlexNet cannot be read ({error}); install the package again"
            ) from None
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # torchvision's own notes on arguments that lpips uses
            self.network = import_torchvision("lpips").LPIPS(net="alex", pnet_rand=True, verbose=False)
        self._load_backbone(weights)
        self.requires_grad_(False).eval()

    def _load_backbone(self, weights: dict[str, torch.Tensor]) -> None:
        # lpips keeps torchvision's layer numbers as names inside its slices
        for name, parameter in self.network.net.named_parameters():
            parameter.data.copy_(weights[f"features.{name.split('.', 1)[1]}"])

    def forward(self, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Compare images of 1 or 3 channels; values outside [0, 1] are clipped."""
        image, reference = (x.clamp(0, 1).expand(-1, 3, -1, -1) * 2 - 1 for x in (image, reference))
        return self.network(image, reference).reshape(-1)


@functools.cache
def _lpips(device: torch.device) -> LPIPS:
    with torch.inference_mode(False):  # its weights may be used outside of it later
        return LPIPS().to(device)


@dataclass(frozen=True)
class Metric:
    """A measure of quality: numbers of every image, and what their sum over the samples says."""

    function: Callable[..., torch.Tensor]
    """(noisy, denoised, reference), or (first, second, first_denoised, second_denoised) of two captures -> [N] or
    [N, values]."""
    unit: str = ""
    higher_is_better: bool = True
    needs_reference: bool = True
    """Whether it compares with a clean image; else with a second capture."""
    channels: tuple[int, ...] = (1, 2, 3, 4)
    """Channels of images that it can measure."""
    values: int = 1
    summary: Callable[[list[float], float], dict[str, float]] = lambda sums, count: {"": sums[0] / count}
    """From sums over the samples and their count to numbers, by what follows the metric's name; default the mean."""


def _upsnr(sums: list[float], count: float) -> dict[str, float]:
    """Return uPSNR with its 95 % interval, which may be open above."""
    estimate = UnbiasedMSE(sums[0] / count, math.sqrt(sums[1]) / count)
    low, high = estimate.interval
    return {"": min(estimate.psnr, EXACT), "_low": min(low, EXACT), "_high": high}


def _decibels_of_mean(sums: list[float], count: float) -> dict[str, float]:
    return {"": decibels(sums[0] / count)}


METRICS: dict[str, Metric] = {
    "noisy_psnr": Metric(lambda noisy, denoised, reference: psnr(noisy, reference), "dB"),
    "psnr": Metric(lambda noisy, denoised, reference: psnr(denoised, reference), "dB"),
    "ssim": Metric(lambda noisy, denoised, reference: ssim(denoised, reference)),
    "lpips": Metric(
        lambda noisy, denoised, reference: _lpips(denoised.device)(denoised, reference),
        higher_is_better=False,
        channels=(1, 3),
    ),
    "noisy_upsnr": Metric(
        lambda first, second, *denoised: unbiased_mse(first, second, first, second)[:, 0],
        "dB",
        needs_reference=False,
        summary=_decibels_of_mean,
    ),
    "upsnr": Metric(unbiased_mse, "dB", needs_reference=False, values=2, summary=_upsnr),
    "psnr_to_capture": Metric(
        lambda first, second, denoised, _: (denoised.double() - second.double()).square().mean((1, 2, 3)),
        "dB",
        needs_reference=False,
        summary=_decibels_of_mean,
    ),
}
"""Every metric by its name in curves, tables and files; what begins with `noisy` measures the input."""


def score(
    noisy: torch.Tensor, denoised: torch.Tensor, reference: torch.Tensor, names: Container[str] = METRICS
) -> dict[str, torch.Tensor]:
    """Measure images against clean references; the denoised ones are clipped first, the noisy ones are not.

    Args:
        noisy: [N, C, H, W], at least 32 pixels a side.
        denoised: of the same shape, not clipped.
        reference: likewise.
        names: of the metrics, all by default.

    Returns:
        Every metric that needs a reference and can measure so many channels, [N] or [N, values].

    """
    images = noisy, clip(denoised, reference), reference
    return {name: METRICS[name].function(*images) for name in _fitting(True, noisy.shape[1]) if name in names}


def score_captures(
    first: torch.Tensor, second: torch.Tensor, first_denoised: torch.Tensor, second_denoised: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Measure pairs of noisy captures of scenes without a reference; nothing is clipped.

    Returns:
        Every metric that needs no reference, [N] or [N, values].

    """
    images = first, second, first_denoised, second_denoised
    return {name: METRICS[name].function(*images) for name in _fitting(False, first.shape[1])}


def check_metrics(channels: int, device: torch.device) -> None:
    """Measure black images once, so that a metric that cannot work fails before anything expensive.

    Raises:
        UserError: as of `LPIPS`.

    """
    black = torch.zeros(1, channels, 32, 32, device=device)
    score(black, black, black)
    score_captures(black, black, black, black)


class Totals:
    """Sums of scores over samples, by metric, which several ranks can add up."""

    def __init__(self) -> None:
        """Start at zero samples."""
        self.sums = {name: torch.zeros(1 + metric.values, dtype=torch.float64) for name, metric in METRICS.items()}
        """Count of samples, then the sums of their values."""

    def add(self, scores: dict[str, torch.Tensor]) -> None:
        """Add what `score` or `score_captures` returned."""
        for name, values in scores.items():
            values = values.double().cpu().reshape(len(values), -1)
            self.sums[name] += torch.cat([torch.tensor([len(values)]).double(), values.sum(0)])

    def add_up(self, all_reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace every sum by that over all ranks. Collective."""
        summed = all_reduce(torch.cat(list(self.sums.values())))
        self.sums = dict(zip(self.sums, summed.split([len(sums) for sums in self.sums.values()]), strict=True))

    def summary(self) -> dict[str, float]:
        """Return the value of every metric that has measured a sample, in the order of `METRICS`."""
        values: dict[str, float] = {}
        for name, sums in self.sums.items():
            count, *of_values = sums.tolist()
            if count:
                values |= {f"{name}{end}": value for end, value in METRICS[name].summary(of_values, count).items()}
        return values


def _fitting(reference: bool, channels: int) -> list[str]:
    return [name for name, m in METRICS.items() if m.needs_reference == reference and channels in m.channels]
