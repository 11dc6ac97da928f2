"""Y-Net (Mehta et al., MICCAI 2018): tissue segmentation, alone or with a diagnosis of the whole window.

The network pools each scale to grids of given sizes and enlarges them to others, so it takes windows
of 384 x 384 pixels and no other. The last comment on a line is the shape that it makes, with C
classes and D diagnoses; sizes of features are relative to the window.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from wsiseg.models.layers import ConvNormReLU, conv, hierarchical_fusion

EncoderKind = Literal["C1", "D1"]
Unit = Callable[[int], nn.Module]
"""Makes a unit that keeps that many channels."""

SIDE = 384
EPS = 1e-3
MOMENTUM = 0.95
"""Share of the new batch in the running statistics, as published: they are nearly those of the last batch."""
DILATIONS = (1, 2, 4, 8)
GRIDS = (40, 32, 24, 18)
"""Sides to which features of side 48 are pooled; other scales in proportion."""


class DilatedUnit(nn.Module):
    """Efficient spatial pyramid of Y-Net: reduce, dilate in parallel, fuse, add the input.

    It differs from ESPNet's: four branches, a 3-wide reduction, ReLU. `unused` adds the convolution
    of dilation 16 that the published joint network holds and counts, but never computes.
    """

    def __init__(self, channels: int, *, unused: bool) -> None:
        super().__init__()
        branch = channels // len(DILATIONS)
        self.reduce = conv(channels, branch, kernel=3, ndim=2)
        self.branches = nn.ModuleList(conv(branch, branch, kernel=3, dilation=d, ndim=2) for d in DILATIONS)
        if unused:
            self.unused = conv(branch, branch, kernel=3, dilation=16, ndim=2)
        self.norm = nn.BatchNorm2d(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        fused = hierarchical_fusion([branch(reduced) for branch in self.branches])
        return torch.relu(self.norm(x + fused))


class ResidualUnit(nn.Module):
    """Two 3-wide convolutions with the input added before the last ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNormReLU(channels, channels, kernel=3, eps=EPS)
        self.second = conv(channels, channels, kernel=3, ndim=2)
        self.norm = nn.BatchNorm2d(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.second(self.first(x))))


class Stage(nn.Module):
    """Half the size of the input; what came in and what the units made of it are joined."""

    def __init__(self, channels: int, width: int, *, units: int, unit: Unit) -> None:
        super().__init__()
        self.down = ConvNormReLU(channels, width, kernel=3, stride=2, eps=EPS)
        self.units = nn.Sequential(*(unit(width) for _ in range(units)))
        self.fuse = nn.BatchNorm2d(2 * width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down(x)  # (B, width, 1/2)
        joined = torch.cat([first, self.units(first)], dim=1)  # (B, 2 width, 1/2)
        return torch.relu(self.fuse(joined))


class PoolLevel(nn.Module):
    """Features averaged over a grid of side `grid`, projected, and enlarged to side `side`."""

    def __init__(self, channels: int, width: int, *, grid: int, side: int, align_corners: bool) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.project = ConvNormReLU(channels, width, kernel=1, eps=EPS)
        self.enlarge = nn.Upsample(size=(side, side), mode="bilinear", align_corners=align_corners)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.enlarge(self.project(self.pool(x)))
        return out


class PyramidPooling(nn.Module):
    """Features of side `side` with what four coarser grids say of them, `width` channels each."""

    def __init__(self, channels: int, width: int, *, side: int, align_corners: bool) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            PoolLevel(channels, width, grid=grid * side // 48, side=side, align_corners=align_corners)
            for grid in GRIDS
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, *(level(x) for level in self.levels)], dim=1)


class Diagnosis(nn.Module):
    """The branch of the joint network: one score per diagnosis for the whole window."""

    def __init__(self, channels: int, *, diagnoses: int, unit: Unit) -> None:
        super().__init__()
        self.stage1 = Stage(channels, 128, units=2, unit=unit)
        self.stage2 = Stage(256, 64, units=2, unit=unit)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(128, 64)
        self.out = nn.Linear(64, diagnoses)

    def forward(self, eighth: Tensor) -> Tensor:
        x = self.stage1(eighth)  # (B, 256, 1/16)
        x = self.stage2(x)  # (B, 128, 1/32)
        x = torch.flatten(self.pool(x), 1)  # (B, 128)
        # As published, nothing stands between the two linear layers.
        out: Tensor = self.out(self.hidden(x))  # (B, D)
        return out


