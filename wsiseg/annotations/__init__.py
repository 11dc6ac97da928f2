"""Pathologists' marks, in whatever file they come, as class indices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsiseg.annotations.labels import Indices, Labels, check_indices, check_size, open_index_image
from wsiseg.annotations.polygons import polygon_region, polygon_truth
from wsiseg.annotations.reading import is_mark_file
from wsiseg.classes import VOID, MaskClass
from wsiseg.config import DRAWN, AnnotationRules
from wsiseg.errors import AnnotationError
from wsiseg.geometry import Geometry, Region
from wsiseg.sources.base import Source
from wsiseg.sources.native import Native
from wsiseg.sources.omezarr import open_labels
from wsiseg.sources.volume import VolumeSource
from wsiseg.sources.volumes import open_volume

__all__ = ["Indices", "Labels", "open_truth", "polygon_region"]


SAME_PLACE_MM = 1e-2
"""How far entries of two affines may lie apart: programs round them differently."""


class SourceLabels:
    """A one-channel source read as class indices."""

    def __init__(self, source: Source, *, classes: Sequence[MaskClass], name: str) -> None:
        self._source = source
        self._classes = classes
        self._name = name
        self.shape = source.geometry.shape

    def read(self, region: Region) -> Indices:
        values = np.asarray(self._source.read(region).values[0])
        if values.dtype != np.uint8:
            if values.size and not (values.min() >= 0 and values.max() <= VOID and (values % 1 == 0).all()):
                raise AnnotationError(f"{self._name} holds values that are no class indices (0 to 255)")
            values = values.astype(np.uint8)
        return check_indices(values, classes=self._classes, name=self._name)


def open_truth(
    path: Path,
    *,
    geometry: Geometry,
    classes: Sequence[MaskClass],
    native: Native | None = None,
    rules: AnnotationRules = DRAWN,
    slide: Path | None = None,
    sized: bool = True,
) -> Labels:
    """Annotations on the grid of a prediction: class-index image or volume, OME-Zarr labels, drawn marks.

    `native` is where a volume's own grid lies in the body; truth must lie there too. `rules` and `slide`, the
    file that they were drawn on, are for marks; without `sized` nobody knows the size of the grid's pixels.

    Raises AnnotationError where the file is of no known kind, lies on another grid, or names a class
    that is not among `classes`; UsageError for a table of other classes; UnreadableSource where it
    cannot be read.
    """
    labels: Labels
    if not path.exists():
        raise AnnotationError(f"no such annotation: {path}")
    if path.is_dir():
        source = open_labels(path)
        if source.num_channels != 1:
            raise AnnotationError(f"{path} has {source.num_channels} channels; labels have none")
        labels = SourceLabels(source, classes=classes, name=str(path))
    elif (volume := open_volume(path)) is not None:
        labels = label_volume(volume, path, classes=classes, native=native)
    elif is_mark_file(path):
        return polygon_truth(
            path,
            classes=classes,
            grid=geometry.shape,
            spacing=geometry.spacing if sized else None,
            rules=rules,
            slide=slide,
        )
    else:
        labels = open_index_image(path, classes=classes)
    check_size(labels.shape, geometry=geometry, name=str(path))
    return labels


def label_volume(
    volume: VolumeSource, path: Path, *, classes: Sequence[MaskClass], native: Native | None = None
) -> Labels:
    """Class indices of a volume of one channel that lies where `native` does. Raises AnnotationError."""
    if volume.num_channels != 1:
        raise AnnotationError(f"{path} has {volume.num_channels} channels; a label volume has one")
    if native is not None:
        apart = np.abs(volume.native.canonical_affine - native.canonical_affine).max()
        if apart > SAME_PLACE_MM:
            raise AnnotationError(
                f"{path} lies elsewhere than the volume: their affines differ by up to {apart:.3g} mm"
            )
    return SourceLabels(volume, classes=classes, name=str(path))
