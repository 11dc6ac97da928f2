"""3D-ESPNet (Nuechterlein & Mehta, BrainLes 2018): volumes, and images of any other number of axes.

Sizes in the comments are relative to what the first layer sees; the last comment on a line is the
shape that it makes, with C classes and the published width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsiseg.models.layers import (
    ADAPTIVE_POOL,
    BATCH_NORM,
    LINEAR,
    ConvNormReLU,
    conv,
    conv_of_doubled,
    hierarchical_fusion,
)

BRANCH_DILATIONS = (1, 1, 2, 2)
ASP_KERNELS = (3, 5, 7, 9)
PYRAMID = (0.2, 0.4, 0.6, 0.8)
"""Sizes of the refinement's levels, relative to the features that it refines."""

STAGE_CHANNELS = (16, 32, 128, 256)
"""Channels of the stem, then at a half, a quarter and an eighth of the size, at width 1."""

WorkingSize = Literal["rounded", "given"] | Sequence[int] | None


def scaled_channels(width: float) -> tuple[int, ...]:
    """STAGE_CHANNELS times `width`, each rounded to whole ESP branches. Raises ValueError."""
    count = len(BRANCH_DILATIONS)
    branches = [round(width * channels / count) for channels in STAGE_CHANNELS]
    if min(branches) < 1:
        raise ValueError(f"width {width} leaves {STAGE_CHANNELS[0]} channels fewer than {count} branches")
    return tuple(count * branch for branch in branches)


def checked_size(size: Iterable[int]) -> tuple[int, ...]:
    """A size that the network with refinement can compute at. Raises ValueError for any other."""
    sides = tuple(size)
    if any(n % 8 not in (0, 7) for n in sides):
        raise ValueError(f"sides of {sides} are not all 0 or 7 modulo 8, which the scales need")
    # The smallest level of the pyramid is a fifth of half a side.
    if min(sides) < 15:
        raise ValueError(f"a side of {min(sides)} is too small to refine; at least 15 is needed")
    return sides


class VolumeESP(nn.Module):
    """Efficient spatial pyramid of 3D-ESPNet; with `stride=2` every branch strides.

    Unlike the unit of ESPNet it has four branches of small dilation, a norm and ReLU after the
    reduction, and adds its input (where the shape stays) after the norm.
    """

    def __init__(self, channels: int, out_channels: int, *, stride: int = 1, ndim: int = 3) -> None:
        super().__init__()
        branch = out_channels // len(BRANCH_DILATIONS)
        # What does not divide evenly goes to the first branch.
        first = out_channels - branch * (len(BRANCH_DILATIONS) - 1)
        if branch < 1:
            raise ValueError(
                f"{out_channels} output channels are too few for {len(BRANCH_DILATIONS)} branches"
            )
        self.residual = stride == 1 and channels == out_channels
        self.reduce = ConvNormReLU(channels, branch, kernel=1, ndim=ndim)
        self.branches = nn.ModuleList(
            conv(branch, out, kernel=3, stride=stride, dilation=dilation, ndim=ndim)
            for out, dilation in zip((first, branch, branch, branch), BRANCH_DILATIONS, strict=True)
        )
        # The published network has another eps here than everywhere else.
        self.norm = BATCH_NORM[ndim](out_channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        fused = hierarchical_fusion(branch(reduced) for branch in self.branches)
        out = self.norm(fused)
        if self.residual:
            out = x + out
        return torch.relu(out)


class ASP(nn.Module):
    """Sum of convolutions of several kernel sizes and of the input itself, then ReLU."""

    def __init__(self, channels: int, *, ndim: int = 3) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(conv(channels, channels, kernel=k, ndim=ndim), BATCH_NORM[ndim](channels, eps=1e-3))
            for k in ASP_KERNELS
        )

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for branch in self.branches:
            out = out + branch(x)
        return torch.relu(out)


