"""What is said of a segmented volume: overlap, surface distances and volumes of classes and of groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from wsiseg.classes import VOID, MaskClass
from wsiseg.groups import ClassGroup, check_groups
from wsiseg.metrics import ConfusionMatrix
from wsiseg.surface import SurfaceDistances, surface_distances

MM3_PER_ML = 1000.0
UNDEFINED = SurfaceDistances(hausdorff_95=None, average=None)

Indices = NDArray[np.uint8]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class RegionScore(_Frozen):
    """Scores of one class or group.

    Where neither truth nor prediction has the region it is absent: overlap and distances are None, and
    it counts neither for nor against the prediction. Where only one has it, overlap is 0, distances
    are undefined (None) and `missing` says which lacks it.
    """

    name: str
    indices: tuple[int, ...] = Field(description="values in the mask that make up the region")
    dice: float | None
    iou: float | None
    hausdorff_95_mm: float | None = Field(description="larger of the two directed 95th percentiles")
    average_surface_distance_mm: float | None = Field(description="over the surface voxels of both sides")
    truth_ml: float
    predicted_ml: float
    volume_difference_ml: float = Field(description="predicted minus truth")
    relative_volume_difference: float | None = Field(
        description="predicted minus truth, per truth; 0.1 is 10 % too large; None where truth has none"
    )
    missing: Literal["prediction", "truth"] | None = Field(
        description="the side without the region where the other side has it"
    )

    @property
    def absent(self) -> bool:
        """True where neither truth nor prediction has the region."""
        return self.dice is None


class VolumeScores(_Frozen):
    """Agreement of a predicted volume with truth over all counted voxels."""

    classes: tuple[RegionScore, ...]
    groups: tuple[RegionScore, ...]
    mean_dice: float | None = Field(description="over classes that are present, without the background")
    counted_voxels: int
    void_voxels: int
    spacing_mm: tuple[float, ...] = Field(description="z, y, x")

    @classmethod
    def of(
        cls,
        regions: Sequence[RegionScore],
        *,
        num_classes: int,
        matrix: ConfusionMatrix,
        background: int | None,
        spacing_mm: Sequence[float],
    ) -> Self:
        """Scores from those of the classes, followed by those of the groups."""
        classes = tuple(regions[:num_classes])
        present = [r.dice for r in classes if r.dice is not None and r.indices != (background,)]
        return cls(
            classes=classes,
            groups=tuple(regions[num_classes:]),
            mean_dice=sum(present) / len(present) if present else None,
            counted_voxels=int(matrix.counts.sum()),
            void_voxels=matrix.void,
            spacing_mm=tuple(spacing_mm),
        )


def volume_scores(
    truth: Any,
    prediction: Any,
    *,
    classes: Sequence[MaskClass],
    groups: Sequence[ClassGroup] = (),
    spacing_mm: Sequence[float],
    background: int | None = None,
) -> VolumeScores:
    """Scores of every class and group; `truth` and `prediction` are uint8 arrays (z, y, x) or read as such.

    A voxel that is void on either side belongs to no region on both sides: it counts nowhere, and for
    surfaces it is outside like what lies beyond the border of the volume. The surface of the
    `background` class says nothing, so its distances stay None. Both volumes are held whole (1 byte
    per voxel each) and regions are taken one after the other: their masks add 2 bytes per voxel, the
    distances 15 per voxel of the box round a region. Raises ValueError.
    """
    truth, prediction = (_indices(a, name=n) for a, n in ((truth, "truth"), (prediction, "prediction")))
    _check(truth, classes, groups, spacing_mm)
    matrix = _confusion(truth, prediction, num_classes=len(classes))
    named = [ClassGroup(name=c.name, indices=(c.index,)) for c in classes]
    regions = []
    for group in (*named, *groups):
        wanted = group.indices != (background,) and _in_both(matrix, group)
        distances = _distances(truth, prediction, group, spacing_mm) if wanted else UNDEFINED
        regions.append(_region_score(group, matrix, distances, voxel_ml=math.prod(spacing_mm) / MM3_PER_ML))
    return VolumeScores.of(
        regions, num_classes=len(classes), matrix=matrix, background=background, spacing_mm=spacing_mm
    )


def _indices(array: Any, *, name: str) -> Indices:
    """A volume in memory; what is there already is not copied."""
    values = np.asarray(array)
    if values.dtype != np.uint8:
        raise ValueError(f"{name} has {values.dtype} values; class indices are uint8")
    if values.ndim != 3:
        raise ValueError(f"{name} has shape {values.shape}; a volume has three axes: z, y, x")
    return values


def _check(
    truth: Indices, classes: Sequence[MaskClass], groups: Sequence[ClassGroup], spacing_mm: Sequence[float]
) -> None:
    if [c.index for c in classes] != list(range(len(classes))):
        raise ValueError("classes must be numbered 0, 1, 2, ... in order")
    check_groups(groups, classes)
    if len(spacing_mm) != truth.ndim or any(not (math.isfinite(s) and s > 0) for s in spacing_mm):
        raise ValueError(
            f"spacing {tuple(spacing_mm)} must be three finite and positive sizes in mm: z, y, x"
        )


def _confusion(truth: Indices, prediction: Indices, *, num_classes: int) -> ConfusionMatrix:
    """Counts plane by plane: a matrix of everything at once takes 8 bytes per voxel."""
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    total = ConfusionMatrix.empty(num_classes)
    for t, p in zip(truth, prediction, strict=True):
        total += ConfusionMatrix.of(truth=t, prediction=p, num_classes=num_classes)
    return total


def _sizes(matrix: ConfusionMatrix, group: ClassGroup) -> tuple[int, int, int]:
    """Voxels of a region in truth, in prediction, and in both."""
    chosen = list(group.indices)
    of_truth, of_prediction = matrix.counts[chosen], matrix.counts[:, chosen]
    return int(of_truth.sum()), int(of_prediction.sum()), int(of_truth[:, chosen].sum())


def _in_both(matrix: ConfusionMatrix, group: ClassGroup) -> bool:
    truth, predicted, _ = _sizes(matrix, group)
    return truth > 0 and predicted > 0


def _distances(
    truth: Indices, prediction: Indices, group: ClassGroup, spacing_mm: Sequence[float]
) -> SurfaceDistances:
    masks = [np.zeros(truth.shape, np.bool_) for _ in range(2)]
    # Plane by plane, so that what is needed in between is not another volume.
    for planes in zip(truth, prediction, *masks, strict=True):
        t, p, of_truth, of_prediction = planes
        counted = (t != VOID) & (p != VOID)
        of_truth[:] = np.isin(t, group.indices, kind="table") & counted
        of_prediction[:] = np.isin(p, group.indices, kind="table") & counted
    return surface_distances(masks[0], masks[1], spacing=spacing_mm)


def _region_score(
    group: ClassGroup, matrix: ConfusionMatrix, distances: SurfaceDistances, *, voxel_ml: float
) -> RegionScore:
    truth, predicted, hits = _sizes(matrix, group)
    somewhere = truth + predicted > 0
    missing: Literal["prediction", "truth"] | None = None
    if somewhere and 0 in {truth, predicted}:
        missing = "truth" if predicted else "prediction"
    return RegionScore(
        name=group.name,
        indices=group.indices,
        dice=2 * hits / (truth + predicted) if somewhere else None,
        iou=hits / (truth + predicted - hits) if somewhere else None,
        hausdorff_95_mm=distances.hausdorff_95,
        average_surface_distance_mm=distances.average,
        truth_ml=truth * voxel_ml,
        predicted_ml=predicted * voxel_ml,
        volume_difference_ml=(predicted - truth) * voxel_ml,
        relative_volume_difference=(predicted - truth) / truth if truth else None,
        missing=missing,
    )
