"""The multi-resolution encoder-decoder of Mehta et al., WACV 2018, for 384-pixel patches.

Source: Learning to Segment Breast Biopsy Whole Slide Images. Two networks of the same kind, one for
the patch and one for its centre, are added and seen in context. What 3 channels of an image and 64
to 512 features of a ResNet-18 say is joined by a dense and a sparse decoder.

Shapes in the comments: C classes; sizes relative to what a `SubNetwork` sees.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsiseg.models.layers import ConvNormReLU, conv, down2

EPS = 1e-5
Features = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def conv_norm_relu(
    channels: int, out_channels: int, *, kernel: int, stride: int = 1, dilation: int = 1
) -> ConvNormReLU:
    """Convolution with bias, batch norm, ReLU; all of the network outside the ResNet is made of these."""
    return ConvNormReLU(
        channels, out_channels, kernel=kernel, stride=stride, dilation=dilation, bias=True, eps=EPS
    )


class BasicBlock(nn.Module):
    """Residual unit of ResNet-18 (He et al., CVPR 2016), projecting where the shape changes."""

    def __init__(self, channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.first = ConvNormReLU(channels, out_channels, kernel=3, stride=stride, eps=EPS)
        self.second = nn.Sequential(
            conv(out_channels, out_channels, kernel=3, ndim=2), nn.BatchNorm2d(out_channels)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out_channels:
            self.shortcut = nn.Sequential(
                conv(channels, out_channels, kernel=1, stride=stride, ndim=2), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


class Encoder(nn.Module):
    """ResNet-18 that is shown the shrunken image once more at a half and at a quarter of its size."""

    def __init__(self, channels: int) -> None:
        super().__init__()

        def see_image() -> nn.Sequential:
            return nn.Sequential(
                conv(channels, 64, kernel=1, bias=True, ndim=2),
                conv(64, 64, kernel=3, bias=True, ndim=2),
                nn.BatchNorm2d(64),
                nn.ReLU(),
            )

        def stage(width: int, out_width: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                BasicBlock(width, out_width, stride=stride), BasicBlock(out_width, out_width)
            )

        self.shrink = down2(ndim=2)
        self.see_half = see_image()
        self.see_quarter = see_image()
        self.stem = ConvNormReLU(channels, 64, kernel=7, stride=2, eps=EPS)
        self.stage1 = stage(64, 64, stride=1)
        self.stage2 = stage(64, 128, stride=2)
        self.stage3 = stage(128, 256, stride=2)
        self.stage4 = stage(256, 512, stride=2)

    def forward(self, image: Tensor) -> Features:
        image_half = self.shrink(image)  # (B, c, 1/2)
        image_quarter = self.shrink(image_half)  # (B, c, 1/4)
        f1 = self.see_half(image_half) + self.stem(image)  # (B, 64, 1/2)
        pooled = F.max_pool2d(f1, 3, stride=2, padding=1)  # (B, 64, 1/4)
        f2 = self.see_quarter(image_quarter) + pooled  # (B, 64, 1/4)
        f3 = self.stage1(f2)  # (B, 64, 1/4)
        f4 = self.stage2(f3)  # (B, 128, 1/8)
        f5 = self.stage3(f4)  # (B, 256, 1/16)
        f6 = self.stage4(f5)  # (B, 512, 1/32)
        return f1, f2, f3, f4, f5, f6


class DenseDecoder(nn.Module):
    """Five learned up-samplings; every one but the first takes in all finer features of the encoder."""

    def __init__(self, classes: int) -> None:
        super().__init__()

        def up(channels: int, out_channels: int) -> nn.Sequential:
            return nn.Sequential(
                nn.ConvTranspose2d(channels, out_channels, 3, stride=2, padding=1, output_padding=1),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            )

        self.up5, self.up4, self.up3 = up(512, 256), up(256, 128), up(128, 64)
        self.up2, self.up1 = up(64, 64), up(64, 64)
        # skip_a_b brings features a to the channels and size of features b.
        self.skip_4_5 = conv_norm_relu(128, 256, kernel=1, stride=2)
        self.skip_3_5 = conv_norm_relu(64, 256, kernel=1, stride=4)
        self.skip_2_5 = conv_norm_relu(64, 256, kernel=1, stride=4)
        self.skip_1_5 = conv_norm_relu(64, 256, kernel=1, stride=8)
        self.skip_3_4 = conv_norm_relu(64, 128, kernel=1, stride=2)
        self.skip_2_4 = conv_norm_relu(64, 128, kernel=1, stride=2)
        self.skip_1_4 = conv_norm_relu(64, 128, kernel=1, stride=4)
        self.skip_1_3 = conv_norm_relu(64, 64, kernel=1, stride=2)
        self.project = conv_norm_relu(64, classes, kernel=1)

    def forward(self, features: Features) -> Tensor:
        f1, f2, f3, f4, f5, f6 = features
        u = self.up5(f6) + f5 + self.skip_4_5(f4) + self.skip_3_5(f3) + self.skip_2_5(f2) + self.skip_1_5(f1)
        u = self.up4(u) + f4 + self.skip_3_4(f3) + self.skip_2_4(f2) + self.skip_1_4(f1)  # (B, 128, 1/8)
        u = self.up3(u) + f3 + f2 + self.skip_1_3(f1)  # (B, 64, 1/4)
        u = self.up2(u) + f1  # (B, 64, 1/2)
        out: Tensor = self.project(self.up1(u))  # (B, C, 1/1)
        return out


class SparseDecoder(nn.Module):
    """C channels go up through pixels at even places; all others hold what norms and biases say."""

    def __init__(self, classes: int) -> None:
        super().__init__()

        def spread(channels: int) -> nn.Module:
            return nn.ConvTranspose2d(channels, classes, 1, stride=2, output_padding=1)

        def up() -> nn.Sequential:
            return nn.Sequential(spread(classes), nn.BatchNorm2d(classes), nn.ReLU())

        def side(channels: int) -> nn.Module:
            return conv(channels, classes, kernel=1, bias=True, ndim=2)

        self.up5 = spread(512)
        self.up4, self.up3, self.up2, self.up1 = up(), up(), up(), up()
        self.side5, self.side4, self.side3 = side(256), side(128), side(64)
        self.side2, self.side1 = side(64), side(64)

    def forward(self, features: Features) -> Tensor:
        f1, f2, f3, f4, f5, f6 = features
        h = self.up5(f6) + self.side5(f5)  # (B, C, 1/16)
        h = self.up4(h) + self.side4(f4)  # (B, C, 1/8)
        h = self.up3(h) + self.side3(f3) + self.side2(f2)  # (B, C, 1/4)
        h = self.up2(h) + self.side1(f1)  # (B, C, 1/2)
        out: Tensor = self.up1(h)  # (B, C, 1/1)
        return out


class SubNetwork(nn.Module):
    """Encoder and both decoders: C features at the image's size, whose sides are multiples of 32."""

    def __init__(self, *, classes: int, channels: int) -> None:
        super().__init__()
        self.encoder = Encoder(channels)
        self.level0 = conv_norm_relu(channels, classes, kernel=3)
        self.dense = DenseDecoder(classes)
        self.sparse = SparseDecoder(classes)
        self.merge = conv_norm_relu(classes, classes, kernel=3)

    def forward(self, image: Tensor) -> Tensor:
        features = self.encoder(image)
        joined = self.dense(features) + self.level0(image) + self.sparse(features)  # (B, C, 1/1)
        out: Tensor = self.merge(joined)  # (B, C, 1/1)
        return out