class Trunk(nn.Module):
    """Encoder and decoder: features of C channels at half the size of the input."""

    def __init__(
        self, *, classes: int, channels: int, widths: Sequence[int], align_corners: bool, ndim: int
    ) -> None:
        super().__init__()
        stem, half, quarter, eighth = widths

        def units(count: int, width: int) -> nn.Sequential:
            return nn.Sequential(*(VolumeESP(width, width, ndim=ndim) for _ in range(count)))

        self.stem = ConvNormReLU(channels, stem, kernel=7, stride=2, ndim=ndim)
        self.encode_half = nn.Sequential(VolumeESP(stem, half, ndim=ndim), VolumeESP(half, half, ndim=ndim))
        self.down_quarter = VolumeESP(half, quarter, stride=2, ndim=ndim)
        self.encode_quarter = units(2, quarter)
        self.down_eighth = VolumeESP(quarter, eighth, stride=2, ndim=ndim)
        self.encode_eighth = units(3, eighth)
        self.enlarge = nn.Upsample(scale_factor=2, mode=LINEAR[ndim], align_corners=align_corners)
        self.project_eighth = ConvNormReLU(eighth, quarter, kernel=3, ndim=ndim)
        self.merge_quarter = VolumeESP(2 * quarter, quarter, ndim=ndim)
        self.decode_quarter = units(2, quarter)
        self.project_quarter = ConvNormReLU(quarter, half, kernel=3, ndim=ndim)
        self.merge_half = VolumeESP(2 * half, half, ndim=ndim)
        self.decode_half = units(2, half)
        self.project_half = ConvNormReLU(half, classes, kernel=3, ndim=ndim)
        self.asp = ASP(classes, ndim=ndim)

    def forward(self, image: Tensor) -> Tensor:
        half = self.encode_half(self.stem(image))  # (B, 32, 1/2)
        quarter = self.encode_quarter(self.down_quarter(half))  # (B, 128, 1/4)
        x = self.encode_eighth(self.down_eighth(quarter))  # (B, 256, 1/8)
        x = self.enlarge(self.project_eighth(x))  # (B, 128, 1/4)
        x = self.decode_quarter(self.merge_quarter(torch.cat([x, quarter], dim=1)))  # (B, 128, 1/4)
        x = self.enlarge(self.project_quarter(x))  # (B, 32, 1/2)
        x = self.decode_half(self.merge_half(torch.cat([x, half], dim=1)))  # (B, 32, 1/2)
        out: Tensor = self.asp(self.project_half(x))  # (B, C, 1/2)
        return out


class Refinement(nn.Module):
    """Pyramidal refinement: the features with what shrunken copies of the whole of them say."""

    def __init__(self, classes: int, *, align_corners: bool, ndim: int) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.levels = nn.ModuleList(ConvNormReLU(classes, classes, kernel=3, ndim=ndim) for _ in PYRAMID)
        self.mix = ConvNormReLU((1 + len(PYRAMID)) * classes, classes, kernel=3, ndim=ndim)

    def forward(self, y: Tensor) -> Tensor:
        size = y.shape[2:]
        refined = [y]
        for level, share in zip(self.levels, PYRAMID, strict=True):
            small = ADAPTIVE_POOL[len(size)](y, [int(n * share) for n in size])  # (B, C, share/2)
            refined.append(
                F.interpolate(
                    level(small), size=size, mode=LINEAR[len(size)], align_corners=self.align_corners
                )
            )
        out: Tensor = self.mix(torch.cat(refined, dim=1))  # (B, C, 1/2)
        return out


