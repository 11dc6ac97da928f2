"""A mask of a volume as NIfTI on exactly the grid of the file that it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.export.streams import check_name, written
from wsiseg.models.card import RESEARCH_USE
from wsiseg.sources.native import Native
from wsiseg.windows import slabs

SUFFIXES = (".nii", ".nii.gz")
DESCRIPTION = f"wsiseg class indices; {RESEARCH_USE}"
CONFIDENCE = f"wsiseg confidence, 255 is a probability of 1; {RESEARCH_USE}"
"""At most 80 bytes: all that a NIfTI header has room for."""

_SLAB_BYTES = 64 << 20  # of a plane of 1024 x 1024 a whole chunk


def write_nifti(path: Path, labels_zyx: Any, native: Native, *, description: str = DESCRIPTION) -> None:
    """Write class indices, or other bytes (z, y, x), as .nii or .nii.gz: whole, or not at all.

    Shape, affine (sform and qform with their codes), voxel sizes, units and the order and direction of
    the axes are those of `native`; void stays 255. The header says what the use is, and no text of the
    input's header is taken over. `labels_zyx` is an array, or a zarr array, of which a slab is in memory
    at a time. Raises StoreError, UsageError, and ValueError for labels of another type or grid.
    """
    check_name(path, SUFFIXES, what="a NIfTI file")
    if labels_zyx.dtype != np.uint8:
        raise ValueError(f"labels have {labels_zyx.dtype} values; class indices are uint8")
    image = native.nifti(np.broadcast_to(np.uint8(0), labels_zyx.shape))  # for its header
    image.header["descrip"] = description.encode()
    image.header.set_slope_inter(1, 0)  # an image of nibabel's has none until nibabel saves it
    with written(path) as stream:
        image.header.write_to(stream)
        for piece in _pieces(labels_zyx, native):
            stream.write(piece.data)


def _pieces(labels_zyx: Any, native: Native) -> Iterator[NDArray[np.uint8]]:
    """The voxels (k, j, i) in the order of the file, i fastest, a slab of k at a time."""
    rows = max(1, _SLAB_BYTES // (native.shape[0] * native.shape[1]))
    whole = tuple(slice(0, n) for n in native.shape[:2])
    for slab in slabs(native.shape[2], rows=rows):
        part = np.asarray(labels_zyx[native.region((*whole, slab.rows))])
        yield np.ascontiguousarray(native.to_native(part).T)
