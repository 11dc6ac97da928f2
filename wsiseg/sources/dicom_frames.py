"""Frames of DICOM slides as RGB.

Whether components are RGB or YCbCr is said twice, by the header's PhotometricInterpretation and by the
compressed stream, and converters get the header wrong: Aperio's JPEG 2000 with bare YCbCr components
is labelled YBR_ICT (openslide#772), JPEGs in YCbCr are labelled RGB (libdicom#80). OpenSlide and wsidicom
follow the header then and return other colours, so here the stream is asked first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from wsidicom.codec import Decoder
from wsidicom.geometry import Size

from wsiseg.sources.base import Array
from wsiseg.sources.jpeg import FRAME_HEADERS, SCAN, START, check_jpeg, segments

Decode = Callable[[bytes], Array]

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
_JPEG_2000 = (JPEG2000, JPEG2000Lossless, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL)
SYNTAXES = (*NATIVE, JPEGBaseline8Bit, *_JPEG_2000, JPEGLSLossless, JPEGLSNearLossless, RLELossless)
"""Transfer syntaxes whose colours are known to come out right."""

_YCBCR = ("YBR_FULL", "YBR_FULL_422", "YBR_ICT")
_CODESTREAM_START = b"\xff\x4f\xff\x51"
_APP0, _APP14, _COD, _SOT = 0xE0, 0xEE, 0x52, 0x90
_ADOBE_TRANSFORM_AT, _MCT_AT = 11, 4  # in the segments after their lengths


def frame_decoder(syntax: UID, photometric: str, *, tile: tuple[int, int]) -> Decode:
    """What turns a stored frame into RGB (*tile, 3) uint8; it may run in several threads.

    The decoder raises what libraries raise for damaged frames, ValueError for frames of another size.
    """
    shape = (*tile, 3)
    if syntax in NATIVE:
        return lambda frame: np.frombuffer(frame, np.uint8, count=int(np.prod(shape))).reshape(shape)
    decode = _color_decoder(syntax, photometric, tile)

    def checked(frame: bytes) -> Array:
        rgb = decode(frame)
        if rgb.shape != shape or rgb.dtype != np.uint8:
            raise ValueError(f"a frame of {rgb.shape} {rgb.dtype} in an image with frames of {shape} uint8")
        return rgb

    return checked


def _color_decoder(syntax: UID, photometric: str, tile: tuple[int, int]) -> Decode:
    as_stated = _decoder(syntax, photometric, tile)
    if syntax == JPEGBaseline8Bit:
        as_rgb, as_ycbcr = _decoder(syntax, "RGB", tile), _decoder(syntax, "YBR_FULL_422", tile)

        def from_jpeg(frame: bytes) -> Array:
            check_jpeg(frame, most=4 * tile[0] * tile[1])
            ycbcr = jpeg_is_ycbcr(frame, stated=photometric != "RGB")
            return (as_ycbcr if ycbcr else as_rgb)(frame)

        return from_jpeg
    if photometric not in _YCBCR:
        return as_stated

    def from_ycbcr(frame: bytes) -> Array:
        components = as_stated(frame)
        done = syntax in _JPEG_2000 and has_color_transform(frame)
        return components if done else _to_rgb(components)

    return from_ycbcr


def _decoder(syntax: UID, photometric: str, tile: tuple[int, int]) -> Decode:
    decoder = Decoder.create(
        syntax,
        samples_per_pixel=3,
        bits=8,
        size=Size(tile[1], tile[0]),
        photometric_interpretation=photometric,
    )
    decode: Decode = decoder.decode
    return decode


def _to_rgb(ycbcr: Array) -> Array:
    """Of full-range BT.601, as in JFIF; rounded, where Pillow cuts off and darkens by half a grey level."""
    y, blue, red = np.moveaxis(ycbcr.astype(np.float32), -1, 0)
    blue, red = blue - 128, red - 128
    rgb = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1)
    return np.asarray(np.clip(np.rint(rgb), 0, 255), np.uint8)


def jpeg_is_ycbcr(frame: bytes, *, stated: bool) -> bool:
    """Whether a JPEG of three components holds YCbCr; `stated` where it does not say so itself.

    As libjpeg decides: JFIF is YCbCr, Adobe's marker names the transform, components may be called R, G, B.
    Chroma that is stored at a lower resolution is a sign too.
    """
    says: bool | None = None
    for marker, content in segments(frame, len(START)):
        if marker == _APP0 and content.startswith(b"JFIF"):
            return True
        if marker == _APP14 and content.startswith(b"Adobe") and len(content) > _ADOBE_TRANSFORM_AT:
            says = content[_ADOBE_TRANSFORM_AT] != 0
        elif marker in FRAME_HEADERS and says is None:
            names, sampling = content[6::3], content[7::3]
            if len(set(sampling)) > 1:
                says = True
            elif names == b"RGB":
                says = False
        elif marker == SCAN:
            break
    return stated if says is None else says


def has_color_transform(frame: bytes) -> bool:
    """Whether a JPEG 2000 codestream is marked as transformed, so that decoders give RGB back."""
    start = frame.find(_CODESTREAM_START)
    for marker, content in segments(frame, start + 2):
        if marker == _COD and len(content) > _MCT_AT:
            return content[_MCT_AT] != 0
        if marker == _SOT:
            break
    return False