class ESPNet3D(nn.Module):
    """Scores at the input's size; see `build_espnet3d` for the arguments."""

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        widths: Sequence[int],
        refinement: bool,
        align_corners: bool,
        working_size: Literal["rounded", "given"] | tuple[int, ...],
        ndim: int,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.working_size = working_size
        # The original gave each batch 95 % of its norms' running statistics, so that they were those
        # of the last batch; torch's 10 % is kept here. A trained network computes the same.
        self.trunk = Trunk(
            classes=classes, channels=channels, widths=widths, align_corners=align_corners, ndim=ndim
        )
        self.refine = Refinement(classes, align_corners=align_corners, ndim=ndim) if refinement else None
        self.head = nn.Sequential(
            ASP(classes, ndim=ndim),
            nn.Upsample(scale_factor=2, mode="nearest"),
            ConvNormReLU(classes, classes, kernel=7, ndim=ndim),
            conv(classes, classes, kernel=1, ndim=ndim),
        )

    def forward(self, image: Tensor) -> Tensor:
        if self.refine is None:
            return self._scores(self.trunk(image))  # (B, C, 1/1)
        size = image.shape[2:]
        inner = self._inner_size(size)
        if inner != size:
            image = ADAPTIVE_POOL[len(size)](image, inner)
        scores = self._scores(self.refine(self.trunk(image)))  # (B, C, *inner)
        return F.interpolate(scores, size=size, mode=LINEAR[len(size)], align_corners=self.align_corners)

    def _scores(self, features: Tensor) -> Tensor:
        """The head; its widest kernel sees every voxel repeated, which training need not compute."""
        if not self.training:
            scores: Tensor = self.head(features)
            return scores
        asp: Any
        wide: Any
        asp, _, wide, mix = self.head
        half = asp(features)
        doubled = conv_of_doubled(half, wide.conv.weight)
        layout = torch.channels_last_3d if half.is_contiguous(memory_format=torch.channels_last_3d) else None
        doubled = doubled if layout is None else doubled.contiguous(memory_format=layout)
        mixed: Tensor = mix(torch.relu(wide.norm(doubled)))
        return mixed

    @property
    def window_stride(self) -> int | None:
        """Windows of any sides that are multiples of this are taken as they are; None: of one size only."""
        return 8 if isinstance(self.working_size, str) else None

    def _inner_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size at which a volume is computed. Raises ValueError where the network cannot."""
        if self.training or self.working_size == "rounded":
            return checked_size(-(-n // 8) * 8 for n in size)
        return checked_size(size if self.working_size == "given" else self.working_size)


def checked_working_size(
    working_size: WorkingSize, *, refinement: bool, ndim: int
) -> Literal["rounded", "given"] | tuple[int, ...]:
    """A working size with its default filled in. Raises ValueError for what is none."""
    if working_size is None:
        return "rounded" if refinement else "given"
    if isinstance(working_size, str):
        if working_size not in ("rounded", "given"):
            raise ValueError(f"working_size {working_size!r} is unknown; choose 'rounded', 'given' or a size")
        return working_size
    size = checked_size(working_size)
    if len(size) != ndim:
        raise ValueError(f"working_size {size} has not {ndim} axes")
    return size


def build_espnet3d(
    *,
    classes: int = 4,
    channels: int = 4,
    width: float = 1.0,
    refinement: bool = True,
    align_corners: bool | None = None,
    working_size: WorkingSize = None,
    ndim: int = 3,
) -> nn.Module:
    """3D-ESPNet with torch's default weights, by default the published one of 3,626,584 parameters.

    `width` multiplies the channels inside, each rounded to whole ESP branches (4 channels).
    `working_size` is the size to which volumes are averaged (or repeated) first, scores being
    interpolated back: "rounded" up to multiples of 8 (the default), "given" as they come (sides 0
    or 7 modulo 8), or a fixed size, which as published holds in evaluation only; training rounds.

    `refinement=False` leaves out the pyramid, whose levels see the whole volume, and the first
    averaging and last interpolation: what is left is fully convolutional, for windows of any
    volume, with sides that are multiples of 8. `align_corners` is how linear up-sampling places
    pixels: True as published (the default with refinement), or False, the only choice without,
    because True makes scores depend on the size of the window.

    Raises ValueError for a width that leaves fewer than 4 channels, or arguments that exclude each other.
    """
    if not refinement and align_corners:
        raise ValueError("align_corners=True depends on the volume's size; it needs refinement=True")
    if not refinement and working_size not in (None, "given"):
        raise ValueError(f"working_size={working_size!r} needs refinement=True; without, sizes are as given")
    if ndim not in LINEAR:
        raise ValueError(f"ndim must be 1, 2 or 3, got {ndim}")
    return ESPNet3D(
        classes=classes,
        channels=channels,
        widths=scaled_channels(width),
        refinement=refinement,
        align_corners=refinement if align_corners is None else align_corners,
        working_size=checked_working_size(working_size, refinement=refinement, ndim=ndim),
        ndim=ndim,
    )
