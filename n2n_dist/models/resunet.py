"""The ResUNet: a residual U-Net that predicts the noise and subtracts it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from n2n_dist.errors import UserError
from n2n_dist.models.blocks import AttentionGate, Downsample, ResBlock, SqueezeExcitation, Upsample
from n2n_dist.models.network import Network

LOCAL_MEAN = 17
"""Side of the square over which the local mean is taken, in pixels of the finest features."""


@dataclass
class ResUNetSettings:
    """Shape of the ResUNet."""

    name: str = "resunet"
    """Chooses this network."""
    channels: int = 3
    """Channels of the image, 1 to 4."""
    width: int = 64
    """Feature channels at the finest level; every coarser level has twice as many. A multiple of 8."""
    depths: list[int] = field(default_factory=lambda: [2, 2, 2, 2])
    """Residual blocks of each level, finest first; the decoder has as many, the coarsest level once."""
    unshuffle: int = 2
    """Pixel-unshuffle factor before the first convolution, 1, 2 or 4: 2 makes the network about four times faster."""

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= 4:
            raise UserError(f"model.channels {self.channels}: must be 1 to 4")
        if self.width < 8 or self.width % 8:
            raise UserError(f"model.width {self.width}: must be a multiple of 8")
        if not 1 <= len(self.depths) <= 6 or min(self.depths) < 1:
            raise UserError(f"model.depths {self.depths}: give 1 to 6 numbers, each 1 or more")
        if self.unshuffle not in (1, 2, 4):
            raise UserError(f"model.unshuffle {self.unshuffle}: must be 1, 2 or 4")

    @property
    def divisor(self) -> int:
        """Pixels of the image, in height and width, that the coarsest level's pixel covers."""
        return self.unshuffle * 2 ** (len(self.depths) - 1)


class ResUNet(Network):
    """Denoiser f(y) = y - network(y): [N, C, H, W] -> [N, C, H, W], any height and width.

    A U-Net (Ronneberger et al. 2015) of residual blocks with squeeze-and-excitation, attention gates on the
    skips and PixelShuffle upsampling. It predicts the noise, which is subtracted from the input in float32
    (global residual, Zhang et al. 2017, DnCNN). The noise is the sum of what the last layer makes of the features
    and of a linear filter of the centred pixels: features not many more than the channels * unshuffle^2 values of their
    pixels have no room for noise and image. Both start at zero: an untrained network returns its input.

    Every pixel is centred on the local mean, which enters the features beside it: inputs with a large common mean
    allow only small learning rates (LeCun et al. 1998, Efficient BackProp). In that mean, values beyond black and
    white count as these, so that a star of a few pixels, however bright, hardly moves the sky around it.
    """

    version = 7
    settings_class: ClassVar[type] = ResUNetSettings
    settings: ResUNetSettings

    def __init__(self, settings: ResUNetSettings, crop: int = 0) -> None:
        """Build the network.

        Args:
            settings: its shape.
            crop: size of the training crops in pixels; in larger images the gates look no farther; 0: no limit.

        Raises:
            UserError: the crop is not a multiple of the coarsest level's pixel.

        """
        super().__init__(settings, crop)
        widths = [settings.width * 2**level for level in range(len(settings.depths))]
        if crop % self.divisor:
            raise UserError(
                f"data.crop {crop}: must be a multiple of {self.divisor} for model.unshuffle {settings.unshuffle} and "
                f"{len(settings.depths)} levels of model.depths"
            )
        inner = settings.channels * settings.unshuffle**2
        self.stem_conv = nn.Conv2d(inner, widths[0], 3, padding=1)
        self.mean_branch = nn.Conv2d(settings.channels, widths[0], 1, bias=False)
        self.encoder = nn.ModuleList(_blocks(w, d) for w, d in zip(widths, settings.depths, strict=True))
        self.down = nn.ModuleList(Downsample(w) for w in widths[:-1])
        self.up = nn.ModuleList(Upsample(w) for w in widths[:-1])
        self.attention = nn.ModuleList(AttentionGate(w) for w in widths[:-1])
        self.merge = nn.ModuleList(nn.Conv2d(2 * w, w, 1) for w in widths[:-1])
        self.decoder = nn.ModuleList(_blocks(w, d) for w, d in zip(widths[:-1], settings.depths, strict=False))
        self.head = nn.Conv2d(widths[0], inner, 3, padding=1)
        self.local_filter = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        for parameter in (self.head.weight, self.head.bias, self.local_filter.weight):
            nn.init.zeros_(parameter)  # type: ignore[arg-type]
        for stages in (self.encoder, self.decoder):
            for level, stage in enumerate(stages):
                for module in stage.modules():
                    if isinstance(module, SqueezeExcitation):
                        module.window = crop // (settings.unshuffle * 2**level)

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        """Denoise a batch.

        Args:
            noisy: float32 [N, C, H, W], black 0 and white 1, not clipped.

        Returns:
            float32 [N, C, H, W], not clipped.

        Raises:
            UserError: another number of channels than the network's.

        """
        if noisy.shape[1] != self.settings.channels:
            raise UserError(
                f"an image with {noisy.shape[1]} channels for a network with model.channels "
                f"{self.settings.channels}: use weights trained on such images"
            )
        height, width = noisy.shape[-2:]
        padded, factor = _pad_to_multiple(noisy, self.divisor), self.settings.unshuffle
        mean = F.avg_pool2d(padded.clamp(0, 1), factor)
        for side in ((LOCAL_MEAN, 1), (1, LOCAL_MEAN)):  # much cheaper than both at once
            half = (side[0] // 2, side[1] // 2)
            mean = F.avg_pool2d(mean, side, stride=1, padding=half, count_include_pad=False)
        pixels = F.pixel_unshuffle(padded, factor) - mean.repeat_interleave(factor**2, 1)
        x = self.stem_conv(pixels) + self.mean_branch(mean)
        skips = []
        for blocks, down in zip(self.encoder, self.down, strict=False):
            x = blocks(x)
            skips.append(x)
            x = down(x)
        x = self.encoder[-1](x)
        for level in reversed(range(len(skips))):
            x = self.up[level](x)
            skip = self.attention[level](skips.pop(), x)
            x = self.decoder[level](self.merge[level](torch.cat([x, skip], 1)))
        noise = F.pixel_shuffle(self.head(x) + self.local_filter(pixels), factor)[..., :height, :width]
        return noisy.float() - noise.float()

    def compile_regions(self) -> Iterable[nn.Module]:
        """Yield the blocks: the levels share code, but each has its own fixed shape."""
        return (part for part in self.modules() if isinstance(part, ResBlock | AttentionGate | Downsample | Upsample))


def _blocks(channels: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(channels) for _ in range(depth)))


def _pad_to_multiple(x: torch.Tensor, divisor: int) -> torch.Tensor:
    """Mirror the right and lower edge until both sides are multiples of `divisor`, however small the image."""
    for dim in (-2, -1):
        length = x.shape[dim]
        if missing := -length % divisor:
            position = torch.arange(length + missing, device=x.device)
            period = max(1, 2 * length - 2)
            position = (length - 1 - (position % period - (length - 1)).abs()).clamp(min=0)
            x = x.index_select(dim, position)
    return x
