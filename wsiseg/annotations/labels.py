"""Truth as a grid of class indices that can be read region by region."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsiseg.classes import VOID, MaskClass
from wsiseg.errors import AnnotationError
from wsiseg.geometry import Geometry, Region
from wsiseg.sources.base import Array
from wsiseg.sources.picture import SUFFIXES, read_picture
from wsiseg.sources.tiff import SUFFIXES as TIFF_SUFFIXES
from wsiseg.sources.tiff import TiffFile

Indices = NDArray[np.uint8]


class Labels(Protocol):
    """Class indices on a pixel grid; VOID where nothing is stated."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, region: Region) -> Indices:
        """Class indices of a region inside the grid, shape (*region). Raises AnnotationError."""
        ...


def check_indices(values: Indices, *, classes: Sequence[MaskClass], name: str) -> Indices:
    """The values, if each is a known class or VOID. Raises AnnotationError."""
    present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    unknown = [int(v) for v in present if v >= len(classes) and v != VOID]
    if unknown:
        raise AnnotationError(
            f"{name} has class {unknown[0]}, which the model does not know: its classes are "
            f"0 to {len(classes) - 1}, and {VOID} means not labelled"
        )
    return values


def decoded(array: Array, region: Region, *, name: str) -> NDArray[Any]:
    """The values of a region of an array. Raises AnnotationError where they cannot be decoded."""
    try:
        return np.asarray(array[region])
    except (RuntimeError, ValueError, OSError) as err:
        raise AnnotationError(
            f"{name} has pixels that cannot be decoded, near row {region[0].start}: {err}"
        ) from None


class IndexLabels:
    """A class-index image: anything that slices to (*region) or (*region, 3) with R = G = B."""

    def __init__(
        self,
        array: Array,
        *,
        classes: Sequence[MaskClass],
        name: str,
        shape: tuple[int, ...],
        keep: object = None,
    ) -> None:
        self._keep = keep  # the file that the array reads from, closed when nobody holds it
        self._array = array
        self._classes = classes
        self._name = name
        self.shape = shape

    def read(self, region: Region) -> Indices:
        values = decoded(self._array, region, name=self._name)
        if values.ndim > len(region):
            color = values[..., :3]
            if color.shape[-1] == 3 and not (color == color[..., :1]).all():
                raise AnnotationError(
                    f"{self._name} is a colour picture; a mask holds class indices (R = G = B = index)"
                )
            values = values[..., 0]
        if values.dtype.kind not in "ui" or (values.size and not 0 <= values.min() <= values.max() <= VOID):
            raise AnnotationError(f"{self._name} has {values.dtype} values; class indices are 0 to 255")
        return check_indices(values.astype(np.uint8), classes=self._classes, name=self._name)


def check_size(shape: tuple[int, ...], *, geometry: Geometry, name: str) -> None:
    """Raises AnnotationError unless a truth of `shape` covers the same pixels."""
    if shape != geometry.shape:
        axes = " x ".join(geometry.axes)
        raise AnnotationError(
            f"{name} has {' x '.join(map(str, shape))} pixels ({axes}), the prediction has "
            f"{' x '.join(map(str, geometry.shape))}: truth must lie on the same grid"
        )


def open_index_image(path: Path, *, classes: Sequence[MaskClass]) -> IndexLabels:
    """A class-index picture (PNG, TIFF; grey, palette, or RGB with R = G = B) as labels."""
    if path.suffix.lower() in TIFF_SUFFIXES:
        tiff = TiffFile(path)
        return IndexLabels(tiff.arrays[0], classes=classes, name=str(path), shape=tiff.shapes[0], keep=tiff)
    if path.suffix.lower() in SUFFIXES:
        array = read_picture(path, indices=True)
        return IndexLabels(array, classes=classes, name=str(path), shape=array.shape[:2])
    raise AnnotationError(
        f"{path} is not a known kind of annotation: a class-index PNG or TIFF, OME-Zarr labels, "
        "or marks of QuPath (.geojson), ASAP, ImageScope (.xml), HALO (.annotations) or NDP.view (.ndpa)"
    )