class YNet(nn.Module):
    """Scores at the input's size and, with `diagnoses`, also of the window; see `build_ynet`.

    Source: Mehta et al., Y-Net: Joint Segmentation and Classification for Diagnosis of Breast Biopsy
    Images, MICCAI 2018, section 2.
    """

    input_size = (SIDE, SIDE)
    """The only window that the network takes, (y, x)."""

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        unit: Unit,
        diagnoses: int | None,
        stem_first: bool,
        align_corners: bool,
    ) -> None:
        super().__init__()
        self.stem_first = stem_first
        self.stem = ConvNormReLU(channels, 16, kernel=7, stride=2, eps=EPS)
        self.stage1 = Stage(16, 128, units=2, unit=unit)
        self.stage2 = Stage(256, 256, units=5, unit=unit)

        layer, pyramid = partial(ConvNormReLU, eps=EPS), partial(PyramidPooling, align_corners=align_corners)
        self.pool_eighth = pyramid(512, 128, side=SIDE // 8)
        self.head_eighth = nn.Sequential(
            layer(1024, 128, kernel=1), layer(128, classes, kernel=3), layer(classes, classes, kernel=1)
        )
        self.pool_quarter = pyramid(256 + classes, 64, side=SIDE // 4)
        self.head_quarter = nn.Sequential(
            layer(512 + classes, classes, kernel=3), layer(classes, classes, kernel=1)
        )
        self.pool_half = pyramid(16 + classes, classes, side=SIDE // 2)
        self.head_half = nn.Sequential(
            layer(16 + 5 * classes, classes, kernel=3), conv(classes, classes, kernel=7, ndim=2)
        )
        self.enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align_corners)
        self.diagnosis = None if diagnoses is None else Diagnosis(512, diagnoses=diagnoses, unit=unit)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = MOMENTUM

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        self._check_size(image)
        stem = self.stem(image)  # (B, 16, 1/2)
        quarter = self.stage1(stem)  # (B, 256, 1/4)
        eighth = self.stage2(quarter)  # (B, 512, 1/8)
        x = self.enlarge(self.head_eighth(self.pool_eighth(eighth)))  # (B, C, 1/4)
        x = torch.cat([x, quarter], dim=1)  # (B, C + 256, 1/4)
        x = self.enlarge(self.head_quarter(self.pool_quarter(x)))  # (B, C, 1/2)
        x = torch.cat([stem, x] if self.stem_first else [x, stem], dim=1)  # (B, 16 + C, 1/2)
        scores: Tensor = self.enlarge(self.head_half(self.pool_half(x)))  # (B, C, 1/1)
        if self.diagnosis is None:
            return scores
        return scores, self.diagnosis(eighth)  # (B, C, 1/1), (B, D)

    def _check_size(self, image: Tensor) -> None:
        # torch.fx traces with symbols, which have no size: whoever follows the graph finds the pooling.
        if isinstance(image, Tensor) and tuple(image.shape[2:]) != self.input_size:
            raise ValueError(
                f"Y-Net takes images of {SIDE} x {SIDE} pixels, got (B, C, *axes) = {tuple(image.shape)}: "
                "its pooling is made for that size alone"
            )


def build_ynet(
    *,
    classes: int = 8,
    channels: int = 3,
    encoder: EncoderKind = "C1",
    diagnoses: int | None = None,
    align_corners: bool = True,
) -> nn.Module:
    """Y-Net with torch's default weights, for images of 384 x 384 pixels.

    `encoder` "C1" is made of dilated pyramids, "D1" of residual units. Without `diagnoses` it is the
    segmentation network (stage 1), which returns scores (B, C, 384, 384); with a number of diagnoses
    the joint network (stage 2), which returns the scores and the diagnosis logits (B, D).
    `align_corners` is how bilinear up-sampling places pixels: True as trained (PyTorch 0.2), False
    as the same code does under later versions.

    The original serves 8 classes only, because two of its layers take 256 + 8 and 16 + 8 channels in
    figures; here the 8 is the number of classes, which for 8 makes every shape the original's.

    Raises ValueError for an unknown encoder or fewer than one class or diagnosis.
    """
    if encoder not in ("C1", "D1"):
        raise ValueError(f"encoder {encoder!r} is unknown; choose C1 or D1")
    if classes < 1:
        raise ValueError(f"classes must be at least 1, got {classes}")
    if diagnoses is not None and diagnoses < 1:
        raise ValueError(f"diagnoses must be at least 1, or None for segmentation alone; got {diagnoses}")
    joint = diagnoses is not None
    return YNet(
        classes=classes,
        channels=channels,
        unit=partial(DilatedUnit, unused=joint) if encoder == "C1" else ResidualUnit,
        diagnoses=diagnoses,
        # The published stages disagree for D1: what stage 1 learned is read in another order in stage 2.
        stem_first=encoder == "C1" or joint,
        align_corners=align_corners,
    )
