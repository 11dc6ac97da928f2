"""NIfTI-1 and NIfTI-2: an uncompressed file is read in parts, a compressed one is held."""

from __future__ import annotations

import gzip
import itertools
import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.sources.base import Array, check_size
from wsiseg.sources.native import Native, native_grid
from wsiseg.sources.native import nifti_header as parse_header
from wsiseg.sources.volume import Channel, OnDisk, Stored, VolumeSource, allocate

SUFFIXES = (".nii", ".nii.gz")

MODALITIES: dict[str, tuple[str, ...]] = {
    "t1n": ("t1n", "t1"),
    "t1c": ("t1c", "t1ce", "t1gd"),
    "t2w": ("t2w", "t2"),
    "t2f": ("t2f", "flair"),
}
"""The MRI modalities of the BraTS challenges, and the names that files of any year end in."""

_BAD_FILE = (HeaderDataError, ImageFileError, zlib.error, EOFError, OSError, ValueError, OverflowError)
_MAGIC = {348: (344, b"n+1\0"), 540: (4, b"n+2\0\r\n\x1a\n")}
_TO_MM = {1: 1e3, 2: 1.0, 3: 1e-3}  # by the header's code: metre, millimetre, micrometre
_PIECE = 1 << 20  # bytes decompressed at once: they are held twice
MOST_AFTER = 1 << 26
"""Bytes after the voxels: some programs pad, and a bomb goes on for ever."""
_MAX_GZIP_RATIO = 1032  # deflate cannot do better: a header that asks for more lies


def is_nifti(path: Path) -> bool:
    """True for a name that ends like a NIfTI file's."""
    return path.name.lower().endswith(SUFFIXES)


