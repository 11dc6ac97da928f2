"""What the tests of readers of volumes share: voxels, their place, and files of them."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from wsiseg.sources.volume import VolumeSource

Voxels = NDArray[Any]
SPACING = (0.5, 2.0, 3.25)  # of the file's axes i, j, k
SHAPE = (5, 6, 4)
ORIENTATIONS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
OBLIQUE = (
    np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
    @ np.array([[1.0, 0.0, 0.0], [0.0, 0.8, -0.6], [0.0, 0.6, 0.8]])
)  # fmt: skip


def random_voxels(shape: tuple[int, ...] = SHAPE, *, seed: int = 0, dtype: Any = np.int16) -> Voxels:
    return np.random.default_rng(seed).integers(-900, 3000, shape).astype(dtype)


def affine_of(
    axes: tuple[int, ...] = (0, 1, 2), signs: tuple[int, ...] = (1, 1, 1), *, turn: Any = None
) -> NDArray[np.float64]:
    """File axis n runs along canonical axis `axes[n]`, forwards or backwards."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for n, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, n] = sign * SPACING[n]
    if turn is not None:
        affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (-31.5, 12.25, 7.75)
    return affine


def save(path: Path, voxels: Voxels, affine: Any = None, **fields: Any) -> Path:
    """A NIfTI file in mm; `fields` are set in its header as they are, whatever nibabel thinks of them."""
    image = nib.Nifti1Image(voxels, affine_of() if affine is None else affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        raw = bytearray(file.read())
    header = np.ndarray((), nib.Nifti1Header.template_dtype, buffer=raw)
    for name, value in fields.items():
        header[name] = value
    with opener(path, "wb") as file:
        file.write(raw)
    return path


def values_of(source: VolumeSource) -> Voxels:
    pixels = source.read(source.geometry.whole)
    assert pixels.all_valid
    assert pixels.values.dtype == source.dtype
    return pixels.values


def canonical(path: Path) -> Voxels:
    """What nibabel makes of a file, (z, y, x)."""
    image: Any = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj).T


def write_series(
    folder: Path, stored: Voxels, affine: Any, *, uid: str = "1.2.3", **attributes: Any
) -> list[Path]:
    """One DICOM image per slice (columns, rows, slices), numbered in an order that means nothing."""
    folder.mkdir(exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    paths = []
    for k in range(stored.shape[2]):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = MRImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = UID(f"{uid}.{k + 1}")
        ds.SeriesInstanceUID, ds.Modality, ds.SeriesDescription = uid, "MR", "brain"
        ds.InstanceNumber = str((k * 7) % 11)
        ds.Columns, ds.Rows = stored.shape[:2]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        bits = stored.dtype.itemsize * 8
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
        ds.PixelRepresentation = int(stored.dtype.kind == "i")
        ds.ImageOrientationPatient = [f"{v:.10g}" for v in (lps[:3, :2] / sizes[:2]).T.ravel()]
        ds.ImagePositionPatient = [f"{v:.8g}" for v in lps[:3] @ (0, 0, k, 1)]
        ds.PixelSpacing = [float(sizes[1]), float(sizes[0])]
        ds.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
        for name, value in attributes.items():
            setattr(ds, name, value)
        paths.append(folder / f"{uid}-{(k * 5) % 17:02d}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def change(path: Path, **attributes: Any) -> None:
    ds = pydicom.dcmread(path)
    for name, value in attributes.items():
        setattr(ds, name, value)
    ds.save_as(path)


PLANES = {
    "axial": affine_of((0, 1, 2), (-1, -1, 1)),
    "axial from above": affine_of((0, 1, 2), (-1, -1, -1)),
    "coronal": affine_of((0, 2, 1), (-1, -1, 1)),
    "sagittal": affine_of((1, 2, 0), (-1, -1, -1)),
    "oblique": affine_of((0, 2, 1), (-1, -1, 1), turn=OBLIQUE),
}
