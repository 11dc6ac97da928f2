"""NRRD and MetaImage files, through SimpleITK."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.sources.base import check_size
from wsiseg.sources.native import LPS_TO_RAS, Affine, native_grid
from wsiseg.sources.volume import Channel, VolumeSource

# Named, so that a file is never given to another reader than its name says.
_READERS = {
    ".nrrd": ("NRRD", "NrrdImageIO"),
    ".mha": ("MetaImage", "MetaImageIO"),
    ".mhd": ("MetaImage", "MetaImageIO"),
}
MOST_RATIO = 1032
"""Of voxels to bytes: deflate, which both formats use, can do no better."""
_HEADER_BYTES = 1 << 20
_NRRD_DATA = re.compile(rb"^\s*data ?file\s*:", re.IGNORECASE | re.MULTILINE)
_META_DATA = re.compile(rb"^\s*ElementDataFile\s*[=:]\s*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)


def open_itk(path: str | Path) -> VolumeSource:
    """The volume in a NRRD or MetaImage file; components, or a fourth axis, are its channels.

    Raises UnreadableSource for what cannot be read, SourceError for headers whose voxels are in
    another file (but a .mhd's beside it) and for images that are not 3-D.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".nhdr":
        raise SourceError(f"{path} is a header whose voxels are in another file; save it as one .nrrd")
    if suffix not in _READERS:
        raise UnreadableSource(f"{path} is none of {', '.join(_READERS)}")
    format, io = _READERS[suffix]
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
    except OSError as err:
        raise UnreadableSource(f"{path} cannot be read: {err}") from None
    if suffix == ".nrrd":
        problems = _check_nrrd(path, head)
    else:
        problems = []
        _check_meta(path, head)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(io)
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        dimension = reader.GetDimension()
        if dimension not in (3, 4):
            raise SourceError(f"{path} is a {dimension}-D image; a volume has three axes")
        _check_claim(path, head, reader)
        image = reader.Execute()
    except RuntimeError as err:
        reason = str(err).strip().splitlines()[-1].strip()
        raise UnreadableSource(f"{path} cannot be read as {format}: {reason}; copy the file again") from None
    return _source(path, image, format=format, problems=problems)


def _check_nrrd(path: Path, head: bytes) -> list[str]:
    """Raises SourceError for detached voxels; what to tell about the header."""
    header = re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0]
    if _NRRD_DATA.search(header):
        raise SourceError(f"{path} is a header whose voxels are in another file; save it as one .nrrd")
    if not re.search(rb"^space\s*:", header, re.IGNORECASE | re.MULTILINE):
        return [
            f"{path} does not state its orientation; its axes are taken to run to Left, Posterior, Superior"
        ]
    return []


def _check_meta(path: Path, head: bytes) -> None:
    """Raises SourceError where the voxels are neither in the file nor beside it."""
    found = _META_DATA.search(head)
    name = found[1].strip().decode("utf-8", "replace") if found else ""
    if name.upper() == "LOCAL":
        return
    folder = path.parent.resolve()
    beside = (folder / name).resolve() if name and "\0" not in name else folder
    if path.suffix.lower() != ".mhd" or beside.parent != folder or not beside.is_file():
        raise SourceError(
            f"{path} names {name!r} as the file of its voxels; only one file beside a .mhd is followed: "
            "save it as one .mha"
        )


def _check_claim(path: Path, head: bytes, reader: Any) -> None:
    """Raises where a header promises more voxels than its file can hold: memory is given to them first."""
    shape = (*reader.GetSize(), reader.GetNumberOfComponents())
    check_size(path, shape)
    found = _META_DATA.search(head) if path.suffix.lower() == ".mhd" else None
    file = path.parent / found[1].strip().decode("utf-8", "replace") if found else path
    if math.prod(shape) > MOST_RATIO * file.stat().st_size:
        raise UnreadableSource(
            f"{file} has {file.stat().st_size} bytes, its header promises {math.prod(shape)} voxels; "
            "the file is cut off, copy it again"
        )


def _source(path: Path, image: Any, *, format: str, problems: list[str]) -> VolumeSource:
    voxels = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        voxels = np.moveaxis(voxels, -1, 0)
    if voxels.ndim == 3:
        voxels = voxels[None]
    if voxels.ndim != 4 or voxels.dtype.kind not in "uif":
        raise SourceError(
            f"{path} has {image.GetPixelIDTypeAsString()} voxels on {image.GetDimension()} axes; "
            "three axes and one of channels, of whole or real numbers, are supported"
        )
    native = native_grid(path, _affine(image), image.GetSize()[:3])
    names = [path.stem] if len(voxels) == 1 else [f"channel {c}" for c in range(len(voxels))]
    channels = [
        Channel(
            name=name,
            path=path,
            native=native,
            stored=channel.transpose(2, 1, 0).__getitem__,
            stored_dtype=voxels.dtype,
        )
        for name, channel in zip(names, voxels, strict=True)
    ]
    source = VolumeSource(channels, format=format, problems=problems)
    source.check()
    return source


def _affine(image: Any) -> Affine:
    """From voxel (i, j, k) to RAS mm."""
    n = image.GetDimension()
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(n, n)[:3, :3]
    affine[:3, :3] = directions * np.array(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    return LPS_TO_RAS @ affine
