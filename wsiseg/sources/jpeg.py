"""What a JPEG's own header says, before a decoder believes it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

START, END, SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def segments(stream: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Markers of a JPEG or JPEG 2000 header, and what follows their lengths."""
    at = start
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        (length,) = struct.unpack_from(">H", stream, at + 2)
        yield stream[at + 1], stream[at + 4 : at + 2 + length]
        at += 2 + length


def check_jpeg(stream: bytes, *, most: int) -> None:
    """Raises ValueError for a stream that ends early, or whose header asks for more than `most` pixels.

    libjpeg fills what is lost with grey and only warns; streams are padded to even lengths.
    """
    if not stream.rstrip(b"\0\xff").endswith(END):
        raise ValueError("a JPEG that ends early")
    for marker, content in segments(stream, len(START)):
        if marker in FRAME_HEADERS and len(content) >= 5:
            rows, columns = struct.unpack_from(">HH", content, 1)
            if rows * columns > most:
                raise ValueError(f"a JPEG of {rows} x {columns} pixels in a tile of fewer")
        elif marker == SCAN:
            return
