"""DICOM slides have the right colours, also where their headers say the wrong thing of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import pytest
from PIL import Image
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless

from tests.cases import CROPS, NAMES
from tests.images import Rgb, rgb_last
from tests.slide_files import JPEG, LOSSLESS, RAW, Stored, write_dicom_slide
from wsiseg.sources import open_source
from wsiseg.sources.dicom_frames import has_color_transform, jpeg_is_ycbcr

WHOLE = (slice(0, 160), slice(0, 192))


@pytest.fixture(scope="module")
def tissue() -> Rgb:
    crop = Image.open(CROPS / "images" / f"{NAMES[0]}.png").convert("RGB")
    return np.moveaxis(np.asarray(crop)[:160, :192], -1, 0)


def ycbcr(tile: Rgb) -> Rgb:
    red, green, blue = np.moveaxis(tile.astype(float), -1, 0)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    components = np.stack([y, 128 + (blue - y) / 1.772, 128 + (red - y) / 1.402], axis=-1)
    return np.asarray(np.rint(components), np.uint8)


def j2k(tile: Rgb, *, transformed: bool, reversible: bool = False) -> bytes:
    """A JPEG 2000 codestream of the components as they are, with or without its own colour transform."""
    level = 0 if reversible else 45
    options: dict[str, Any] = {"codecformat": "j2k", "reversible": reversible, "mct": transformed}
    frame = bytes(imagecodecs.jpeg2k_encode(tile, level=level, **options))
    assert has_color_transform(frame) == transformed
    return frame


def jfif(tile: Rgb) -> bytes:
    """A JPEG as most programs write it: YCbCr, with the marker of JFIF."""
    stream = io.BytesIO()
    Image.fromarray(tile).save(stream, "jpeg", quality=95, subsampling=0)
    return stream.getvalue()


def rgb_jpeg(tile: Rgb) -> bytes:
    """A JPEG of RGB components, with Adobe's marker that says so."""
    return bytes(imagecodecs.jpeg8_encode(tile, level=95, colorspace="RGB", outcolorspace="RGB"))


def unmarked(frame: bytes, *, names: bytes = b"\1\2\3") -> bytes:
    """A JPEG whose stream does not say what its components are, as scanners write into TIFFs."""
    out, at = frame[:2], 2
    while frame[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
        if frame[at + 1] not in (0xE0, 0xEE):
            out += frame[at:end]
        at = end
    out += frame[at:]
    old = [out[out.index(b"\xff\xc0") + 10 + 3 * k] for k in range(3)]
    scan = out.index(b"\xff\xda")
    changed = bytearray(out)
    for k, name in enumerate(names):
        changed[out.index(b"\xff\xc0") + 10 + 3 * k] = name
        assert changed[scan + 5 + 2 * k] == old[k]
        changed[scan + 5 + 2 * k] = name
    return bytes(changed)


LOSSY = {
    "uncompressed": (RAW, 0),
    "JPEG in YCbCr": (JPEG, 3),
    "JPEG in YCbCr, called RGB": (Stored(JPEGBaseline8Bit, "RGB", jfif), 3),
    "JPEG in YCbCr with small chroma and no marker, called RGB": (
        Stored(JPEGBaseline8Bit, "RGB", lambda t: unmarked(JPEG.encode(t))), 3,
    ),
    "JPEG in YCbCr without a marker": (Stored(JPEGBaseline8Bit, "YBR_FULL", lambda t: unmarked(jfif(t))), 3),
    "JPEG in RGB": (Stored(JPEGBaseline8Bit, "RGB", rgb_jpeg), 2),
    "JPEG in RGB, called YCbCr": (Stored(JPEGBaseline8Bit, "YBR_FULL_422", rgb_jpeg), 2),
    "JPEG in RGB without a marker": (Stored(JPEGBaseline8Bit, "RGB", lambda t: unmarked(rgb_jpeg(t))), 2),
    "JPEG of R, G and B, called YCbCr": (
        Stored(JPEGBaseline8Bit, "YBR_FULL_422", lambda t: unmarked(rgb_jpeg(t), names=b"RGB")), 2,
    ),
    "reversible JPEG 2000": (LOSSLESS, 0),
    "irreversible JPEG 2000": (Stored(JPEG2000, "YBR_ICT", lambda t: j2k(t, transformed=True)), 2),
    "irreversible JPEG 2000, called RGB": (Stored(JPEG2000, "RGB", lambda t: j2k(t, transformed=True)), 2),
    "JPEG 2000 of RGB": (
        Stored(JPEG2000Lossless, "RGB", lambda t: j2k(t, transformed=False, reversible=True)), 0,
    ),
    "JPEG 2000 of bare YCbCr, called YBR_ICT": (
        Stored(JPEG2000, "YBR_ICT", lambda t: j2k(ycbcr(t), transformed=False)), 3,
    ),
    "JPEG 2000 of bare YCbCr": (
        Stored(JPEG2000, "YBR_FULL_422", lambda t: j2k(ycbcr(t), transformed=False)), 3,
    ),
    "JPEG-LS": (Stored(JPEGLSLossless, "RGB", lambda t: bytes(imagecodecs.jpegls_encode(t))), 0),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOSSY)
def test_colours_are_those_that_were_stored(tmp_path: Path, tissue: Rgb, kind: str) -> None:
    stored, allowed = LOSSY[kind]
    path = write_dicom_slide(tmp_path / "s.dcm", tissue, stored=stored, tile=(32, 64))
    pixels = open_source(path).read(WHOLE)
    assert pixels.all_valid
    off = np.abs(pixels.values.astype(int) - tissue)
    # No colour is shifted as a whole: what is left is the noise of the compression.
    assert np.abs(off.mean(axis=(1, 2))).max() <= allowed
    assert np.abs((pixels.values.astype(float) - tissue).mean(axis=(1, 2))).max() < 0.6
    assert (allowed > 0) or off.max() == 0


@pytest.mark.parametrize("kind", ["JPEG 2000 of bare YCbCr, called YBR_ICT", "JPEG in YCbCr, called RGB"])
def test_openslide_returns_other_colours_so_that_dicom_does_not_go_through_it(
    tmp_path: Path, tissue: Rgb, kind: str
) -> None:
    path = write_dicom_slide(tmp_path / "s.dcm", tissue, stored=LOSSY[kind][0], tile=(32, 64))
    with openslide.OpenSlide(str(path)) as handle:
        read = np.asarray(handle.read_region((0, 0), 0, handle.dimensions))[..., :3]
    assert np.abs(read.astype(int) - rgb_last(tissue)).mean() > 20
    assert open_source(path).format == "DICOM slide"


def test_headers_of_jpegs_that_end_early_say_nothing() -> None:
    frame = rgb_jpeg(np.zeros((16, 16, 3), np.uint8))
    for length in range(2, 18):
        assert jpeg_is_ycbcr(frame[:length], stated=True)
        assert not jpeg_is_ycbcr(frame[:length], stated=False)
    assert not has_color_transform(b"")
    assert not has_color_transform(j2k(np.zeros((16, 16, 3), np.uint8), transformed=True)[:40])
