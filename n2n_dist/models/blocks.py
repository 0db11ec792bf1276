"""The parts of the ResUNet, each idea one small class. Feature maps are [N, C, H, W]."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

SLOPE = 0.1
"""Of the activation, below zero."""


def activate(x: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU (Maas et al. 2013), as in Lehtinen et al. 2018, Noise2Noise.

    A ReLU that a large step has switched off everywhere never learns again: it is lost for the rest of the training.
    """
    return F.leaky_relu(x, SLOPE)


class SqueezeExcitation(nn.Module):
    """Scale every channel by a gate computed from the channels' means (Hu et al. 2018).

    In training the mean is over the crop but for its border: the convolutions' zero padding shows there, in much
    of a crop and in little of a large image. A larger map is averaged over a sliding window of the size seen in
    training, so that the gates keep their meaning and tiles agree with the whole image (test-time local
    conversion, Chu et al. 2022).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(4, channels // 8)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)
        self.window = 0
        """Height and width of a crop in pixels of this map; 0: as large as the map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        mean = _inner_mean(_inner_mean(x, self.window, -1), self.window, -2)
        return x * torch.sigmoid(self.excite(activate(self.squeeze(mean))))


class ResBlock(nn.Module):
    """Two 3x3 convolutions with squeeze-and-excitation around a shortcut (He et al. 2016).

    There is no normalisation: it would tie a pixel to its batch and shift the mean of an image. Instead the
    second convolution starts small, so that a deep network starts near the identity (Zhang et al. 2019, Fixup).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate = SqueezeExcitation(channels)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, a=SLOPE)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.conv2.weight.mul_(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        return x + self.gate(self.conv2(activate(self.conv1(activate(x)))))


class AttentionGate(nn.Module):
    """Weigh each pixel of a skip connection by the features of the coarser path (Oktay et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(channels, channels // 2, 1)
        self.signal = nn.Conv2d(channels, channels // 2, 1)
        self.weight = nn.Conv2d(channels // 2, 1, 1)
        nn.init.constant_(self.weight.bias, 2.0)  # type: ignore[arg-type]  # starts open: sigmoid(2) = 0.88

    def forward(self, skip: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
        """Two maps [N, C, H, W] -> the weighted skip [N, C, H, W]."""
        return skip * torch.sigmoid(self.weight(activate(self.skip(skip) + self.signal(signal))))


class Downsample(nn.Conv2d):
    """[N, C, H, W] -> [N, 2C, H/2, W/2] by a 2x2 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2 * channels, 2, stride=2)


class Upsample(nn.Module):
    """[N, 2C, H, W] -> [N, C, 2H, 2W] by a convolution and a PixelShuffle (Shi et al. 2016).

    The four sub-pixels start equal, which leaves no checkerboard (ICNR, Aitken et al. 2017).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, 4 * channels, 1)
        self.shuffle = nn.PixelShuffle(2)
        with torch.no_grad():
            self.conv.weight.copy_(self.conv.weight[::4].repeat_interleave(4, 0))
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 2C, H, W] -> [N, C, 2H, 2W]."""
        return self.shuffle(self.conv(x))


def _inner_mean(x: torch.Tensor, window: int, dim: int) -> torch.Tensor:
    """Average along `dim` over the window around each pixel, or the nearest full one, each without its border."""
    length = x.shape[dim]
    window = min(window or length, length)
    border = max(window // 8, min(2, window // 4))  # a ResBlock alone carries padding 2 pixels inward
    x = x.narrow(dim, border, length - 2 * border)
    if length == window:
        return x.mean(dim, keepdim=True)
    inner = window - 2 * border
    count = length - window + 1
    sums = F.pad(x.float().cumsum(dim), (1, 0) if dim == -1 else (0, 0, 1, 0))
    means = (sums.narrow(dim, inner, count) - sums.narrow(dim, 0, count)) / inner
    before = (length - count) // 2
    after = length - count - before
    pad = (before, after, 0, 0) if dim == -1 else (0, 0, before, after)
    return F.pad(means, pad, mode="replicate").to(x.dtype)
