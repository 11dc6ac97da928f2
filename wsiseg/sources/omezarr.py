"""OME-Zarr images (NGFF 0.4 and 0.5) as sources, pyramid included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.errors import BaseZarrError

from wsiseg.bounded import LARGEST_RECORD, in_short, shown
from wsiseg.errors import MissingSpacing, ObjectStoreError, SourceError, UnreadableSource
from wsiseg.geometry import Geometry, Region, Unit
from wsiseg.objects import zarr_place
from wsiseg.sources.base import (
    MOST_LEVELS,
    WHITE,
    Array,
    Pixels,
    Source,
    check_size,
    everywhere,
    inside_part,
    pad_outside,
    tile_by_tile,
)

_UNITS: dict[str, tuple[Unit, float]] = {
    "micrometer": ("micrometer", 1.0),
    "nanometer": ("micrometer", 1e-3),
    "millimeter": ("millimeter", 1.0),
}


KINDS = {"yx": ("u1",), "zyx": ("u1", "u2", "i2", "f4")}
"""Types of values, by axes."""
_DECODE_ERRORS = (RuntimeError, ValueError, OSError, MemoryError)


class ZarrLevel:
    """One array of a multiscale image, its channel axis first if it has one."""

    def __init__(
        self, arrays: Sequence[zarr.Array[Any]], geometries: Sequence[Geometry], *, has_channels: bool
    ) -> None:
        self._arrays = arrays
        self._geometries = geometries
        self._has_channels = has_channels
        array = arrays[0]
        self.geometry = geometries[0]
        self.num_channels = int(array.shape[0]) if has_channels else 1
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        # Slides are glass outside; round a volume there is nothing.
        self.outside = WHITE if self.geometry.axes == "yx" else 0
        self.format = "OME-Zarr"
        shards = array.shards or array.chunks
        self.block = tuple(min(n, 1024) for n in shards[-len(self.geometry.shape) :])

    @property
    def levels(self) -> Sequence[Source]:
        return [
            ZarrLevel(self._arrays[n:], self._geometries[n:], has_channels=self._has_channels)
            for n in range(len(self._arrays))
        ]

    def read(self, region: Region) -> Pixels:
        placed = inside_part(region, self.geometry)
        try:
            pixels = Pixels(self._values(placed), everywhere(placed))
        except ObjectStoreError:  # says nothing of the pixels
            raise
        except _DECODE_ERRORS:
            tile = self._arrays[0].chunks[-len(placed) :]
            pixels = tile_by_tile(
                placed, tile=tile, channels=self.num_channels, decode=self._values_or_none, dtype=self.dtype
            )
        return pad_outside(pixels, placed=placed, region=region, fill=self.outside)

    def _values_or_none(self, region: Region) -> Array | None:
        try:
            return self._values(region)
        except ObjectStoreError:
            raise
        except _DECODE_ERRORS:
            return None

    def _values(self, region: Region) -> Array:
        array = self._arrays[0]
        if not self._has_channels:
            return np.asarray(array[region])[None]
        return np.asarray(array[(slice(None), *region)])


def open_group(path: Path) -> tuple[zarr.Group, Mapping[str, Any]]:
    """An OME-Zarr group and its NGFF metadata. Raises UnreadableSource."""
    for name in ("zarr.json", ".zgroup", ".zattrs", ".zmetadata"):
        file = path / name
        if file.is_file() and file.stat().st_size > LARGEST_RECORD:
            raise UnreadableSource(f"{file} has {file.stat().st_size} bytes, which no description needs")
    try:
        group = zarr.open_group(zarr_place(path), mode="r")
    except ObjectStoreError:
        raise
    except (BaseZarrError, OSError, ValueError, TypeError, KeyError, AttributeError) as err:
        raise UnreadableSource(f"{path} cannot be opened as OME-Zarr: {in_short(err)}") from None
    except RecursionError:
        raise UnreadableSource(f"{path} cannot be opened as OME-Zarr: it is nested too deep") from None
    attributes = dict(group.attrs)
    ome = attributes.get("ome", attributes)
    return group, ome if isinstance(ome, Mapping) else {}


def open_multiscale(path: Path, *, mpp: float | None = None) -> ZarrLevel:
    """The finest level of an OME-Zarr image or label.

    Raises UnreadableSource, SourceError for axes that are neither (c)yx nor (c)zyx or pixels that
    are not 8 bit, MissingSpacing if a unit is missing and `mpp` was not given.
    """
    try:
        return _multiscale(path, mpp=mpp)
    except KeyError as err:
        raise UnreadableSource(f"{path} has multiscales metadata without {shown(err.args[0])}") from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as err:
        raise UnreadableSource(f"{path} has multiscales metadata that make no sense: {shown(err)}") from None


def _multiscale(path: Path, *, mpp: float | None) -> ZarrLevel:
    group, ome = open_group(path)
    if "multiscales" not in ome:
        raise UnreadableSource(f"{path} is a zarr group without OME multiscales metadata")
    multiscale = ome["multiscales"][0]
    axes = multiscale.get("axes", [])
    names = "".join(str(axis["name"]) for axis in axes)
    spatial = names.removeprefix("c")
    if spatial not in ("yx", "zyx"):
        raise SourceError(f"{path} has axes {names!r}; yx and zyx, with or without c before, are supported")
    arrays, geometries = [], []
    if len(multiscale["datasets"]) > MOST_LEVELS:
        raise SourceError(
            f"{path} claims {len(multiscale['datasets'])} levels; at most {MOST_LEVELS} are read"
        )
    for dataset in multiscale["datasets"]:
        if not (path / str(dataset["path"])).resolve().is_relative_to(path.resolve()):
            raise SourceError(f"{path} names a level outside itself: {shown(dataset['path'])}")
        array = group.get(dataset["path"])
        if array is None:
            level = shown(dataset["path"])
            raise UnreadableSource(f"{path} has no level {level}, which its metadata name; copy all of it")
        known = KINDS[spatial]
        if not isinstance(array, zarr.Array) or array.dtype.kind + str(array.dtype.itemsize) not in known:
            raise SourceError(
                f"{path}, level {dataset['path']!r}: an array of {getattr(array, 'dtype', 'no')} values; "
                f"{', '.join(np.dtype(k).name for k in known)} are supported"
            )
        check_size(path, array.shape, tile=array.shards or array.chunks)
        arrays.append(array)
        geometries.append(_geometry(path, axes, dataset, array, spatial=spatial, mpp=mpp))
    if mpp is not None:
        geometries = [_at_mpp(g, geometries[0], mpp) for g in geometries]
    return ZarrLevel(arrays, geometries, has_channels=names.startswith("c"))


def _geometry(
    path: Path,
    axes: Sequence[Mapping[str, Any]],
    dataset: Mapping[str, Any],
    array: zarr.Array[Any],
    *,
    spatial: str,
    mpp: float | None,
) -> Geometry:
    scale = next(
        (t["scale"] for t in dataset.get("coordinateTransformations", []) if t["type"] == "scale"), None
    )
    units = {axis.get("unit") for axis in axes[-len(spatial) :]}
    if len(units) == 1 and scale is not None and (unit := _UNITS.get(str(*units))) is not None:
        name, factor = unit
        if spatial == "yx" and name == "millimeter":  # slides are in µm everywhere inside
            name, factor = "micrometer", 1000.0
    elif mpp is not None:
        name, factor, scale = "micrometer", 1.0, scale or [1.0] * len(axes)
    else:
        raise MissingSpacing(
            f"{path} does not state its pixel size in a known unit; give it in µm per pixel with --mpp"
        )
    spacing = tuple(float(s) * factor for s in scale[-len(spatial) :])
    return Geometry(axes=spatial, shape=tuple(array.shape[-len(spatial) :]), spacing=spacing, unit=name)


def _at_mpp(geometry: Geometry, finest: Geometry, mpp: float) -> Geometry:
    spacing = tuple(mpp * s / f for s, f in zip(geometry.spacing, finest.spacing, strict=True))
    return Geometry(axes=geometry.axes, shape=geometry.shape, spacing=spacing, unit="micrometer")


def open_labels(path: Path) -> ZarrLevel:
    """The finest level of a label image: `path` is its group, or that of an image with one label.

    Raises UnreadableSource or SourceError.
    """
    inner = path / "labels"
    if inner.is_dir():
        names = open_group(inner)[1].get("labels", [])
        if not isinstance(names, Sequence) or len(names) != 1:
            raise SourceError(f"{path} has labels {names}; name one of them, as {inner}/NAME")
        path = inner / str(names[0])
        if not path.resolve().is_relative_to(inner.resolve()):
            raise SourceError(f"{inner} names a label outside itself: {names[0]!r}")
    return open_multiscale(path, mpp=1.0)  # only the grid of a label matters
