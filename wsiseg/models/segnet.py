"""SegNet (Badrinarayanan, Kendall, Cipolla, PAMI 2017): a VGG-16 encoder and its mirror image.

A decoder does not learn how to enlarge: it puts each value back to where the encoder's pooling
found its maximum, with zeros around it. In the comments: C classes, sizes relative to the input.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from wsiseg.models.layers import ConvNormReLU, conv

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the 13 convolutions of VGG-16 (Simonyan & Zisserman, ICLR 2015), before each pooling."""

SMALLEST = 2 ** len(STAGES)


def block(channels: int, out_channels: int) -> ConvNormReLU:
    """3-wide convolution with bias, batch norm, ReLU."""
    return ConvNormReLU(channels, out_channels, kernel=3, bias=True, eps=1e-5)


class SegNet(nn.Module):
    """Scores at the input's size, for images of any size from 32 pixels a side."""

    def __init__(self, *, classes: int, channels: int = 3) -> None:
        super().__init__()
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []  # the coarsest stage first, as they are used
        before = channels
        for widths in STAGES:
            inputs = (before, *widths[:-1])
            encoder.append(nn.Sequential(*map(block, inputs, widths)))
            # The mirror image: widths backwards, and in the end what this stage was given.
            mirrored: list[nn.Module] = [block(n, n) for n in widths[:0:-1]]
            scores = conv(widths[0], classes, kernel=3, bias=True, ndim=2)
            mirrored.append(block(widths[0], before) if decoder else scores)
            decoder.insert(0, nn.Sequential(*mirrored))
            before = widths[-1]
        self.encoder = nn.ModuleList(encoder)
        self.decoder = nn.ModuleList(decoder)

    def forward(self, image: Tensor) -> Tensor:
        if min(image.shape[2:]) < SMALLEST:
            raise ValueError(
                f"an image of {tuple(image.shape[2:])} is too small; sides must be at least {SMALLEST}"
            )
        x = image
        pooled = []  # where the maxima were and of what size the features, finest first
        for stage in self.encoder:
            x = stage(x)  # (B, 64 | 128 | 256 | 512 | 512, 1/1 | 1/2 | 1/4 | 1/8 | 1/16)
            size = x.shape[2:]
            x, places = F.max_pool2d(x, 2, return_indices=True)  # half of it, the last odd row left out
            pooled.append((places, size))
        for stage in self.decoder:
            places, size = pooled.pop()
            # The size is given because two sizes, one even and one odd, shrink to the same.
            x = stage(F.max_unpool2d(x, places, (2, 2), output_size=size))  # the encoder's sizes, backwards
        return x  # (B, C, 1/1)


def build_segnet(*, classes: int = 8, channels: int = 3) -> nn.Module:
    """SegNet with torch's default weights; 29,447,624 parameters for 8 classes and 3 channels.

    Raises ValueError, when used, for images with a side below 32 pixels.
    """
    return SegNet(classes=classes, channels=channels)
