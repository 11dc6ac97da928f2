"""Pathologists' marks, in whatever file they come, as class indices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsiseg.annotations.geojson import polygon_region, polygon_truth
from wsiseg.annotations.labels import Indices, Labels, check_indices, check_size, open_index_image
from wsiseg.classes import MaskClass
from wsiseg.errors import AnnotationError
from wsiseg.geometry import Geometry, Region
from wsiseg.sources.base import Source
from wsiseg.sources.omezarr import open_labels

__all__ = ["Indices", "Labels", "open_truth", "polygon_region"]


class SourceLabels:
    """A one-channel source read as class indices."""

    def __init__(self, source: Source, *, classes: Sequence[MaskClass], name: str) -> None:
        self._source = source
        self._classes = classes
        self._name = name
        self.shape = source.geometry.shape

    def read(self, region: Region) -> Indices:
        values = np.asarray(self._source.read(region).values[0])
        return check_indices(values, classes=self._classes, name=self._name)


def open_truth(path: Path, *, geometry: Geometry, classes: Sequence[MaskClass]) -> Labels:
    """Annotations on the grid of a prediction: class-index image, OME-Zarr labels or GeoJSON.

    Raises AnnotationError where the file is of no known kind, lies on another grid, or names a class
    that is not among `classes`; UnreadableSource where it cannot be read.
    """
    labels: Labels
    if not path.exists():
        raise AnnotationError(f"no such annotation: {path}")
    if path.is_dir():
        source = open_labels(path)
        if source.num_channels != 1:
            raise AnnotationError(f"{path} has {source.num_channels} channels; labels have none")
        labels = SourceLabels(source, classes=classes, name=str(path))
    elif path.suffix.lower() in (".geojson", ".json"):
        return polygon_truth(path, classes=classes, grid=geometry.shape)
    else:
        labels = open_index_image(path, classes=classes)
    check_size(labels.shape, geometry=geometry, name=str(path))
    return labels
