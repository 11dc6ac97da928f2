"""The images of a DICOM slide: which files of a folder belong to it, and what their headers say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.config import disable_value_validation
from pydicom.filereader import read_partial
from pydicom.uid import UID

from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.sources.base import check_size
from wsiseg.sources.dicom_series import BAD_FILE, SLIDE_CLASS, class_of, is_dicom

VOLUME = "VOLUME"
"""The kind of image that is the slide; the others are labels, overviews and thumbnails."""

_PER_FRAME = 0x52009230  # one item a frame, and slides have up to a million


@dataclass(frozen=True)
class SlideImage:
    """One DICOM instance of a slide, or one part of a concatenation. Shapes are (rows, columns)."""

    path: Path
    uid: str
    series: str
    kind: str
    shape: tuple[int, int]
    tile: tuple[int, int]
    num_frames: int
    num_planes: int
    optical_paths: tuple[str, ...]
    tiled_full: bool
    syntax: UID
    photometric: str
    pixels: tuple[int, int]  # samples, bits
    origin_mm: tuple[float, float]
    concatenation: str
    num_parts: int

    @property
    def num_tiles(self) -> int:
        """Tiles that cover the image."""
        rows, columns = (-(-n // t) for n, t in zip(self.shape, self.tile, strict=True))
        return rows * columns


def is_slide_file(path: Path) -> bool:
    """True for a file that begins like a DICOM slide image. Raises UnreadableSource."""
    try:
        return path.is_file() and is_dicom(path) and class_of(path) == SLIDE_CLASS
    except BAD_FILE as err:
        raise _damaged(path, err) from None


def holds_slide(path: Path) -> bool:
    """True for an image of a DICOM slide, and for a folder (not the folders in it) with one."""
    return any(is_slide_file(file) for file in (path.iterdir() if path.is_dir() else [path]))


def slide_images(path: Path) -> list[SlideImage]:
    """The images of the slide in a folder, or of the slide that a file belongs to, the largest first.

    Labels, overviews, thumbnails and second copies are left out. Raises UnreadableSource, SourceError where
    there are several slides, and where files are missing or hold no 8-bit colours.
    """
    series = None if path.is_dir() else _header(path).series
    folder = path if path.is_dir() else path.parent
    found = [_header(file) for file in sorted(folder.iterdir()) if is_slide_file(file)]
    images = [i for i in found if i.kind == VOLUME and series in (None, i.series)]
    if not images:
        kinds = ", ".join(sorted({i.kind for i in found if series in (None, i.series)}))
        raise UnreadableSource(
            f"{path} holds no image of the slide itself, only {kinds}; bring all files of its series"
        )
    _check_one(path, images)
    images = list({image.uid: image for image in reversed(images)}.values())
    images.sort(key=lambda i: (-i.shape[0] * i.shape[1], i.path))
    for image in images:
        _check_colors(image)
    for shape in {image.shape for image in images}:
        _check_level([image for image in images if image.shape == shape])
    return images


def slide_files(path: Path) -> tuple[Path, ...]:
    """The files of the images of a slide, in the order of their names. Raises like `slide_images`."""
    return tuple(sorted(image.path for image in slide_images(path)))


def _damaged(path: Path, err: Exception) -> UnreadableSource:
    reason = " ".join(str(err).split())
    return UnreadableSource(f"{path} has a damaged DICOM header: {reason}; copy the file again")


def _header(path: Path) -> SlideImage:
    try:
        # Some scanners write identifiers that are too long; they serve all the same.
        with path.open("rb") as file, disable_value_validation():
            header = read_partial(file, stop_when=lambda tag, vr, length: tag >= _PER_FRAME)
            return _image(path, header)
    except BAD_FILE as err:
        raise _damaged(path, err) from None


def _image(path: Path, header: Any) -> SlideImage:
    shape = (int(header.TotalPixelMatrixRows), int(header.TotalPixelMatrixColumns))
    tile = (int(header.Rows), int(header.Columns))
    check_size(path, shape, tile=tile)
    origin = (header.get("TotalPixelMatrixOriginSequence") or [{}])[0]
    kind = list(header.ImageType)
    return SlideImage(
        path=path,
        uid=str(header.SOPInstanceUID),
        series=str(header.SeriesInstanceUID),
        kind=str(kind[2]) if len(kind) > 2 else "",
        shape=shape,
        tile=tile,
        num_frames=int(header.get("NumberOfFrames") or 1),
        num_planes=int(header.get("TotalPixelMatrixFocalPlanes") or 1),
        optical_paths=tuple(
            str(p.get("OpticalPathIdentifier")) for p in header.get("OpticalPathSequence") or []
        ),
        tiled_full=header.get("DimensionOrganizationType") == "TILED_FULL",
        syntax=UID(header.file_meta.TransferSyntaxUID),
        photometric=str(header.PhotometricInterpretation),
        pixels=(int(header.SamplesPerPixel), int(header.BitsStored)),
        origin_mm=(
            float(origin.get("XOffsetInSlideCoordinateSystem") or 0),
            float(origin.get("YOffsetInSlideCoordinateSystem") or 0),
        ),
        concatenation=str(header.get("ConcatenationUID") or ""),
        num_parts=int(header.get("InConcatenationTotalNumber") or 0),
    )


def _check_one(path: Path, images: Sequence[SlideImage]) -> None:
    by_series: dict[str, Path] = {}
    for image in images:
        by_series.setdefault(image.series, image.path)
    if len(by_series) > 1:
        listed = ", ".join(f"{file.name} (series {series})" for series, file in by_series.items())
        raise SourceError(
            f"{path} holds {len(by_series)} slides; name a file of the one that is meant: {listed}"
        )


def _check_colors(image: SlideImage) -> None:
    samples, bits = image.pixels
    if samples != 3:
        raise SourceError(
            f"{image.path} is grey ({image.photometric}); slides of 3 colours (brightfield) are supported"
        )
    if bits != 8:
        raise SourceError(f"{image.path} has {bits} bits a colour; 8 are supported: convert the slide")
    if image.photometric != "RGB" and (
        not image.photometric.startswith("YBR_") or not image.syntax.is_compressed
    ):
        raise SourceError(
            f"{image.path} has {image.photometric} pixels, stored as {image.syntax.name}, which is not "
            "supported; convert it to RGB"
        )


def _instances(level: Sequence[SlideImage]) -> Iterator[list[SlideImage]]:
    """Images of one size, with the parts of a concatenation together."""
    parts: dict[str, list[SlideImage]] = {}
    for image in level:
        parts.setdefault(image.concatenation or image.uid, []).append(image)
    yield from parts.values()


def _check_level(level: Sequence[SlideImage]) -> None:
    """Raises SourceError where files of an image are missing, and for fluorescence."""
    paths = sorted({name for image in level for name in image.optical_paths})
    if len(paths) > 1:
        raise SourceError(
            f"{level[0].path} has {len(paths)} optical paths ({', '.join(paths)}); slides of one "
            "(brightfield) are supported"
        )
    for parts in _instances(level):
        first = parts[0]
        if first.num_parts > len(parts):
            raise SourceError(
                f"{first.path} is one of {first.num_parts} files that make up an image, and {len(parts)} are "
                "there; bring all files of its series"
            )
        there, needed = sum(part.num_frames for part in parts), first.num_tiles * first.num_planes
        if first.tiled_full and there != needed:
            raise SourceError(
                f"{first.path} has {there} of the {needed} frames of its image; bring all files of its series"
            )
