"""ESPNetv2 for segmentation (Mehta et al., CVPR 2019, as in Mehta's EdgeNets), in 1 to 3 dimensions.

Every score depends on the whole image: the decoder gates each scale by its mean over the image and
pools to grids of the image's size. Sizes in the comments are relative to the input; the last comment
on a line is the shape that it makes, with C classes, at scale 1 and decoder width 64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsiseg.models.layers import ADAPTIVE_POOL, BATCH_NORM, LINEAR, ConvNormAct, NormAct, conv, down2

# Unlike ESPNet, all norms have torch's usual eps.
norm_act = partial(NormAct, eps=1e-5)
conv_norm_act = partial(ConvNormAct, eps=1e-5)

ENCODER_CHANNELS = {
    0.5: (16, 32, 64, 128),
    1.0: (32, 64, 128, 256),
    1.25: (32, 80, 160, 320),
    1.5: (32, 96, 192, 384),
    2.0: (32, 128, 256, 512),
}
"""Channels at 1/2, 1/4, 1/8 and 1/16 of the size, for each published scale."""

DECODER_WIDTHS = (64, 128)
"""Channels of the decoder at its coarsest: as published for Cityscapes and Pascal VOC, and for COCO."""

DILATIONS = (1, 2, 3, 4)
LAST_DILATIONS = (1, 1, 2, 3)  # no kernel there is wider than 7 pixels: the widest becomes a plain one
POINTWISE_GROUPS = 4

POOLING_SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)
"""Sizes at which the decoder looks at its features, relative to theirs."""

SMALLEST_GRID = 5


def shrink2(*, ndim: int) -> nn.Module:
    """`down2` for volumes of few slices too, which torch does not pool unless they are padded before."""
    if ndim == 3:
        return nn.Sequential(nn.ConstantPad3d(1, 0.0), nn.AvgPool3d(3, stride=2))
    return down2(ndim=ndim)


class EESP(nn.Module):
    """Extremely efficient spatial pyramid: grouped reduction, dilated depth-wise convolutions, fusion.

    Source: Mehta et al., ESPNetv2, CVPR 2019, section 3.2. With `stride=1` the input is added, so the
    channels stay; with `stride=2` it is the convolving half of the down-sampler.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        dilations: Sequence[int] = DILATIONS,
        ndim: int = 2,
    ) -> None:
        super().__init__()
        branch = out_channels // len(dilations)
        self.residual = stride == 1
        self.reduce = conv_norm_act(channels, branch, kernel=1, groups=POINTWISE_GROUPS, ndim=ndim)
        self.branches = nn.ModuleList(
            conv(branch, branch, kernel=3, stride=stride, dilation=d, groups=branch, ndim=ndim)
            for d in dilations
        )
        self.fuse = norm_act(out_channels, ndim=ndim)
        self.expand = conv(out_channels, out_channels, kernel=1, groups=POINTWISE_GROUPS, ndim=ndim)
        self.norm = BATCH_NORM[ndim](out_channels)
        # The published down-samplers hold and count it too, and never use it.
        self.act = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        # Unlike in ESPNet, the first branch takes part in the running sum.
        fused = torch.cat(list(accumulate(branch(reduced) for branch in self.branches)), dim=1)
        out: Tensor = self.norm(self.expand(self.fuse(fused)))
        if self.residual:
            out = self.act(x + out)
        return out


