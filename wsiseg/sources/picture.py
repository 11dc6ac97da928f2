"""Plain PNG and JPEG pictures, read whole: they have no tiles to read singly."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from wsiseg.bounded import in_short
from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.geometry import Geometry
from wsiseg.sources.array import ArraySource
from wsiseg.sources.base import Array, to_rgb_uint8

_FORMATS = ("PNG", "JPEG", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


def read_picture(path: Path, *, indices: bool = False) -> Array:
    """Pixels (y, x) or (y, x, C) uint8; with `indices`, a palette picture gives palette indices.

    Raises UnreadableSource, or SourceError for more pixels than Pillow takes (about 179 million).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # Named: of its other formats one starts programs (EPS), and a file is what its name says.
            with Image.open(path, formats=_FORMATS) as picture:
                if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV") and not indices:
                    return np.asarray(picture.convert("RGB"))
                if picture.mode == "P" and not indices:
                    return np.asarray(picture.convert("RGBA" if "transparency" in picture.info else "RGB"))
                return np.asarray(picture)
    except Image.DecompressionBombError as err:
        raise SourceError(
            f"{path} is too large: {err}; a PNG or JPEG is read whole: convert it to a tiled TIFF"
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, MemoryError, struct.error) as err:
        raise UnreadableSource(f"{path} cannot be read as an image: {in_short(err)}") from None


def open_picture(path: Path, *, spacing: tuple[float, float]) -> ArraySource:
    """A picture of known pixel size (µm, y then x) as a source. Raises SourceError."""
    try:
        pixels = read_picture(path)
        if pixels.dtype == np.uint8 and (pixels.ndim == 2 or pixels.shape[2] == 2):
            # As of TIFF and DICOM: networks know stained colours, and a grey picture is mostly one channel
            # of fluorescence, or a mask that was named by mistake.
            raise SourceError(f"{path} is grey; pictures of 3 colours (brightfield) are supported")
        rgb = to_rgb_uint8(pixels, name=str(path))
    except ValueError as err:
        raise SourceError(str(err)) from None
    geometry = Geometry(axes="yx", shape=rgb.shape[:2], spacing=spacing, unit="micrometer")
    return ArraySource(np.moveaxis(rgb, -1, 0), geometry, format=path.suffix[1:].upper())
