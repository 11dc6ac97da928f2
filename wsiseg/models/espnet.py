"""ESPNet (Mehta et al., ECCV 2018): the encoder ESPNet-C and the full network, in 1 to 3 dimensions.

All sizes below are relative to the input; the last comment on a line is the shape that it makes,
with C classes. Image sides must be 0 or 7 modulo 8 for the full network (any size for ESPNet-C).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wsiseg.models.layers import BATCH_NORM, ESP, ConvNormAct, NormAct, conv, down2, up2

Variant = Literal["A", "B", "C"]


class Encoder(nn.Module):
    """ESPNet-C without its classifier: the three scales that the decoder needs."""

    def __init__(self, *, channels: int, p: int, q: int, ndim: int) -> None:
        super().__init__()
        if p < 1 or q < 1:
            raise ValueError(f"p and q count ESP units and must be at least 1, got p={p}, q={q}")
        self.stem = ConvNormAct(channels, 16, kernel=3, stride=2, ndim=ndim)
        self.shrink = down2(ndim=ndim)
        self.fuse1 = NormAct(16 + channels, ndim=ndim)
        self.down1 = ESP(16 + channels, 64, stride=2, residual=False, ndim=ndim)
        self.stage1 = nn.ModuleList(ESP(64, 64, ndim=ndim) for _ in range(p))
        self.fuse2 = NormAct(128 + channels, ndim=ndim)
        self.down2 = ESP(128 + channels, 128, stride=2, residual=False, ndim=ndim)
        self.stage2 = nn.ModuleList(ESP(128, 128, ndim=ndim) for _ in range(q))
        self.fuse3 = NormAct(256, ndim=ndim)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        stem = self.stem(image)  # (B, 16, 1/2)
        image_half = self.shrink(image)  # (B, c, 1/2)
        half = self.fuse1(torch.cat([stem, image_half], dim=1))  # (B, 16 + c, 1/2)
        first = x = self.down1(half)  # (B, 64, 1/4)
        for unit in self.stage1:
            x = unit(x)
        # The order of concatenation differs between the two scales in the published weights.
        quarter = self.fuse2(torch.cat([x, first, self.shrink(image_half)], dim=1))  # (B, 128 + c, 1/4)
        first = x = self.down2(quarter)  # (B, 128, 1/8)
        for unit in self.stage2:
            x = unit(x)
        eighth = self.fuse3(torch.cat([first, x], dim=1))  # (B, 256, 1/8)
        return stem, half, quarter, eighth


class ESPNetC(nn.Module):
    """The encoder with a classifier: scores at an eighth of the input's resolution."""

    def __init__(self, *, classes: int, channels: int = 3, p: int = 2, q: int = 3, ndim: int = 2) -> None:
        super().__init__()
        self.encoder = Encoder(channels=channels, p=p, q=q, ndim=ndim)
        self.head = conv(256, classes, kernel=1, ndim=ndim)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(image)[-1])  # (B, C, 1/8)
        return out


class ESPNet(nn.Module):
    """Encoder and light-weight decoder: scores at the input's resolution.

    The published decoders differ in what joins at half resolution: `variant="A"` (Cityscapes) takes
    the stem's output, `variant="B"` (CamVid) the stem fused with the pooled image.
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: int = 3,
        p: int = 2,
        q: int = 3,
        variant: Literal["A", "B"] = "A",
        ndim: int = 2,
    ) -> None:
        super().__init__()
        self.variant = variant
        self.encoder = Encoder(channels=channels, p=p, q=q, ndim=ndim)
        self.head = conv(256, classes, kernel=1, ndim=ndim)
        self.norm_eighth = BATCH_NORM[ndim](classes, eps=1e-3)
        self.up_eighth = up2(classes, ndim=ndim)
        self.project_quarter = conv(128 + channels, classes, kernel=1, ndim=ndim)
        self.fuse_quarter = NormAct(2 * classes, ndim=ndim)
        self.mix_quarter = ESP(2 * classes, classes, residual=False, ndim=ndim)
        self.up_quarter = up2(classes, ndim=ndim)
        self.act_half = NormAct(classes, ndim=ndim)
        skip = 16 if variant == "A" else 16 + channels
        self.mix_half = ConvNormAct(skip + classes, classes, kernel=3, ndim=ndim)
        self.up_half = up2(classes, ndim=ndim)

    def forward(self, image: Tensor) -> Tensor:
        stem, half, quarter, eighth = self.encoder(image)
        up = self.up_eighth(self.norm_eighth(self.head(eighth)))  # (B, C, 1/4)
        x = torch.cat([self.project_quarter(quarter), up], dim=1)  # (B, 2C, 1/4)
        x = self.mix_quarter(self.fuse_quarter(x))  # (B, C, 1/4)
        x = self.act_half(self.up_quarter(x))  # (B, C, 1/2)
        skip = stem if self.variant == "A" else half
        x = self.mix_half(torch.cat([x, skip], dim=1))  # (B, C, 1/2)
        out: Tensor = self.up_half(x)  # (B, C, 1/1)
        return out


def build_espnet(
    *,
    classes: int,
    channels: int = 3,
    p: int = 2,
    q: int = 3,
    variant: Variant = "A",
    ndim: int = 2,
) -> nn.Module:
    """ESPNet with torch's default weights: `variant` "C" is the encoder, "A" and "B" the full network.

    Raises ValueError for an unknown variant, fewer than 5 output channels a unit, or p, q below 1.
    """
    if variant == "C":
        return ESPNetC(classes=classes, channels=channels, p=p, q=q, ndim=ndim)
    if variant not in ("A", "B"):
        raise ValueError(f"variant {variant!r} is unknown; choose A, B or C")
    return ESPNet(classes=classes, channels=channels, p=p, q=q, variant=variant, ndim=ndim)