class StridedEESP(nn.Module):
    """Down-sampler: pooled features beside convolved ones, and to both the small image is added.

    Source: the same section, strided EESP with shortcut connection to an input image.
    """

    def __init__(self, channels: int, out_channels: int, *, image_channels: int, ndim: int) -> None:
        super().__init__()
        self.shrink = shrink2(ndim=ndim)
        self.unit = EESP(channels, out_channels - channels, stride=2, ndim=ndim)
        self.reinforce = nn.Sequential(
            conv_norm_act(image_channels, image_channels, kernel=3, ndim=ndim),
            conv(image_channels, out_channels, kernel=1, ndim=ndim),
            BATCH_NORM[ndim](out_channels),
        )
        self.act = nn.PReLU(out_channels)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Features at half the size of `x`, from an `image` of that half already."""
        joined = torch.cat([self.shrink(x), self.unit(x)], dim=1)
        out: Tensor = self.act(joined + self.reinforce(image))
        return out


class Encoder(nn.Module):
    """ESPNetv2 without its last stage and classifier: the four scales that the decoder needs."""

    def __init__(self, *, channels: int, widths: Sequence[int], ndim: int) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = widths
        down = partial(StridedEESP, image_channels=channels, ndim=ndim)
        self.shrink = shrink2(ndim=ndim)
        self.stem = conv_norm_act(channels, half, kernel=3, stride=2, ndim=ndim)
        self.down1 = down(half, quarter)
        self.down2 = down(quarter, eighth)
        self.stage2 = nn.Sequential(*(EESP(eighth, eighth, ndim=ndim) for _ in range(3)))
        self.down3 = down(eighth, sixteenth)
        self.stage3 = nn.Sequential(
            *(EESP(sixteenth, sixteenth, dilations=LAST_DILATIONS, ndim=ndim) for _ in range(7))
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        half = self.stem(image)  # (B, 32, 1/2)
        small = self.shrink(self.shrink(image))  # (B, c, 1/4)
        quarter = self.down1(half, small)  # (B, 64, 1/4)
        small = self.shrink(small)  # (B, c, 1/8)
        eighth = self.stage2(self.down2(quarter, small))  # (B, 128, 1/8)
        small = self.shrink(small)  # (B, c, 1/16)
        sixteenth = self.stage3(self.down3(eighth, small))  # (B, 256, 1/16)
        return half, quarter, eighth, sixteenth


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """`x` interpolated linearly to a size, corner pixel on corner pixel."""
    return F.interpolate(x, size=size, mode=LINEAR[len(size)], align_corners=True)


def pool(x: Tensor, size: Sequence[int]) -> Tensor:
    """`x` averaged over a grid of a size."""
    out: Tensor = ADAPTIVE_POOL[len(size)](x, size)
    return out


class PyramidPooling(nn.Module):
    """Efficient pyramid pooling: the features looked at in five sizes, plane by plane.

    `last` makes it the classifier: a bias in the end instead of norm and activation.
    """

    def __init__(
        self, channels: int, out_channels: int, *, planes: int, last: bool = False, ndim: int
    ) -> None:
        super().__init__()
        views = len(POOLING_SCALES)
        self.project = conv_norm_act(channels, planes, kernel=1, ndim=ndim)
        self.views = nn.ModuleList(
            conv(planes, planes, kernel=3, groups=planes, ndim=ndim) for _ in POOLING_SCALES
        )
        self.fuse = norm_act(views * planes, ndim=ndim)
        self.shuffle = nn.ChannelShuffle(views)  # so that the views of a plane lie side by side
        self.merge = conv_norm_act(views * planes, planes, kernel=3, groups=planes, ndim=ndim)
        self.expand = conv(planes, out_channels, kernel=1, bias=last, ndim=ndim)
        self.tail = nn.Identity() if last else norm_act(out_channels, ndim=ndim)

    def forward(self, x: Tensor) -> Tensor:
        planes = self.project(x)  # (B, P, *size)
        layers = zip(self.views, POOLING_SCALES, strict=True)
        views = [self._view(planes, layer, scale) for layer, scale in layers]
        fused = self.shuffle(self.fuse(torch.cat(views, dim=1)))  # (B, 5P, *size)
        out: Tensor = self.tail(self.expand(self.merge(fused)))  # (B, out, *size)
        return out

    def _view(self, planes: Tensor, layer: nn.Module, scale: float) -> Tensor:
        """The planes as a convolution sees them at another scale, in their own size."""
        size = planes.shape[2:]
        grid = [max(SMALLEST_GRID, math.ceil(n * scale)) for n in size]
        if scale > 1:
            return pool(layer(enlarge(planes, grid)), size)
        if scale < 1:
            return enlarge(layer(pool(planes, grid)), size)
        out: Tensor = layer(planes)
        return out


class GatedProjection(nn.Module):
    """Features with other channels, each gated by what the mean over the whole image says of it."""

    def __init__(self, channels: int, out_channels: int, *, ndim: int) -> None:
        super().__init__()
        groups = math.gcd(channels, out_channels)
        self.project = conv_norm_act(channels, out_channels, kernel=3, groups=groups, ndim=ndim)
        self.gate = conv(channels, out_channels, kernel=1, ndim=ndim)

    def forward(self, x: Tensor) -> Tensor:
        mean = pool(x, (1,) * (x.ndim - 2))  # (B, channels, 1, ...)
        out: Tensor = self.project(x) * torch.sigmoid(self.gate(mean))
        return out


class DecoderStep(nn.Module):
    """From one scale to the next finer one, where the encoder's features join."""

    def __init__(
        self, skip: int, channels: int, out_channels: int, *, planes: int, last: bool, ndim: int
    ) -> None:
        super().__init__()
        self.lateral = GatedProjection(skip, channels, ndim=ndim)
        self.fuse = norm_act(channels, ndim=ndim)
        self.pyramid = PyramidPooling(channels, out_channels, planes=planes, last=last, ndim=ndim)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Scores or features of the size of `skip`, from those of half the size."""
        x = enlarge(x, skip.shape[2:])
        out: Tensor = self.pyramid(self.fuse(self.lateral(skip) + x))
        return out


class ESPNetv2(nn.Module):
    """Scores at the input's size; see `build_espnetv2` for the arguments."""

    def __init__(
        self, *, classes: int, channels: int, widths: Sequence[int], decoder_width: int, ndim: int
    ) -> None:
        super().__init__()
        # As published: half as many planes as classes, at most 16.
        planes = min(classes // 2, 16)
        half, quarter, eighth, sixteenth = widths
        first, second, third = decoder_width, decoder_width * 3 // 4, decoder_width // 2
        step = partial(DecoderStep, planes=planes, ndim=ndim)
        self.encoder = Encoder(channels=channels, widths=widths, ndim=ndim)
        self.pyramid = PyramidPooling(sixteenth, first, planes=planes, ndim=ndim)
        self.step_eighth = step(eighth, first, second, last=False)
        self.step_quarter = step(quarter, second, third, last=False)
        self.step_half = step(half, third, classes, last=True)

    def forward(self, image: Tensor) -> Tensor:
        half, quarter, eighth, sixteenth = self.encoder(image)
        x = self.pyramid(sixteenth)  # (B, 64, 1/16)
        x = self.step_eighth(x, eighth)  # (B, 48, 1/8)
        x = self.step_quarter(x, quarter)  # (B, 32, 1/4)
        x = self.step_half(x, half)  # (B, C, 1/2)
        return enlarge(x, image.shape[2:])  # (B, C, 1/1)


def build_espnetv2(
    *, classes: int, channels: int = 3, scale: float = 1.0, decoder_width: int = 64, ndim: int = 2
) -> nn.Module:
    """ESPNetv2 with torch's default weights, for whole images: scores at the input's resolution.

    `scale` chooses the encoder's channels (ENCODER_CHANNELS), `decoder_width` those of the decoder at
    1/16 of the size, with 3/4 and 1/2 of them at 1/8 and 1/4: 64 for the published Cityscapes and
    Pascal VOC networks, 128 for COCO.

    The original takes image sides of 0 or 15 modulo 16 only, because it doubles the decoder's
    features; here they take the size of the encoder's, which is the same for those and serves any.

    Raises ValueError for an unknown scale, decoder width or number of axes, or fewer than 2 classes.
    """
    if scale not in ENCODER_CHANNELS:
        known = ", ".join(map(str, ENCODER_CHANNELS))
        raise ValueError(f"scale {scale!r} is unknown; choose one of {known}")
    if decoder_width not in DECODER_WIDTHS:
        known = " or ".join(map(str, DECODER_WIDTHS))
        raise ValueError(f"decoder_width {decoder_width!r} is unknown; choose {known}")
    if classes < 2:
        raise ValueError(f"classes must be at least 2 (the decoder has half as many planes), got {classes}")
    if ndim not in LINEAR:
        raise ValueError(f"ndim must be 1, 2 or 3, got {ndim}")
    widths = ENCODER_CHANNELS[scale]
    return ESPNetv2(classes=classes, channels=channels, widths=widths, decoder_width=decoder_width, ndim=ndim)
