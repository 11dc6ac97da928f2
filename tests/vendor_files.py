"""Small files in scanners' own formats, written from what their readers expect: no real slides."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from tests.images import Rgb

TILE = 64
Place = tuple[int, int]


def halved(rgb: Rgb) -> Rgb:
    """Every other pixel."""
    return np.ascontiguousarray(rgb[::2, ::2])


def _jpeg(rgb: Rgb) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


# -- MIRAX: a folder with tiles in one file, an index and a table of both --------------------------------


def write_mirax(folder: Path, tiles: Mapping[Place, Rgb], *, grid: Place, name: str = "slide") -> Path:
    """A 3DHISTECH slide of two levels; `tiles` by (row, column) of a grid, others were not scanned."""
    inner = folder / name
    inner.mkdir()
    (inner / "Slidedat.ini").write_text(_mirax_table(grid), encoding="utf-8")
    data, levels = b"", []
    for level in (tiles, _coarser(tiles)):
        entries = []
        for (row, column), rgb in level.items():
            tile = _jpeg(rgb)
            entries.append((row * grid[1] + column, len(data), len(tile), 0))
            data += tile
        levels.append(entries)
    (inner / "Data0000.dat").write_bytes(data)
    (inner / "Index.dat").write_bytes(_mirax_index(levels))
    path = folder / f"{name}.mrxs"
    path.write_bytes(_jpeg(next(iter(tiles.values()))))
    return path


def _coarser(tiles: Mapping[Place, Rgb]) -> dict[Place, Rgb]:
    """Tiles of the next level: one at the place of the first of each four, white where there is none."""
    places = sorted({(row - row % 2, column - column % 2) for row, column in tiles})
    none = np.full((TILE, TILE, 3), 255, np.uint8)

    def whole(row: int, column: int) -> Rgb:
        rows = [np.hstack([tiles.get((r, c), none) for c in (column, column + 1)]) for r in (row, row + 1)]
        return halved(np.vstack(rows))

    return {place: whole(*place) for place in places}


def _mirax_table(grid: Place) -> str:
    lines = [
        "[GENERAL]", "SLIDE_ID=0123456789ABCDEF", "SLIDE_VERSION=01.02",
        f"IMAGENUMBER_X={grid[1]}", f"IMAGENUMBER_Y={grid[0]}", "OBJECTIVE_MAGNIFICATION=20",
        "[HIERARCHICAL]", "HIER_COUNT=1", "NONHIER_COUNT=0", "INDEXFILE=Index.dat",
        "HIER_0_NAME=Slide zoom level", "HIER_0_COUNT=2",
        "HIER_0_VAL_0_SECTION=LEVEL_0", "HIER_0_VAL_1_SECTION=LEVEL_1",
        "[DATAFILE]", "FILE_COUNT=1", "FILE_0=Data0000.dat",
    ]  # fmt: skip
    for number, um in enumerate((0.4, 0.8)):
        lines += [
            f"[LEVEL_{number}]", "OVERLAP_X=0", "OVERLAP_Y=0", f"IMAGE_CONCAT_FACTOR={number}",
            f"MICROMETER_PER_PIXEL_X={um}", f"MICROMETER_PER_PIXEL_Y={um}", "IMAGE_FILL_COLOR_BGR=16777215",
            f"DIGITIZER_WIDTH={TILE}", f"DIGITIZER_HEIGHT={TILE}", "IMAGE_FORMAT=JPEG",
        ]  # fmt: skip
    return "\r\n".join(lines) + "\r\n"


def _mirax_index(levels: Sequence[Sequence[tuple[int, int, int, int]]]) -> bytes:
    """Pointers to the records of the levels; a record points to one page of (place, offset, length, file)."""
    head = b"01.02" + b"0123456789ABCDEF"
    table = len(head) + 8
    first = table + 4 * len(levels)
    records, pointers = b"", []
    for entries in levels:
        at = first + len(records)
        pointers.append(at)
        records += struct.pack("<4i", 0, at + 8, len(entries), 0)
        records += b"".join(struct.pack("<4i", *entry) for entry in entries)
    return head + struct.pack("<2i", table, 0) + struct.pack(f"<{len(pointers)}i", *pointers) + records


# -- TIFFs with tags or texts of their own ----------------------------------------------------------------


def write_ndpi(path: Path, rgb: Rgb, *, middle_nm: tuple[int, int] = (0, 0)) -> Path:
    """A Hamamatsu slide of two levels and a macro image, each one JPEG; `middle_nm` (y, x) is its place."""
    with tifffile.TiffWriter(path) as file:
        for image, lens in ((rgb, 20.0), (halved(rgb), 10.0), (rgb[:32, :64], -1.0)):
            file.write(
                image, photometric="rgb", compression="jpeg", rowsperstrip=len(image), metadata=None,
                compressionargs={"level": 95, "subsampling": "444"}, resolution=(25_000, 20_000),
                resolutionunit="CENTIMETER",
                extratags=[
                    (65420, "I", 1, 1, True), (65421, "f", 1, lens, True),
                    (65422, "i", 1, middle_nm[1], True), (65423, "i", 1, middle_nm[0], True),
                    (65424, "i", 1, 0, True),
                ],
            )  # fmt: skip
    return path


def write_scn(path: Path, rgb: Rgb, *, around: int) -> Path:
    """A Leica slide of two levels in the middle of a larger glass, whose macro image comes first."""
    nm = 500
    height, width = rgb.shape[:2]
    glass = [(n + 2 * around) * nm for n in (width, height)]
    own = [n * nm for n in (width, height)]
    levels = [rgb, halved(rgb)]
    text = (
        f"""<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="c" uuid="u"
 sizeX="{glass[0]}" sizeY="{glass[1]}"><barcode>none</barcode>
