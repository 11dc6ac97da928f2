"""Training patches cut at random from the cases of a manifest, straight from their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wsiseg.annotations.labels import Indices, Labels, check_size, open_index_image
from wsiseg.classes import MaskClass
from wsiseg.errors import ManifestError
from wsiseg.geometry import Region, region_shape
from wsiseg.manifest import CaseRow, Manifest
from wsiseg.models.card import sha256_of
from wsiseg.sources import Source, open_source
from wsiseg.sources.resampled import AS_IT_IS
from wsiseg.training.augment import Rgb, flip_and_turn, jitter_stain


@dataclass(frozen=True)
class TrainingCase:
    """An opened case: image and truth on one grid."""

    row: CaseRow
    source: Source
    truth: Labels

    def whole(self) -> tuple[Tensor, Indices]:
        """Image (1, C, *axes) uint8 and truth (*axes)."""
        region = self.source.geometry.whole
        return torch.from_numpy(self.source.read(region).values.copy())[None], self.truth.read(region)


def open_cases(
    manifest: Manifest, classes: Sequence[MaskClass], *, mpp: float | None = None
) -> list[TrainingCase]:
    """Image and truth of every row that may be trained on (split `train` or none).

    Raises WsisegError where a row cannot be used: a file with another sha256 than the manifest says,
    or pixels that are not of `mpp` µm, if that is given.
    """
    cases = []
    rows = [row for row in manifest.cases if row.split in (None, "train")]
    if not rows:
        raise ManifestError("the manifest has no case whose split is train or empty")
    for row in rows:
        if row.sha256 is not None and sha256_of(manifest.resolve(row.path)) != row.sha256:
            raise ManifestError(f"case {row.case!r}: {row.path} has another sha256 than the manifest says")
        if row.annotation is None:
            raise ManifestError(f"case {row.case!r} has no annotation; training needs one for each case")
        source = open_source(manifest.resolve(row.path), mpp=row.mpp)
        truth = open_index_image(manifest.resolve(row.annotation), classes=classes)
        check_size(truth.shape, geometry=source.geometry, name=str(Path(row.annotation)))
        found = max(source.geometry.spacing)
        if mpp is not None and abs(found / mpp - 1) >= AS_IT_IS:
            raise ManifestError(
                f"case {row.case!r} has pixels of {found:.4g} µm, the run trains at {mpp:.4g}: "
                "resample it first"
            )
        cases.append(TrainingCase(row, source, truth))
    return cases


@dataclass(frozen=True)
class PatchSampler:
    """Draws batches of patches of `size` pixels: mosaics of pieces from different cases.

    Each piece is zoomed, flipped, turned and re-stained at random. What lies far away in a mosaic
    says nothing about a pixel, so that a network learns to decide by what is near, and a small halo
    serves at inference. Some pieces (`glass_share`) are bare glass of class `glass`.
    """

    cases: Sequence[TrainingCase]
    size: int
    zoom: tuple[float, float]
    stain_jitter: float
    min_piece: int
    glass_share: float
    glass: int | None

    def batch(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images (B, 3, size, size) uint8 and truths (B, size, size) int64."""
        pairs = [self._mosaic(rng) for _ in range(count)]
        images = torch.from_numpy(np.stack([image for image, _ in pairs]))
        truths = torch.from_numpy(np.stack([truth for _, truth in pairs]))
        return images.permute(0, 3, 1, 2), truths.long()

    def _mosaic(self, rng: np.random.Generator) -> tuple[Rgb, Indices]:
        image = np.empty((self.size, self.size, 3), np.uint8)
        truth = np.empty((self.size, self.size), np.uint8)
        whole = (slice(0, self.size), slice(0, self.size))
        for place in _cut(whole, self.min_piece, rng):
            height, width = region_shape(place)
            piece, marks = self._piece(max(height, width), rng)
            image[place], truth[place] = piece[:height, :width], marks[:height, :width]
        return image, truth

    def _piece(self, size: int, rng: np.random.Generator) -> tuple[Rgb, Indices]:
        """A square of `size` pixels of one case, or of glass."""
        if self.glass is not None and rng.random() < self.glass_share:
            color = rng.uniform(222, 255) + rng.uniform(-4, 4, size=3)
            noise = rng.normal(0, rng.uniform(0, 4), size=(size, size, 3))
            glass = np.clip(color + noise, 0, 255).astype(np.uint8)
            return glass, np.full((size, size), self.glass, np.uint8)
        case = self.cases[int(rng.integers(len(self.cases)))]
        side = max(1, round(size / float(np.exp(rng.uniform(*np.log(self.zoom))))))
        region = _random_region(case.source.geometry.shape, side, rng)
        image = np.moveaxis(case.source.read(region).values, 0, -1)
        image, truth = flip_and_turn(image, case.truth.read(region), rng)
        if self.stain_jitter:
            image = jitter_stain(image, rng, strength=self.stain_jitter)
        return _resize(image, truth, size)


def _cut(place: Region, smallest: int, rng: np.random.Generator) -> list[Region]:
    """A rectangle cut in two at random, and again, while pieces of at least `smallest` pixels remain."""
    sides = region_shape(place)
    axis = int(sides[1] > sides[0])
    # A piece that could be cut may stay whole, so that all sizes occur.
    if sides[axis] < 2 * smallest or rng.random() < 0.15:
        return [place]
    at = place[axis].start + int(rng.integers(smallest, sides[axis] - smallest + 1))
    first, second = list(place), list(place)
    first[axis], second[axis] = slice(place[axis].start, at), slice(at, place[axis].stop)
    return [*_cut(tuple(first), smallest, rng), *_cut(tuple(second), smallest, rng)]


def _resize(image: Rgb, truth: Indices, size: int) -> tuple[Rgb, Indices]:
    """Image and truth at `size` pixels a side."""
    if image.shape[:2] == (size, size):
        return image, truth
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]  # (1, 3, y, x)
    y = torch.from_numpy(truth.copy())[None, None]
    x = functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
    y = functional.interpolate(y, (size, size), mode="nearest-exact")
    return x[0].permute(1, 2, 0).numpy(), y[0, 0].numpy()


def _random_region(shape: tuple[int, ...], side: int, rng: np.random.Generator) -> Region:
    lengths = [min(side, n) for n in shape]
    starts = [int(rng.integers(n - length + 1)) for n, length in zip(shape, lengths, strict=True)]
    return tuple(slice(a, a + length) for a, length in zip(starts, lengths, strict=True))