def open_nifti(path: str | Path) -> VolumeSource:
    """The volume in a NIfTI file; a fourth axis, or a fifth after a fourth of 1, is its channels.

    Raises UnreadableSource for what is no NIfTI file or is cut off, SourceError for 2-D images, for
    colour and complex voxels, NaN, and affines without an inverse.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if compressed else path.open("rb") as stream:
            return _open(path, cast("IO[bytes]", stream), compressed=compressed)
    except _BAD_FILE as err:
        raise UnreadableSource(
            f"{path} cannot be read as NIfTI: {err}; the file is damaged or cut off, copy it again"
        ) from None


def nifti_grid(path: Path) -> Native:
    """The grid of a NIfTI file, from its header alone. Raises UnreadableSource, SourceError."""
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if compressed else path.open("rb") as stream:
            raw = _header_bytes(cast("IO[bytes]", stream))
        header = parse_header(raw)
        return _grid(path, header, _shape(path, header)[0], raw)[0]
    except _BAD_FILE as err:
        raise UnreadableSource(f"{path} has no NIfTI header that can be read: {err}") from None


def _open(path: Path, stream: IO[bytes], *, compressed: bool) -> VolumeSource:
    raw = _header_bytes(stream)
    header = parse_header(raw)
    shape, num_channels = _shape(path, header)
    dtype = np.dtype(header.get_data_dtype())
    if dtype.kind not in "uif":
        kind = header.get_value_label("datatype")
        raise SourceError(f"{path} has {kind} voxels; whole and real numbers are supported")
    grid, problems = _grid(path, header, shape, raw)
    offset = int(header.get_data_offset())
    if not 0 <= offset <= MOST_AFTER:
        raise ValueError(f"its voxels are said to begin at byte {offset}")
    count = math.prod(shape) * num_channels
    _check_size(path, offset + count * dtype.itemsize, compressed=compressed)
    check_size(path, (*shape, num_channels))
    if compressed:
        voxels = _inflate(path, stream, offset, count, dtype).reshape((*shape, num_channels), order="F")
        parts: list[Stored] = [voxels[..., c].__getitem__ for c in range(num_channels)]
    else:
        size = math.prod(shape) * dtype.itemsize
        parts = [OnDisk(path, dtype, shape, offset + c * size) for c in range(num_channels)]
    slope, intercept = header.get_slope_inter()
    source = VolumeSource(
        [
            Channel(
                name=_stem(path) if num_channels == 1 else f"channel {c}",
                path=path,
                native=grid,
                stored=stored,
                stored_dtype=dtype,
                slope=1.0 if slope is None else float(slope),
                intercept=0.0 if intercept is None else float(intercept),
            )
            for c, stored in enumerate(parts)
        ],
        format="NIfTI",
        problems=problems,
    )
    if compressed:
        source.check()
    return source


def _stem(path: Path) -> str:
    return path.name[: -len(".nii.gz")] if path.name.lower().endswith(".gz") else path.stem


def _header_bytes(stream: IO[bytes]) -> bytes:
    """The bytes of the header; raises ValueError where they are not those of a single-file NIfTI."""
    raw = stream.read(540)
    for size, (at, magic) in _MAGIC.items():
        if size in (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")):
            if len(raw) < size:
                raise ValueError(f"it ends after {len(raw)} bytes of its header")
            found = raw[at : at + len(magic)]
            if found[:3] in (b"ni1", b"ni2"):
                raise ValueError("it is a header whose voxels are in another file")
            if found == magic:
                return raw[:size]
    raise ValueError("it does not begin with a NIfTI header")


def _shape(path: Path, header: Any) -> tuple[tuple[int, ...], int]:
    """Voxels per file axis, and the number of channels."""
    shape = tuple(int(n) for n in header.get_data_shape())
    if len(shape) < 3:
        raise SourceError(f"{path} has the shape {shape}, a {len(shape)}-D image; a volume has three axes")
    if any(n < 1 for n in shape):
        raise SourceError(f"{path} has the shape {shape}, an axis of it has no voxels; write the file again")
    channels = [n for n in shape[3:] if n > 1]
    if len(channels) > 1:
        raise SourceError(
            f"{path} has the shape {shape}; a volume has three axes and one of channels: "
            "extract one time point or one component"
        )
    return shape[:3], math.prod(channels)


def _grid(path: Path, header: Any, shape: tuple[int, ...], raw: bytes) -> tuple[Native, list[str]]:
    """The file's grid by sform, else qform, else the voxel sizes alone; and what to tell about it."""
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    to_mm = _TO_MM.get(int(header["xyzt_units"]) % 8)
    affine = np.diag([to_mm or 1.0] * 3 + [1.0]) @ header.get_best_affine()
    native = native_grid(path, affine, shape, header_bytes=raw, sform_code=sform, qform_code=qform)
    problems = []
    if sform <= 0 and qform <= 0:
        problems.append(
            f"{path} does not state its orientation; "
            "its axes are taken to run to the patient's Left, Anterior and Superior"
        )
    if to_mm is None:
        problems.append(f"{path} does not state its unit of length; millimetres are assumed")
    sizes = voxel_sizes(native.affine)
    zooms = np.abs(header.get_zooms()[:3]) * (to_mm or 1.0)
    if sform > 0 and not np.allclose(sizes, zooms, rtol=0.01):
        said = ", ".join(f"{a:.4g} and {b:.4g}" for a, b in zip(sizes, zooms, strict=True))
        problems.append(f"{path} states two voxel sizes per axis ({said} mm); the first, of sform, are used")
    if min(shape) == 1:
        problems.append(f"{path} is a single slice of shape {shape}")
    return native, problems


def _check_size(path: Path, needed: int, *, compressed: bool) -> None:
    size = path.stat().st_size
    if size * (_MAX_GZIP_RATIO if compressed else 1) < needed:
        raise UnreadableSource(
            f"{path} has {size} bytes, its header promises {needed}{' compressed' if compressed else ''}; "
            "the file is cut off, copy it again"
        )


