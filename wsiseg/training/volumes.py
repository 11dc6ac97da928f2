"""Volumes with their truth, and training patches drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wsiseg.annotations.labels import Indices, check_indices, check_size
from wsiseg.classes import VOID, MaskClass
from wsiseg.errors import AnnotationError, ManifestError
from wsiseg.execute.streaming import padded
from wsiseg.manifest import CaseRow, Manifest
from wsiseg.models.card import Spacing, sha256_of
from wsiseg.preprocess import CaseStats, apply, fit
from wsiseg.sources.resampled import AS_IT_IS
from wsiseg.sources.volume import VolumeSource
from wsiseg.sources.volumes import open_volume
from wsiseg.training.run import VolumeRun

SAME_PLACE_MM = 1e-3
"""By how much the affines of image and truth may differ."""

Affine = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class VolumeCase:
    """A volume as read (C, z, y, x) with its truth (z, y, x) and what its preprocessing needs."""

    row: CaseRow
    image: Tensor
    truth: Indices
    stats: CaseStats | None

    def whole(self, run: VolumeRun, *, stride: int) -> Tensor:
        """The network's input (1, C, *padded), as inference in one piece has it: ends padded with 0."""
        sides = padded(tuple(self.image.shape[1:]), stride=stride)
        rest = [n - own for n, own in zip(sides, self.image.shape[1:], strict=True)]
        image = functional.pad(self.image, [n for side in reversed(rest) for n in (0, side)])
        return apply(image[None], self.stats, run.preprocessing)


def open_volumes(run: VolumeRun, manifest: Manifest, *, split: str) -> list[VolumeCase]:
    """Image and truth of every row of a split; a row without one is of `train`.

    Raises WsisegError where a row cannot be used.
    """
    return [_open(run, manifest, row) for row in manifest.cases if (row.split or "train") == split]


def _open(run: VolumeRun, manifest: Manifest, row: CaseRow) -> VolumeCase:
    if row.annotation is None:
        raise ManifestError(f"case {row.case!r} has no annotation; training needs one for each case")
    source = _volume(manifest, row.path)
    if row.sha256 is not None and sha256_of(manifest.resolve(row.path)) != row.sha256:
        raise ManifestError(f"case {row.case!r}: {row.path} has another sha256 than the manifest says")
    _check_spacing(row, source.geometry.spacing, run.spacing)
    labels = _volume(manifest, row.annotation)
    check_size(labels.geometry.shape, geometry=source.geometry, name=row.annotation)
    apart = np.abs(labels.native.canonical_affine - source.native.canonical_affine).max()
    if apart > SAME_PLACE_MM:
        raise AnnotationError(
            f"{row.annotation} lies elsewhere than {row.path} (their affines differ by {apart:.4g}); "
            "truth must lie on the same grid"
        )
    return VolumeCase(
        row=row,
        image=torch.from_numpy(source.read(source.geometry.whole).values.astype(np.float32)),
        truth=_indices(labels, classes=run.classes, name=row.annotation),
        stats=fit(source, run.preprocessing),
    )


def _volume(manifest: Manifest, relative: str) -> VolumeSource:
    """The volume of one channel at a path of the manifest."""
    path = manifest.resolve(relative)
    source = open_volume(path)
    if source is None:
        raise ManifestError(f"{path} is missing or no volume; this run trains on volumes (axes: zyx)")
    if source.num_channels != 1:
        raise ManifestError(f"{path} has {source.num_channels} channels; volumes of one are trained on")
    return source


def _check_spacing(row: CaseRow, found: tuple[float, ...], wanted: Spacing) -> None:
    value = wanted.value
    sizes = value if isinstance(value, tuple) else (value,) * len(found)
    if len(sizes) != len(found):
        raise ManifestError(f"the run's spacing {sizes} must have one entry per axis (z, y, x)")
    if any(abs(f / w - 1) >= AS_IT_IS for f, w in zip(found, sizes, strict=True)):
        raise ManifestError(
            f"case {row.case!r} has voxels of {' x '.join(f'{f:.4g}' for f in found)} mm (z, y, x), the run "
            f"trains at {' x '.join(f'{w:.4g}' for w in sizes)}: resample it first"
        )


