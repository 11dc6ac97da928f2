"""Zeiss CZI files, as small as OpenSlide takes them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.images import Rgb, rgb_last

XML = (
    "<ImageDocument><Metadata><Information><Image><SizeX>{width}</SizeX><SizeY>{height}</SizeY><SizeS>1</SizeS>"
    '</Image></Information><Scaling><Items><Distance Id="X"><Value>2.5e-07</Value></Distance>'
    '<Distance Id="Y"><Value>4e-07</Value></Distance></Items></Scaling></Metadata></ImageDocument>'
)


def write_czi(
    path: Path, image: Rgb, *, compression: int, encode: Callable[[Rgb], bytes], pixel_type: int = 3
) -> Path:
    """An image (3, y, x) in two subblocks side by side; `encode` takes one as BGR (y, x, 3)."""
    height, width = image.shape[1:]
    out = bytearray(len(_segment("ZISRAWFILE", bytes(512))))
    entries = []
    for left in (0, width // 2):
        block = rgb_last(image)[:, left : left + width // 2, ::-1]
        data = encode(np.ascontiguousarray(block))
        entries.append(_entry(len(out), compression, pixel_type, left, width // 2, height))
        head = struct.pack("<iiq", 0, 0, len(data)) + entries[-1]
        out += _segment("ZISRAWSUBBLOCK", head.ljust(256, b"\0") + data)
    places = {}
    xml = XML.format(width=width, height=height).encode()
    for name, content in {
        "ZISRAWDIRECTORY": struct.pack("<i", len(entries)).ljust(128, b"\0") + b"".join(entries),
        "ZISRAWMETADATA": struct.pack("<i", len(xml)).ljust(256, b"\0") + xml,
        "ZISRAWATTDIR": bytes(256),
    }.items():
        places[name] = len(out)
        out += _segment(name, content)
    directory, metadata, attachments = places.values()
    start = struct.pack("<i", 1).ljust(52, b"\0") + struct.pack("<qqiq", directory, metadata, 0, attachments)
    file = _segment("ZISRAWFILE", start.ljust(512, b"\0"))
    out[: len(file)] = file
    path.write_bytes(bytes(out))
    return path


def _segment(name: str, content: bytes) -> bytes:
    content_length = -(-len(content) // 32) * 32
    head = name.encode().ljust(16, b"\0") + struct.pack("<qq", content_length, len(content))
    return head + content.ljust(content_length, b"\0")


def _entry(position: int, compression: int, pixel_type: int, left: int, width: int, height: int) -> bytes:
    dimensions = {"X": (left, width), "Y": (0, height), "C": (0, 1), "S": (0, 1)}
    entry = b"DV" + struct.pack("<iqii6xi", pixel_type, position, 0, compression, len(dimensions))
    for name, (start, size) in dimensions.items():
        entry += struct.pack("<4siifi", name.encode(), start, size, 0.0, size)
    return entry
