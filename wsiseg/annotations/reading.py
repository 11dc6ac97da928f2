"""Files of marks: the format is what the content says, whatever the file is called."""

from __future__ import annotations

import gzip
import io
import logging
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsiseg.annotations.asap import ROOT as ASAP
from wsiseg.annotations.asap import asap_outlines
from wsiseg.annotations.geojson import geojson_outlines
from wsiseg.annotations.imagescope import ROOT as IMAGESCOPE
from wsiseg.annotations.imagescope import imagescope_outlines
from wsiseg.annotations.marks import Mark, Outline, encloses, make_marks
from wsiseg.annotations.ndpa import ROOT as NDPA
from wsiseg.annotations.ndpa import ndpa_outlines
from wsiseg.annotations.xmltext import XmlError, parse_xml
from wsiseg.bounded import LARGEST_MARKS, read_bounded, shown
from wsiseg.errors import AnnotationError

logger = logging.getLogger(__name__)

SUFFIXES = (".geojson", ".json", ".xml", ".annotations", ".ndpa")
"""What files of marks are called; each may be compressed (.gz)."""
GZIP, BYTE_ORDER, UTF_16 = b"\x1f\x8b", b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")

Unit = Literal["pixels", "nanometres"]


@dataclass(frozen=True)
class MarkFile:
    """The areas of a file. In nanometres they are counted from the centre of the glass."""

    marks: list[Mark]
    unit: Unit = "pixels"


def is_mark_file(path: Path) -> bool:
    """True if a file is called like one of marks."""
    return path.name.lower().removesuffix(".gz").endswith(SUFFIXES)


def read_marks(path: Path) -> list[Mark]:
    """The areas of a file, in its own coordinates; points and lines are passed over.

    Raises AnnotationError.
    """
    return read_mark_file(path).marks


def read_mark_file(path: Path) -> MarkFile:
    """The areas of a file and their unit. Raises AnnotationError."""
    content = _content(path)
    unit: Unit = "pixels"
    if content.lstrip()[:1] == b"<" or content[:2] in UTF_16:
        outlines, unit = _xml_outlines(path, content)
        areas = _drawn(path, outlines)
    else:
        try:
            text = content.decode("utf-8")
        except ValueError as err:
            raise AnnotationError(f"{path} is not valid GeoJSON: {err}") from None
        del content  # half of the memory that is taken
        areas = geojson_outlines(path, text)
        del text
    marks = make_marks(path, areas)
    if not marks:
        raise AnnotationError(f"{path} has no polygons")
    return MarkFile(marks, unit)


def _content(path: Path) -> bytes:
    try:
        data = read_bounded(path, most=LARGEST_MARKS)
        if data[:2] == GZIP:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
                data = stream.read(LARGEST_MARKS + 1)
            if len(data) > LARGEST_MARKS:
                raise ValueError(f"unpacked it has more than {LARGEST_MARKS / 1e6:.1f} MB")
    except (EOFError, zlib.error, gzip.BadGzipFile) as err:
        raise AnnotationError(f"cannot unpack the annotation {path}: {err}") from None
    except OSError as err:
        raise AnnotationError(f"cannot read the annotation {path}: {err.strerror}") from None
    except ValueError as err:
        raise AnnotationError(f"cannot read the annotation {path}: {err}") from None
    return data.removeprefix(BYTE_ORDER)


def _xml_outlines(path: Path, content: bytes) -> tuple[list[Outline], Unit]:
    try:
        root = parse_xml(content)
        if root.tag == ASAP:
            return list(asap_outlines(root)), "pixels"
        if root.tag == IMAGESCOPE:
            return list(imagescope_outlines(root)), "pixels"
        if root.tag == NDPA:
            return list(ndpa_outlines(root)), "nanometres"
    except XmlError as err:
        raise AnnotationError(f"{path}: {err}") from None
    raise AnnotationError(
        f"{path}: line {root.line}: <{shown(root.tag)[1:-1]}> begins no annotations that are known; those of "
        f"ASAP begin with <{ASAP}>, of ImageScope and HALO with <{IMAGESCOPE}>, of NDP.view with <{NDPA}>"
    )


def _drawn(path: Path, outlines: list[Outline]) -> list[Outline]:
    """Outlines that enclose something: a click too many leaves regions of one or two corners."""
    empty = [o for o in outlines if not o.parts or not all(encloses(r) for part in o.parts for r in part)]
    if empty:
        logger.warning(
            "%s: %d regions have fewer than three corners, or nothing left by negative ones, and are passed "
            "over; the first begins in %s",
            path, len(empty), empty[0].place,
        )  # fmt: skip
    left_out = {o.number for o in empty}
    return [o for o in outlines if o.number not in left_out]
