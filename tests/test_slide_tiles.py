"""Tiles that tifffile decodes in OpenSlide's place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest

import wsiseg
from wsiseg.sources import open_source, slide_tiles, tiff

SLIDE = Path(wsiseg.__file__).parent / "samples" / "CMU-1-Small-Region.svs"


def expected() -> np.ndarray:
    with openslide.OpenSlide(str(SLIDE)) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def test_every_pixel_of_an_aperio_slide_is_the_one_that_openslide_gives() -> None:
    source = open_source(SLIDE)
    assert source.format == "OpenSlide aperio, tiles by tifffile"
    pixels = source.read(tuple(slice(0, n) for n in source.geometry.shape))
    assert pixels.all_valid
    np.testing.assert_array_equal(np.moveaxis(pixels.values, 0, -1), expected())


def test_one_other_value_makes_openslide_read_the_slide(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        def __init__(self, array: object) -> None:
            self._array, self.chunks = array, array.chunks  # type: ignore[attr-defined]

        def __getitem__(self, region: object) -> np.ndarray:
            values = np.array(self._array[region])  # type: ignore[index]
            values[-1, -1, 0] ^= 1
            return values

    real = tiff.level_array
    monkeypatch.setattr(slide_tiles, "level_array", lambda *a, **k: Wrong(real(*a, **k)))
    source = open_source(SLIDE)
    pixels = source.read(tuple(slice(0, n) for n in source.geometry.shape))
    assert source.format == "OpenSlide aperio"
    np.testing.assert_array_equal(np.moveaxis(pixels.values, 0, -1), expected())
