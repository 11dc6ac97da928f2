"""What the viewer shows of a volume: slices, where they lie in the body, places of doubt."""

from __future__ import annotations

import io
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsiseg.annotations import open_truth
from wsiseg.classes import VOID
from wsiseg.errors import SourceError, UsageError
from wsiseg.geometry import Region
from wsiseg.planes import READ_SLICES, Read, busiest, usual_window
from wsiseg.report import Report
from wsiseg.sources import Source, open_source
from wsiseg.sources.native import Native
from wsiseg.sources.nifti import nifti_grid
from wsiseg.sources.omezarr import open_multiscale
from wsiseg.sources.volume import VolumeSource
from wsiseg.store import CaseStore
from wsiseg.viewer.places import Places, class_facts, layer_names, own_name, paired, report_of
from wsiseg.viewer.slices import SliceLayer
from wsiseg.windows import slabs

UNSURE_PLACES = 50
"""Of a case, the least sure first."""
UNSURE_VOXELS = 8
"""Voxels to a place of doubt, a side."""
THUMBNAIL_PX = 180


class VolumeCase:
    """The finished result of a volume (z, y, x) as the viewer shows it."""

    def __init__(self, store: CaseStore, *, name: str, places: Places) -> None:
        self.name = name
        self.store = store
        self._places = places

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels (z, y, x) of the mask."""
        return self.store.plan.shape

    @cached_property
    def report(self) -> Report | None:
        """What the run said, if it still lies beside the store."""
        return report_of(self.store.path)

    @cached_property
    def _image(self) -> Source | None:
        """The stored image, or the one that was named. Raises UsageError for one of another grid."""
        if self.store.plan.image_shape is not None:
            return open_multiscale(self.store.path)
        path = paired(self._places.images, self.store.path)
        if path is None:
            return None
        source = open_source(path)
        if source.geometry.shape != self.shape:
            raise UsageError(
                f"{path} has {source.geometry.shape} voxels, the mask of {self.name} has {self.shape}; "
                "name the image that was segmented"
            )
        return source

    @cached_property
    def native(self) -> Native | None:
        """Where the volume lies in the body: by its image, or by the NIfTI mask beside the store."""
        if isinstance(self._image, VolumeSource):
            return self._image.native
        path = self.store.path.with_name(f"{own_name(self.store.path)}.mask.nii.gz")
        try:
            found = nifti_grid(path) if path.is_file() else None
        except SourceError:
            return None
        return found if found is not None and found.geometry.shape == self.shape else None

    @cached_property
    def layers(self) -> dict[str, SliceLayer]:
        """Layers by name: mask, and image, confidence, truth where there are any."""
        layers = {"mask": self._layer(_one_channel(self.store.mask()))}
        if self._image is not None:
            layers["image"] = self._image_layer(self._image)
        if (sure := self.store.confidence()) is not None:
            layers["confidence"] = self._layer(_one_channel(sure))
        truth = paired(self._places.truth, self.store.path)
        if truth is not None:
            labels = open_truth(
                truth,
                geometry=self.store.geometry,
                classes=self.store.plan.classes,
                native=self.native,
            )
            layers["truth"] = self._layer(lambda region: labels.read(region)[None])
        return layers

    def forget(self) -> None:
        """Let go of images and slices in memory; they are read again when asked for."""
        for name in ("layers", "_image"):
            self.__dict__.pop(name, None)

    def _layer(self, read: Read) -> SliceLayer:
        dtype = np.dtype(np.uint8)
        return SliceLayer(read, shape=self.shape, grid=self.shape, dtype=dtype, chunk=self.store.plan.chunk)

    def _image_layer(self, image: Source) -> SliceLayer:
        return SliceLayer(
            lambda region: image.read(region).values,
            shape=image.geometry.shape,
            grid=self.shape,
            dtype=image.dtype,
            channels=image.num_channels,
            chunk=self.store.plan.chunk,
        )

    @cached_property
    def start(self) -> tuple[int, ...]:
        """The voxel to begin at: where each axis has most of what is not background."""
        background = next((c.index for c in self.store.plan.classes if c.name == "background"), None)
        mask = self.store.mask()
        return busiest(lambda region: np.asarray(mask[region]), self.shape, background=background)

    @cached_property
    def _intensities(self) -> list[dict[str, Any]]:
        """Per channel of the image: its name, what is shown black and white, and the extremes there."""
        layer, image = self.layers.get("image"), self._image
        if layer is None:
            return []
        names = getattr(image, "channel_names", [f"channel {n}" for n in range(layer.channels)])
        found = []
        for channel, name in enumerate(names):
            planes = [layer.slice(axis, at, channel=channel) for axis, at in enumerate(self.start)]
            low, high = usual_window(planes)
            least, most = (float(f([float(f(p)) for p in planes])) for f in (np.min, np.max))
            found.append({"name": name, "window": [low, high], "range": [least, most]})
        return found

    @cached_property
    def unsure(self) -> list[dict[str, float]]:
        """Cubes where the network was least sure, in that order: mean, and the least sure voxel (z, y, x)."""
        sure = self.store.confidence()
        if sure is None:
            return []
        found = []
        for slab in slabs(self.shape[0], rows=READ_SLICES):
            values = np.asarray(sure[slab.rows])
            found += [(mean, z + slab.rows.start, y, x) for mean, z, y, x in least_sure(values)]
        return [
            {"z": z, "y": y, "x": x, "confidence": mean} for mean, z, y, x in sorted(found)[:UNSURE_PLACES]
        ]

    def summary(self) -> dict[str, Any]:
        """What the list of cases shows."""
        scores = self.report.scores if self.report else None
        return {
            "name": self.name,
            "kind": "volume",
            "shape": list(self.shape),
            "layers": layer_names(self.store, self._places),
            "mean_iou": scores.mean_iou if scores else None,
        }

    def facts(self) -> dict[str, Any]:
        """Everything that a page needs to show the volume.

        `affine` leads from a voxel (x, y, z) to RAS mm; None where nothing says how the volume lies.
        """
        image = self.layers.get("image")
        return self.summary() | {
            "mm": [n if self.store.plan.unit == "millimeter" else n / 1000 for n in self.store.plan.spacing],
            "start": list(self.start),
            "affine": None if self.native is None else self.native.canonical_affine.tolist(),
            "dtype": None if image is None else image.dtype.name,
            "channels": self._intensities,
            "model": self.report.model["name"] if self.report else None,
            "classes": class_facts(self.store.plan.classes, self.report),
            "unsure": self.unsure,
        }

    @cached_property
    def thumbnail(self) -> bytes:
        """A small axial picture of the image, or of the mask where there is none, as PNG."""
        if channels := self._intensities:
            low, high = channels[0]["window"]
            plane = self.layers["image"].slice(0, self.start[0]).astype(np.float32)
            grey = np.clip((plane - low) / max(high - low, 1e-6), 0, 1) * 255
        else:
            plane = self.layers["mask"].slice(0, self.start[0])
            grey = np.where(plane == VOID, 0, plane) * (255 // max(1, len(self.store.plan.classes) - 1))
        down, across = self.store.plan.spacing[1:]
        height, width = plane.shape[0] * down, plane.shape[1] * across
        size = [max(1, round(n * THUMBNAIL_PX / max(height, width))) for n in (width, height)]
        picture = Image.fromarray(grey.astype(np.uint8)[::-1, ::-1].copy()).resize((size[0], size[1]))
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return stream.getvalue()


def _one_channel(array: Any) -> Read:
    def read(region: Region) -> NDArray[Any]:
        return np.asarray(array[region])[None]

    return read


def least_sure(sure: NDArray[np.uint8]) -> list[tuple[float, int, int, int]]:
    """Cubes of a confidence (z, y, x) by their mean, lowest first: mean 0..1, and their least sure voxel."""
    means, found = _cube_means(sure), []
    for at in np.argsort(means, axis=None)[:UNSURE_PLACES]:
        cube = np.unravel_index(at, means.shape)
        if np.isfinite(means[cube]):
            corner = [int(n) * UNSURE_VOXELS for n in cube]
            part = sure[tuple(slice(n, n + UNSURE_VOXELS) for n in corner)]
            decided = np.where(part > 0, part, VOID)
            inside = np.unravel_index(int(decided.argmin()), part.shape)
            z, y, x = (n + int(k) for n, k in zip(corner, inside, strict=True))
            found.append((float(means[cube]) / 255, z, y, x))
    return found


def _cube_means(sure: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean of what a network decided in cubes of a confidence (z, y, x); NaN where that is under a quarter.

    >>> _cube_means(np.full((8, 8, 16), 51, np.uint8))
    array([[[51., 51.]]])
    """

    def sums(values: NDArray[Any]) -> NDArray[np.int64]:
        for axis in range(3):
            starts = np.arange(0, values.shape[axis], UNSURE_VOXELS)
            values = np.add.reduceat(values, starts, axis=axis, dtype=np.int64)
        return values

    decided, voxels = sums(sure > 0), sums(np.broadcast_to(np.True_, sure.shape))
    means = np.full(decided.shape, np.nan)
    np.divide(sums(sure), decided, out=means, where=4 * decided >= voxels)
    return means