<image name="macro"><view sizeX="{glass[0]}" sizeY="{glass[1]}" offsetX="0" offsetY="0"/>
<pixels sizeX="{TILE}" sizeY="{TILE}"><dimension sizeX="{TILE}" sizeY="{TILE}" r="0" ifd="0"/></pixels>
<scanSettings><objectiveSettings><objective>1</objective></objectiveSettings><illuminationSettings>
<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>
<image name="image"><view sizeX="{own[0]}" sizeY="{own[1]}" offsetX="{around * nm}" offsetY="{around * nm}"/>
<pixels sizeX="{width}" sizeY="{height}">"""
        + "".join(
            f'<dimension sizeX="{level.shape[1]}" sizeY="{level.shape[0]}" r="{n}" ifd="{n + 1}"/>'
            for n, level in enumerate(levels)
        )
        + """</pixels>
<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>
<illuminationSource>brightfield</illuminationSource><numericalAperture>0.4</numericalAperture>
</illuminationSettings></scanSettings></image></collection></scn>"""
    )
    shared: dict[str, Any] = {
        "photometric": "rgb", "tile": (TILE, TILE), "compression": "jpeg", "metadata": None,
        "compressionargs": {"level": 95, "subsampling": "444"},
    }  # fmt: skip
    with tifffile.TiffWriter(path) as file:
        file.write(np.full((TILE, TILE, 3), 240, np.uint8), description=text, **shared)
        for n, level in enumerate(levels):
            per_cm = 1e7 / (nm << n)
            file.write(level, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", **shared)
    return path


def write_bif(path: Path, rgb: Rgb) -> Path:
    """A Ventana slide of one scanned area whose tiles touch, and of two levels."""
    rows, columns = (int(n) // TILE for n in rgb.shape[:2])
    tiles = [(row, column) for row in range(rows) for column in range(columns)]

    # Tiles are numbered from the bottom, and every other row from the right: as the stage moved.
    def number(row: int, column: int) -> int:
        up = rows - 1 - row
        return up * columns + (columns - 1 - column if up % 2 else column) + 1

    pairs = [("RIGHT", (r, c), (r, c + 1)) for r, c in tiles if c + 1 < columns]
    pairs += [("UP", (r, c), (r - 1, c)) for r, c in tiles if r]
    joints = "".join(
        f'<TileJointInfo FlagJoined="1" Confidence="95" Direction="{way}" Tile1="{number(*a)}" '
        f'Tile2="{number(*b)}" OverlapX="0" OverlapY="0"/>'
        for way, a, b in pairs
    )
    area = f'AOIScanned="1" AOIIndex="0" Width="{TILE}" Height="{TILE}" NumRows="{rows}" NumCols="{columns}"'
    stitched = (
        '<EncodeInfo Ver="2"><SlideStitchInfo>'
        f'<ImageInfo {area} Pos-X="0" Pos-Y="0">{joints}</ImageInfo></SlideStitchInfo>'
        '<AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )
    scan = '<Metadata><iScan Magnification="20" ScanRes="0.4650"/></Metadata>'
    pages = [
        (rgb[:TILE, :TILE], "Label_Image", scan),
        (rgb, "level=0 mag=20 quality=95", stitched),
        (halved(rgb), "level=1 mag=10 quality=95", ""),
    ]
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for image, text, packet in pages:
            tags = [(700, "B", len(packet), packet.encode(), True)] if packet else []
            file.write(
                image, photometric="rgb", tile=(TILE, TILE), compression="jpeg", description=text,
                compressionargs={"level": 95, "subsampling": "444"}, metadata=None, extratags=tags,
            )  # fmt: skip
    return path
