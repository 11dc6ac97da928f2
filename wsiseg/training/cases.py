"""The cases of a run, opened on the run's grid and checked before any time is spent."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from wsiseg.annotations import open_truth
from wsiseg.annotations.labels import Indices, Labels
from wsiseg.classes import VOID
from wsiseg.errors import ManifestError, SourceError
from wsiseg.files import fingerprint
from wsiseg.geometry import Geometry, Region, clip, region_shape, relative_to
from wsiseg.manifest import CaseRow, Manifest, read_manifest
from wsiseg.models.card import sha256_of
from wsiseg.preprocess import CaseStats, fit
from wsiseg.resample import nearest
from wsiseg.sources import Source, image_files, open_source
from wsiseg.sources.base import Array
from wsiseg.sources.resampled import LevelChoice, at_level, choose_level
from wsiseg.sources.volume import VolumeSource
from wsiseg.training.census import Census, take_census
from wsiseg.training.run import Run

HELD_BYTES = 1 << 31
"""Pixels of the first cases that fit into this are held in memory; others are read region by region."""


class ResampledLabels:
    """Labels on another grid over the same extent, by pixel centres."""

    def __init__(self, labels: Labels, shape: tuple[int, ...]) -> None:
        self._labels = labels
        self.shape = shape

    def read(self, region: Region) -> Indices:
        sizes = zip(region, self.shape, self._labels.shape, strict=True)
        places = [nearest(part, size=n, from_size=m) for part, n, m in sizes]
        values = self._labels.read(tuple(slice(int(p[0]), int(p[-1]) + 1) for p in places))
        return values[np.ix_(*(p - p[0] for p in places))]


@dataclass(frozen=True, eq=False)
class Case:
    """A case on the run's grid; without labels where nobody has drawn any.

    `given` are they as drawn, on the `grid` of the file.
    """

    row: CaseRow
    source: Source
    grid: Geometry
    given: Labels | None
    stats: CaseStats | None
    census: Census
    diagnosis: int | None
    fingerprint: str
    hold: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels per axis."""
        return self.source.geometry.shape

    @cached_property
    def labels(self) -> Labels | None:
        """What was drawn, on the run's grid."""
        if self.given is None or self.given.shape == self.shape:
            return self.given
        return ResampledLabels(self.given, self.shape)

    @cached_property
    def _held(self) -> tuple[Array, Indices] | None:
        if not self.hold:
            return None
        values, truth = self._decode(self.source.geometry.whole)
        return np.array(values, order="C"), truth

    def _decode(self, inside: Region) -> tuple[Array, Indices]:
        pixels = self.source.read(inside)
        truth = np.full(region_shape(inside), VOID, np.uint8)
        if self.labels is not None:
            truth[:] = self.labels.read(inside)
        if not pixels.all_valid:
            truth[~pixels.valid] = VOID
        return pixels.values, truth

    @property
    def size(self) -> int:
        """Bytes of pixels and truth."""
        return math.prod(self.shape) * (self.source.num_channels * self.source.dtype.itemsize + 1)

    def truth(self, inside: Region) -> Indices:
        """Class indices of a region inside the image; some of their pixels may not be readable."""
        assert self.labels is not None
        return self.labels.read(inside) if self._held is None else self._held[1][inside]

    def has_labels(self, region: Region) -> bool:
        """True where some pixel of a region of the run's grid is labelled."""
        return bool((self.truth(clip(region, self.shape)) != VOID).any())

    def read(self, region: Region) -> tuple[Array, Indices]:
        """Pixels (C, *region) as in the file and truth (*region); outside of the image truth is VOID."""
        inside = clip(region, self.shape)
        if self._held is None:
            values, truth = self._decode(inside)
        else:
            values, truth = self._held[0][(slice(None), *inside)], self._held[1][inside]
        if inside == region:
            return values, truth
        size, at = region_shape(region), relative_to(inside, region)
        around = np.full((len(values), *size), self.source.outside, values.dtype)
        marks = np.full(size, VOID, np.uint8)
        around[(slice(None), *at)], marks[at] = values, truth
        return around, marks


@dataclass(frozen=True)
class Cases:
    """The cases of a run by what they serve."""

    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]

    @property
    def fingerprints(self) -> dict[str, str]:
        """What identifies the files of every case."""
        return {case.row.case: case.fingerprint for case in (*self.train, *self.validation, *self.test)}


def open_cases(run: Run) -> Cases:
    """Every case that a run uses. Raises WsisegError with one sentence for the first that cannot be used."""
    manifest = read_manifest(run.data.manifest, root=run.data.root)
    check_splits(manifest)
    wanted = ("train", "validation", *(("test",) if run.validation.test else ()))
    rows = {split: [r for r in manifest.cases if (r.split or "train") == split] for split in wanted}
    if not rows["train"]:
        raise ManifestError("the manifest has no case whose split is train or empty")
    room = HELD_BYTES
    opened: dict[str, tuple[Case, ...]] = {}
    for split in ("train", "validation", "test"):
        found = [open_case(run, manifest, row) for row in rows.get(split, ())]
        for number, case in enumerate(found):
            if case.size <= room:
                room -= case.size
                found[number] = dataclasses.replace(case, hold=True)
        opened[split] = tuple(found)
    cases = Cases(**opened)
    if run.pretext is None:
        _check_classes(run, cases.train)
    return cases


