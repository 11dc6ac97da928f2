"""The benchmark of growth: what it makes, and what it makes of figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wsiseg
from benchmarks import scale
from benchmarks.slide import mosaic
from benchmarks.speed import Measured


def test_the_exponent_is_that_of_a_power() -> None:
    sizes = [1e6, 3e7, 1e9]
    assert scale.exponent(sizes, [s**1.5 for s in sizes]) == pytest.approx(1.5)
    assert scale.exponent(sizes, [3 * s for s in sizes]) == pytest.approx(1.0)
    # What the small slide computes is taken off with start-up: that must not look like growth.
    pixels = [size * 1e9 for size in scale.GIGAPIXELS]
    small = scale.START_SIDE**2
    assert scale.exponent(pixels, [(p - small) / 4e6 for p in pixels]) < 1.005 < scale.MAX_EXPONENT


def test_a_tall_slide_repeats_its_first_rows(tmp_path: Path) -> None:
    path = scale.make_tall(tmp_path / "tall.tif", height=2 * scale.PERIOD + 100, width=600)
    source = wsiseg.open_source(path)
    assert source.geometry.shape == (2660, 600)
    assert source.geometry.spacing == (0.5, 0.5)
    first = source.read((slice(0, scale.PERIOD), slice(0, 600))).values
    again = source.read((slice(scale.PERIOD, 2 * scale.PERIOD), slice(0, 600))).values
    rest = source.read((slice(2 * scale.PERIOD, 2660), slice(0, 600))).values
    assert np.array_equal(first, again)
    assert np.array_equal(first[:, :100], rest)
    expected = mosaic(height=scale.PERIOD, width=600).transpose(2, 0, 1)
    assert np.abs(first.astype(int) - expected).mean() < 6  # it is a JPEG
    assert path.stat().st_size < 3e6


def test_a_volume_of_any_size_is_the_shipped_one_repeated(tmp_path: Path) -> None:
    path = scale.make_volume(tmp_path / "v.nii.gz", side=72)
    source = wsiseg.open_source(path)
    assert source.geometry.shape == (72, 72, 72)
    assert len(np.unique(source.read(source.geometry.whole).values)) > 100


def test_what_is_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[tuple[str, ...]] = []

    def measured(*command: str) -> Measured:
        commands.append(command)
        return Measured(cpu_s=2.0, wall_s=3.0, peak_mb=400.0, said={})

    monkeypatch.setattr(scale, "measure", measured)
    more: dict[str, Any] = {"kind": "slide", "threads": 1}
    for _ in range(2):
        kept = scale.Kept(tmp_path / "measured.json")
        found = kept.segment("a", tmp_path / "a.tif", tmp_path / "out", **more)
        assert found == {"cpu_s": 2.0, "wall_s": 3.0, "peak_mb": 400.0}
    assert len(commands) == 1
    assert commands[0][3:5] == ("segment", str(tmp_path / "a.tif"))
    assert json.loads((tmp_path / "measured.json").read_text()) == {"a, threads 1": found}
