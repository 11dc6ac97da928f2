"""Inputs and settings that cannot be are refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import wsiseg
from tests.cases import SMALL, mask_of, write_tiff
from tests.conftest import SLIDE
from wsiseg.errors import (
    MissingSpacing,
    NoRoom,
    SourceError,
    StoreError,
    UnreadableSource,
    UsageError,
)
from wsiseg.files import RESERVE
from wsiseg.report import Report

pytestmark = pytest.mark.usefixtures("eight_classes")


def test_a_slide_coarser_than_the_model_is_refused_unless_told_otherwise(
    picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    coarse = write_tiff(tmp_path / "coarse.tif", picture[::2, ::2], mpp=1.0)
    with pytest.raises(SourceError, match="coarser than the 0.5 that the model .* --allow-upsampling"):
        wsiseg.segment(coarse, tmp_path, **SMALL)
    report = wsiseg.segment(coarse, tmp_path, allow_upsampling=True, **SMALL)
    assert mask_of(report).shape == (150, 260)
    assert report.execution["model_grid"] == [300, 520]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"core": 60}, "core .60, 60. must be multiples of the network's output stride 8"),
        ({"slab": 50}, "slab 50 must be a multiple of chunk"),
        ({"taper": 17}, "taper 17 needs a halo of at least"),
        ({"exact": True, "halo": 16}, "--exact needs a halo of 784 pixels, 16 was asked for"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"device": "meta"}, "device 'meta' is not supported"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there"),
        ({"colour": 1}, "unknown setting 'colour'; known are: allow_upsampling, annotation_frame, "),
        ({"batch": 0}, "setting 'batch' = 0: Input should be greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    slide: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        wsiseg.segment(slide, tmp_path, **(SMALL | options))


def test_inputs_that_cannot_be_used_are_refused(
    tmp_path: Path, picture: NDArray[np.uint8], shared: Path
) -> None:
    with pytest.raises(UnreadableSource, match="no such file: .*none.svs"):
        wsiseg.segment(tmp_path / "none.svs", tmp_path)
    (tmp_path / "text.svs").write_text("this is text")
    with pytest.raises(UnreadableSource, match="text.svs is not an image that can be read"):
        wsiseg.segment(tmp_path / "text.svs", tmp_path)
    with pytest.raises(UnreadableSource, match="broken.svs"):
        wsiseg.segment(shared / "data" / "wsi-formats" / "broken.svs", tmp_path)
    with pytest.raises(MissingSpacing, match="does not state its pixel size; give it .* --mpp"):
        wsiseg.segment(write_tiff(tmp_path / "plain.tif", picture, mpp=None), tmp_path)
    assert not list(tmp_path.glob("*.ome.zarr"))


def test_a_result_never_replaces_its_input(segmented: Report) -> None:
    with pytest.raises(UsageError, match="would replace its own input"):
        wsiseg.segment(segmented.store, segmented.store.parent)


def test_a_disk_without_room_is_noticed_before_anything_is_written(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(StoreError, match="needs about .* GB and 0.00 GB are free; use --image none"):
        wsiseg.segment(slide, tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_stops_a_run_before_it_is_full_and_with_room_it_goes_on(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    whole = wsiseg.segment(slide, tmp_path / "whole", **SMALL)
    free, looks = [10**9, 10**9, 10**9, RESERVE + 400], []

    def usage(path: Path) -> SimpleNamespace:
        looks.append(path)
        return SimpleNamespace(free=free[min(len(looks), len(free)) - 1])

    monkeypatch.setattr("shutil.disk_usage", usage)
    with pytest.raises(
        NoRoom, match="the rest of .* needs about 0.01 GB and 0.01 GB are free; make room and"
    ):
        wsiseg.segment(slide, tmp_path / "out", **SMALL)
    ledger = tmp_path / "out" / "scene.ome.zarr" / "ledger"
    written = {path: path.stat().st_mtime_ns for path in ledger.glob("slab-*.json")}
    assert len(written) == 2  # one look before the run, and one before each slab
    monkeypatch.undo()
    report = wsiseg.segment(slide, tmp_path / "out", **SMALL)
    np.testing.assert_array_equal(mask_of(report), mask_of(whole))
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_the_shipped_slide_states_its_spacing() -> None:
    source = wsiseg.open_source(SLIDE)
    assert source.geometry.shape == (2967, 2220)
    assert source.geometry.spacing == (0.499, 0.499)


def test_a_folder_of_the_inputs_name_does_not_change_what_the_input_is(slide: Path, tmp_path: Path) -> None:
    copied = tmp_path / slide.name
    copied.write_bytes(slide.read_bytes())
    first = wsiseg.segment(copied, tmp_path / copied.stem, **SMALL)
    assert wsiseg.segment(copied, tmp_path / copied.stem, **SMALL).status == "already complete"
    assert set(first.input) >= {"sha256"}