def check_splits(manifest: Manifest) -> None:
    """Raises ManifestError for a patient in two splits."""
    seen: dict[str, str] = {}
    for row in manifest.cases:
        split = row.split or "train"
        other = seen.setdefault(row.patient, split)
        if other != split:
            raise ManifestError(
                f"patient {row.patient!r} is in {other} and, by case {row.case!r}, in {split}; "
                "splits are by patient: put all cases of a patient into one"
            )


def class_counts(cases: Sequence[Case], *, num_classes: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Pixels of every class in some cases, (K,)."""
    total = np.zeros(num_classes, np.int64)
    for case in cases:
        total += case.census.total
    return total


def _check_classes(run: Run, cases: Sequence[Case]) -> None:
    counts = class_counts(cases, num_classes=len(run.mask_classes))
    empty = [c.name for c in run.mask_classes if not counts[c.index] and not _made_of_glass(run, c.index)]
    if empty and not run.data.allow_empty_classes:
        raise ManifestError(
            f"class {empty[0]!r} has no pixel in the cases trained on; label some, take the class out, or "
            "set data.allow_empty_classes: true"
        )
    if not counts.any():
        raise ManifestError("the cases trained on have no labelled pixel; their annotations are all void")


def _made_of_glass(run: Run, index: int) -> bool:
    return index == run.background and run.patches.glass_share > 0


def open_case(run: Run, manifest: Manifest, row: CaseRow) -> Case:
    """A row of a manifest, opened and checked. Raises WsisegError."""
    path = manifest.resolve(row.path)
    source = open_source(path, row.mpp, modalities=run.data.modalities or None)
    if source.geometry.axes != run.axes or source.num_channels != run.channels:
        raise ManifestError(
            f"case {row.case!r} has {source.num_channels} channels on axes {source.geometry.axes}; the run "
            f"trains on {run.channels} on {run.axes}"
        )
    if isinstance(source, VolumeSource):
        source.check()
    choice = _on_grid(run, source, row)
    own = at_level(choice, choice.level)
    given = None if run.pretext else _labels(run, manifest, row, source)
    count = len(run.mask_classes)
    case = Case(
        row=row,
        source=own,
        grid=source.geometry,
        given=given,
        stats=fit(own, run.preprocessing),
        census=Census.empty(count),
        diagnosis=_diagnosis(run, row),
        fingerprint=" ".join(_identify(manifest, row, with_truth=given is not None)),
    )
    if case.labels is None:
        return case
    return dataclasses.replace(case, census=take_census(case.labels, num_classes=count))


def _identify(manifest: Manifest, row: CaseRow, *, with_truth: bool) -> Iterator[str]:
    """Hashes of image and annotation. Raises ManifestError for an image that is not the manifest's."""
    path = manifest.resolve(row.path)
    found = fingerprint(path, files=image_files(path))
    if row.sha256 is not None:
        # Of large files the fingerprint is not the hash of the whole; a folder has none.
        whole = found.get("sha256") or (sha256_of(path) if path.is_file() else "")
        if whole != row.sha256:
            raise ManifestError(f"case {row.case!r}: {row.path} has another sha256 than the manifest says")
    yield from found.values()
    if with_truth and row.annotation is not None:
        yield from fingerprint(manifest.resolve(row.annotation)).values()


def _on_grid(run: Run, source: Source, row: CaseRow) -> LevelChoice:
    """The level to read and the grid to resample it to."""
    try:
        return choose_level(source, spacing=run.wanted_spacing, allow_upsampling=run.data.allow_upsampling)
    except SourceError:
        found, wanted = (" x ".join(f"{s:.4g}" for s in spacing)
                         for spacing in (source.geometry.spacing, run.wanted_spacing))  # fmt: skip
        raise ManifestError(
            f"case {row.case!r} has pixels of {found} µm, coarser than the {wanted} that the run trains at; "
            "leave it out or set data.allow_upsampling: true"
        ) from None


def _labels(run: Run, manifest: Manifest, row: CaseRow, source: Source) -> Labels:
    if row.annotation is None:
        raise ManifestError(f"case {row.case!r} has no annotation; training needs one for each case")
    return open_truth(
        manifest.resolve(row.annotation),
        geometry=source.geometry,
        classes=run.mask_classes,
        native=source.native if isinstance(source, VolumeSource) else None,
    )


def _diagnosis(run: Run, row: CaseRow) -> int | None:
    """Index of the diagnosis of a case, None where the run learns none."""
    if not run.diagnoses:
        return None
    if row.diagnosis not in run.diagnoses:
        raise ManifestError(
            f"case {row.case!r} has diagnosis {row.diagnosis!r}; the run knows {', '.join(run.diagnoses)}"
        )
    return run.diagnoses.index(row.diagnosis)
