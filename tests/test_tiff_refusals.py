"""TIFFs that are no slide of 8-bit colours are refused by a sentence that says why."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from wsiseg.errors import SourceError
from wsiseg.sources import open_source


def test_a_tiff_of_more_channels_than_a_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(
        path, np.zeros((40, 53, 5), np.uint8), photometric="minisblack", planarconfig="contig", metadata=None
    )
    with pytest.raises(SourceError, match="5 channels"):
        open_source(path, mpp=0.5)


def test_tiffs_that_are_not_one_picture_of_8_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, np.zeros((16, 20, 3), np.uint16), photometric="rgb")
    with pytest.raises(SourceError, match=r"slide\.tif has uint16 pixels; 8 bits a channel"):
        open_source(path, mpp=0.5)
    tifffile.imwrite(path, np.zeros((5, 16, 20), np.uint8), photometric="minisblack")
    with pytest.raises(SourceError, match=r"is a stack of shape \(5, 16, 20\) .*; one picture is supported"):
        open_source(path, mpp=0.5)
    # Three planes with a page each: nothing says that they are red, green and blue.
    tifffile.imwrite(
        path, np.zeros((3, 16, 20), np.uint8), photometric="minisblack", metadata={"axes": "CYX"}
    )
    with pytest.raises(SourceError, match=r"a stack of shape \(3, 16, 20\) .*: write its colours as one RGB"):
        open_source(path, mpp=0.5)
    tifffile.imwrite(path, np.zeros((4, 16, 20), np.uint8), photometric="minisblack", volumetric=True)
    with pytest.raises(SourceError, match="has axes ZYX; one picture of axes YX, YXS or SYX is supported"):
        open_source(path, mpp=0.5)


@pytest.mark.parametrize(
    ("shape", "options", "says"),
    [
        ((16, 20), {"photometric": "minisblack"}, "has 1 channel; RGB and RGBA are supported"),
        ((16, 20), {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}, "has 1 channel"),
        ((16, 20, 2), {"photometric": "minisblack", "extrasamples": ["unassalpha"]}, "has 2 channels"),
        ((16, 20, 3), {"photometric": "cielab"}, "has CIELAB pixels with compression NONE; .* convert it to"),
        ((16, 20, 4), {"photometric": "separated"}, "has SEPARATED pixels with compression NONE"),
        (
            (16, 20, 3),
            {"photometric": "ycbcr", "compression": "lzw"},
            "has YCBCR pixels with compression LZW",
        ),
        (
            (16, 20, 3),
            {"photometric": "rgb", "compression": "aperio_jp2000_ycbc"},
            "has RGB pixels with compression APERIO_JP2000_YCBC",
        ),
    ],
)
def test_tiffs_whose_values_are_no_rgb_are_refused(
    tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any], says: str
) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, np.zeros(shape, np.uint8), metadata=None, **options)
    with pytest.raises(SourceError, match=rf"slide\.tif {says}"):
        open_source(path, mpp=0.5)


def test_a_tiff_of_unknown_compression_is_refused_and_not_void(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, np.zeros((16, 20, 3), np.uint8), photometric="rgb", metadata=None)
    with tifffile.TiffFile(path) as file:
        where = file.pages[0].tags["Compression"].valueoffset  # type: ignore[union-attr]
    with path.open("r+b") as stream:
        stream.seek(where)
        stream.write(struct.pack("<H", 12_345))
    with pytest.raises(SourceError, match="has TIFF compression 12345, which is not supported; convert it"):
        open_source(path, mpp=0.5)