class Context(nn.Module):
    """Dilated convolutions one after the other, each with the first and the input added; then their sum."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = conv_norm_relu(classes, classes, kernel=3)
        self.dilated = nn.ModuleList(
            conv_norm_relu(classes, classes, kernel=3, dilation=dilation) for dilation in (2, 4, 8, 16)
        )
        self.fuse = conv_norm_relu(classes, classes, kernel=3)

    def forward(self, x: Tensor) -> Tensor:
        first = running = self.first(x)
        total = x + first
        for dilated in self.dilated:
            running = dilated(running) + first + x
            total = total + running
        out: Tensor = self.fuse(torch.relu(total))
        return out


class MultiResolutionSeg(nn.Module):
    """Scores of the central 256 pixels of a 384-pixel patch.

    Pixel (0, 0) of the output is pixel (63, 63) of the input: the published crop, which lies one
    pixel before the middle on both axes.
    """

    input_size: ClassVar[tuple[int, int]] = (384, 384)
    output_size: ClassVar[tuple[int, int]] = (256, 256)
    output_offset: ClassVar[tuple[int, int]] = (63, 63)
    """First row and column of the input that the output covers."""

    def __init__(self, *, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)  # what others do to an image by constants is learned here
        self.outer = SubNetwork(classes=classes, channels=channels)
        self.inner = SubNetwork(classes=classes, channels=channels)
        self.context = Context(classes)
        self.head = nn.Sequential(
            conv_norm_relu(classes, classes, kernel=3), conv(classes, classes, kernel=1, bias=True, ndim=2)
        )

    def forward(self, image: Tensor) -> Tensor:
        if tuple(image.shape[2:]) != self.input_size:
            raise ValueError(f"the network takes patches of {self.input_size}, got {tuple(image.shape[2:])}")
        normal = self.norm(image)  # (B, c, 384, 384)
        features = self.centre(self.outer(normal)) + self.inner(self.centre(normal))  # (B, C, 256, 256)
        out: Tensor = self.head(self.context(features))  # (B, C, 256, 256)
        return out

    def centre(self, x: Tensor) -> Tensor:
        """The part of (B, ..., 384, 384) that the output covers."""
        rows, columns = (
            slice(first, first + n) for first, n in zip(self.output_offset, self.output_size, strict=True)
        )
        return x[..., rows, columns]


def build_mrseg(*, classes: int = 8, channels: int = 3) -> nn.Module:
    """The network with torch's default weights; 26,005,014 parameters for 8 classes and 3 channels.

    It takes (B, channels, 384, 384) and gives scores (B, classes, 256, 256), of rows and columns 63
    to 318. Raises ValueError, when used, for patches of another size.
    """
    return MultiResolutionSeg(classes=classes, channels=channels)
