"""How the grid of a medical image's file relates to the one inside this program.

Inside the program a volume has axes zyx that run to the patient's Superior, Anterior and Right
(nibabel's canonical RAS). A file may store its axes in any order and direction: `Native` leads from
one to the other and back. Oblique grids are used as they are, under the nearest canonical axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from wsiseg.errors import SourceError
from wsiseg.geometry import Geometry, Region
from wsiseg.sources.base import Array

Affine = NDArray[np.float64]
LPS_TO_RAS: Affine = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM and ITK count towards Left and Posterior."""

_MIN_VOLUME = 1e-6  # of the parallelepiped of an affine's unit axes: what is flatter has no inverse


@dataclass(frozen=True, eq=False)
class Native:
    """How the file's grid relates to the canonical one.

    `affine` leads from the file's voxel (i, j, k) to the patient's RAS mm, `shape` is the extent per
    file axis and `orientation` nibabel's: per file axis the canonical axis (0 x, 1 y, 2 z) and 1 or -1.
    `header_bytes` is the file's NIfTI header, None for other formats.
    """

    affine: Affine
    shape: tuple[int, ...]
    orientation: tuple[tuple[int, int], ...]
    header_bytes: bytes | None = None
    sform_code: int = 1
    qform_code: int = 1

    @property
    def geometry(self) -> Geometry:
        """The canonical grid."""
        sizes = voxel_sizes(self.affine)
        order = self._file_axes
        return Geometry(
            axes="zyx",
            shape=tuple(self.shape[k] for k in order),
            spacing=tuple(float(f"{sizes[k]:.6g}") for k in order),  # headers hold float32
            unit="millimeter",
        )

    @property
    def canonical_affine(self) -> Affine:
        """From the canonical voxel (x, y, z) to RAS mm."""
        back = nib.orientations.inv_ornt_aff(np.array(self.orientation), self.shape)
        return np.asarray(self.affine @ back, np.float64)

    @property
    def _file_axes(self) -> tuple[int, ...]:
        """The file axis of z, of y and of x."""
        axes = [axis for axis, _ in self.orientation]
        return tuple(axes.index(a) for a in (2, 1, 0))

    @property
    def _flips(self) -> Region:
        return tuple(slice(None, None, sign) for _, sign in self.orientation)

    def from_native(self, array: Array) -> Array:
        """A view (z, y, x) of voxels (i, j, k), or of a part of them."""
        return array[self._flips].transpose(self._file_axes)

    def to_native(self, array: Array) -> Array:
        """A view (i, j, k) of voxels (z, y, x), or of a part of them."""
        return array.transpose([2 - axis for axis, _ in self.orientation])[self._flips]

    def part(self, region: Region) -> Region:
        """The slices (i, j, k) of a canonical region (z, y, x) inside the image."""
        part = []
        for (axis, sign), n in zip(self.orientation, self.shape, strict=True):
            s = region[2 - axis]
            part.append(s if sign > 0 else slice(n - s.stop, n - s.start))
        return tuple(part)

    def region(self, part: Region) -> Region:
        """The canonical region (z, y, x) of slices (i, j, k): the inverse of `part`."""
        region = list(part)
        for (axis, sign), n, s in zip(self.orientation, self.shape, part, strict=True):
            region[2 - axis] = s if sign > 0 else slice(n - s.stop, n - s.start)
        return tuple(region)

    def nifti(self, array: Array) -> Any:
        """A nibabel image of voxels (z, y, x) on the file's own grid, with the file's header.

        Free text is left out of the header: it may name the patient. Raises ValueError for voxels
        of another grid.
        """
        if array.shape != self.geometry.shape:
            raise ValueError(f"voxels of shape {array.shape} do not fit the volume's {self.geometry.shape}")
        voxels = self.to_native(array)
        if self.header_bytes is None:
            header = nib.Nifti2Header() if max(self.shape) > np.iinfo(np.int16).max else nib.Nifti1Header()
            header.set_data_shape(self.shape)
            header.set_sform(self.affine, code=self.sform_code)
            header.set_qform(self.affine, code=self.qform_code)  # nearest without shear
            header.set_xyzt_units("mm")
        else:
            header = nifti_header(self.header_bytes)
            # Of a time series: the affine of a header without forms depends on the shape.
            header.set_data_shape(self.shape)
        for name in ("descrip", "aux_file", "db_name", "intent_name", "data_type", "unused_str"):
            if name in header:
                header[name] = b""
        header["cal_min"] = header["cal_max"] = 0
        header.set_intent("none")
        header.set_data_offset(0)
        header.set_slope_inter(1, 0)
        header.set_data_dtype(voxels.dtype)
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        return kind(voxels, header.get_best_affine(), header)


def nifti_header(raw: bytes) -> Any:
    """The header in the first 348 (NIfTI-1) or 540 (NIfTI-2) bytes; extensions are not looked at.

    Raises nibabel's HeaderDataError for impossible fields.
    """
    kind = nib.Nifti2Header if raw[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Header
    return kind(raw[: kind.template_dtype.itemsize])


def native_grid(path: Path, affine: Any, shape: Sequence[int], **header: Any) -> Native:
    """The grid of a file; raises SourceError where its affine has no inverse."""
    affine = np.array(affine, np.float64)  # a copy: it is frozen below
    axes = affine[:3, :3]
    sizes = np.linalg.norm(axes, axis=0) if np.isfinite(affine).all() else np.zeros(3)
    if not sizes.all() or abs(np.linalg.det(axes / sizes)) < _MIN_VOLUME:
        rows = ", ".join("(" + " ".join(f"{v:.6g}" for v in row) + ")" for row in affine[:3])
        raise SourceError(
            f"{path} has the affine {rows}, which does not place voxels in space; "
            "write the file again with a valid orientation"
        )
    affine.setflags(write=False)
    orientation = tuple((int(a), int(s)) for a, s in nib.io_orientation(affine))
    return Native(affine, tuple(int(n) for n in shape), orientation, **header)