def _inflate(path: Path, stream: IO[bytes], offset: int, count: int, dtype: np.dtype[Any]) -> Array:
    """`count` numbers from `offset` on; the rest is read too, for the checksum at the end."""
    voxels = allocate(path, (count,), dtype)
    stream.seek(offset)
    view = voxels.view(np.uint8).data
    done = 0
    while done < len(view):
        got = cast("Any", stream).readinto(view[done : done + _PIECE])
        if not got:
            raise EOFError(f"{done} of {len(view)} bytes of voxels are there")
        done += got
    after = 0
    while rest := stream.read(_PIECE):
        after += len(rest)
        if after > MOST_AFTER:
            raise ValueError(f"it goes on for more than {MOST_AFTER} bytes after its last voxel")
    return voxels


def open_modalities(
    files: str | Path | Sequence[str | Path], names: Sequence[str] = tuple(MODALITIES)
) -> VolumeSource:
    """Several NIfTI files of one case as channels, in the order of `names`.

    `files` is the case's folder or one file per name. In a folder the file of a name is the one that
    ends in it (`case-t1n.nii.gz`, `case_t1n.nii`, `t1n.nii.gz`) or in a synonym of MODALITIES.
    Raises SourceError for missing or ambiguous files and for grids that differ, ValueError where
    there are not as many files as names.
    """
    if isinstance(files, str | Path):
        found = find_modalities(Path(files), names)
    elif len(files) != len(names):
        raise ValueError(f"{len(files)} files for {len(names)} modalities: {', '.join(names)}")
    else:
        found = [Path(file) for file in files]
    sources = [open_nifti(path) for path in found]
    channels = []
    for name, path, source in zip(names, found, sources, strict=True):
        if source.num_channels > 1:
            raise SourceError(f"{path} has {source.num_channels} channels; a modality is one")
        _check_grid(found[0], sources[0].native, path, source.native)
        channels.append(replace(source.channels[0], name=name))
    problems = list(itertools.chain.from_iterable(source.problems for source in sources))
    return VolumeSource(channels, format="NIfTI", problems=problems)


def find_modalities(folder: Path, names: Sequence[str]) -> list[Path]:
    """The file of each modality in a folder; raises SourceError for none and for several."""
    if not folder.is_dir():
        raise UnreadableSource(f"{folder} is not a folder; give the folder that holds {', '.join(names)}")
    files = sorted(path for path in folder.iterdir() if is_nifti(path))
    found = []
    for name in names:
        endings = _endings(name)
        matching = [path for path in files if _stem(path).lower().endswith(endings)]
        matching += [path for path in files if _stem(path).lower() in {e[1:] for e in endings}]
        if not matching:
            raise SourceError(
                f"{folder} has no {name} (a file named {' or '.join(e[1:] for e in endings[::2])}, "
                f"or ending in -{name}.nii.gz or _{name}.nii.gz); its NIfTI files are: "
                f"{', '.join(path.name for path in files) or 'none'}"
            )
        if len(matching) > 1:
            names_found = " and ".join(path.name for path in matching)
            raise SourceError(f"{folder} has several files for {name}: {names_found}; leave one of them")
        found.append(matching[0])
    return found


def _endings(name: str) -> tuple[str, ...]:
    """What the stem of a modality's file may end in, each after a - and after a _."""
    name = name.lower()
    synonyms = next((group for group in MODALITIES.values() if name in group), (name,))
    return tuple(f"{mark}{synonym}" for synonym in synonyms for mark in "-_")


def _check_grid(first: Path, native: Native, path: Path, other: Native) -> None:
    shape, other_shape = native.geometry.shape, other.geometry.shape
    if shape != other_shape:
        raise SourceError(
            f"{first} has {shape} voxels (z, y, x) and {path} {other_shape}; resample them to one grid"
        )
    difference = float(np.abs(native.canonical_affine - other.canonical_affine).max())
    if difference > 1e-3:
        raise SourceError(
            f"{first} and {path} lie at different places (their affines differ by {difference:.4g}); "
            "register and resample them to one grid"
        )