def _indices(labels: VolumeSource, *, classes: Sequence[MaskClass], name: str) -> Indices:
    """Class indices (z, y, x), also of a file that stores whole numbers as real ones."""
    values = labels.read(labels.geometry.whole).values[0]
    if not 0 <= values.min() <= values.max() <= VOID or (values != np.round(values)).any():
        raise AnnotationError(f"{name} has values that are no class indices (whole numbers of 0 to {VOID})")
    return check_indices(values.astype(np.uint8), classes=classes, name=name)


@dataclass(frozen=True)
class VolumeSampler:
    """Draws batches of patches: volumes at a random place of a patch, mirrored, turned and zoomed.

    Outside of a volume the image is 0, as at inference, and the truth VOID.
    """

    cases: Sequence[VolumeCase]
    run: VolumeRun

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Inputs of the network (B, C, *patch) float32 and truths (B, *patch) int64."""
        drawn = [self._patch(rng) for _ in range(self.run.batch)]
        return torch.stack([inputs for inputs, _ in drawn]), torch.stack([truth for _, truth in drawn])

    def _patch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        run = self.run
        case = self.cases[int(rng.integers(len(self.cases)))]
        affine = random_affine(run, shape=case.truth.shape, rng=rng)
        image, truth = resample(case.image, case.truth, affine, size=run.patch)
        inputs = apply(image[None], case.stats, run.preprocessing)[0]
        contrast, offset = rng.uniform(-1, 1, size=2) * run.intensity_jitter
        inputs = inputs * (1 + contrast) + offset
        if run.noise:
            grain = rng.standard_normal(inputs.shape, dtype=np.float32)
            inputs = inputs + torch.from_numpy(grain) * (run.noise * rng.random())
        return inputs.float(), truth


def random_affine(run: VolumeRun, *, shape: tuple[int, ...], rng: np.random.Generator) -> Affine:
    """Leads from a corner coordinate (z, y, x, 1) of a patch to one of the volume, (3, 4).

    Unless the patch is warped, voxels fall on voxels.
    """
    turn = np.diag([rng.choice([-1.0, 1.0]) if axis in run.flip else 1.0 for axis in run.axes])
    starts = [_start(patch, n, rng) for patch, n in zip(run.patch, shape, strict=True)]
    if rng.random() < run.warped:
        for angle, (a, b) in zip(_angles(run, rng), ((0, 1), (0, 2), (1, 2)), strict=True):
            plane = np.eye(3)
            plane[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
            turn = turn @ plane
        smallest, largest = np.log(run.zoom)
        turn = turn / np.exp(rng.uniform(smallest, largest, size=3))
    # The middle of the volume stays where the random place puts it.
    middle = np.array(shape) / 2
    return np.column_stack([turn, middle - turn @ (middle + starts)])


def _angles(run: VolumeRun, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.radians(rng.uniform(-run.rotation_deg, run.rotation_deg, size=3))


def _start(patch: int, length: int, rng: np.random.Generator) -> int:
    """Where in a patch a volume begins; negative where it is longer."""
    low, high = sorted((0, patch - length))
    return int(rng.integers(low, high + 1))


def resample(
    image: Tensor, truth: Indices, affine: Affine, *, size: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Image (C, *size), linear, and truth (*size) int64, nearest, at the places that `affine` gives."""
    shape = np.array(truth.shape)
    corners = [torch.arange(n, dtype=torch.float64) + 0.5 for n in size]
    places = torch.stack([*torch.meshgrid(*corners, indexing="ij"), torch.ones(size)], dim=-1)
    at = places.double() @ torch.from_numpy(affine).T  # (*size, 3)
    grid = (2 * at / torch.from_numpy(shape) - 1).flip(-1).float()[None]  # x, y, z in -1..1
    values = functional.grid_sample(image[None], grid, mode="bilinear", align_corners=False)
    marks = torch.from_numpy(truth.astype(np.float32) + 1)[None, None]  # 0 is outside
    marks = functional.grid_sample(marks, grid, mode="nearest", align_corners=False)[0, 0].long() - 1
    return values[0], torch.where(marks < 0, VOID, marks)
