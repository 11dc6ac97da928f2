"""From a file to a mask: spacing, tissue, region, void, report; on small real pieces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

import wsiseg
from tests.cases import SMALL, mask_of, polygon, write_tiff
from tests.conftest import espnet3d_card
from tests.test_volumes import edited, write_volume
from wsiseg.classes import VOID
from wsiseg.geometry import Region
from wsiseg.report import Report
from wsiseg.sources.base import Pixels
from wsiseg.sources.cached import CachedSource


def test_the_mask_has_the_size_of_the_slide_and_glass_is_background(segmented: Report) -> None:
    mask = mask_of(segmented)
    assert mask.shape == segmented.mask_shape == (300, 520)
    assert (mask[:, 500:] == 0).all()
    assert (mask[20:200, 10:120] != 0).mean() > 0.9
    assert segmented.tissue_share is not None
    assert 0.3 < segmented.tissue_share < 0.9


def test_the_report_adds_up(segmented: Report) -> None:
    mask = mask_of(segmented)
    for entry in segmented.classes:
        assert entry.pixels == int((mask == entry.index).sum())
        assert entry.area_mm2 == pytest.approx(entry.pixels * 0.25e-6, abs=1e-6)
    assert sum(entry.share for entry in segmented.classes) == pytest.approx(1.0)
    written = json.loads(segmented.report.read_text())
    assert written["notice"] == "research use only, not for diagnosis"
    assert written["model"]["name"] == "breast-tissue3"
    assert written["execution"]["core"] == [64, 64]
    assert written["void"] == {
        "unreadable_pixels": 0, "unreadable_share": 0.0, "places": [], "outside_region_pixels": 0,
    }  # fmt: skip
    with Image.open(segmented.overlay) as overlay:
        assert min(overlay.size) > 300


def test_the_stored_image_is_the_slide(segmented: Report, picture: NDArray[np.uint8]) -> None:
    image = wsiseg.open_store(segmented.store).image()
    assert image is not None
    np.testing.assert_array_equal(np.moveaxis(np.asarray(image[:]), 0, -1), picture)
    opened = wsiseg.open_source(segmented.store)
    assert opened.geometry.spacing == (0.5, 0.5)


@pytest.mark.parametrize(
    ("slab", "image"),
    [
        (32, "none"),
        *(pytest.param(*p, marks=pytest.mark.slow) for p in [(32, "model"), (128, "none"), (128, "model")]),
    ],
)
def test_the_mask_does_not_depend_on_slabs_readers_or_the_stored_image(
    slide: Path, segmented: Report, tmp_path: Path, image: str, slab: int
) -> None:
    report = wsiseg.segment(slide, tmp_path, **(SMALL | {"slab": slab, "readers": 4, "image": image}))
    np.testing.assert_array_equal(mask_of(report), mask_of(segmented))


@pytest.mark.slow
def test_a_slide_of_any_spacing_is_read_at_the_models_and_its_mask_lies_on_level_0(
    picture: NDArray[np.uint8], segmented: Report, tmp_path: Path
) -> None:
    fine = write_tiff(tmp_path / "fine.tif", picture.repeat(2, axis=0).repeat(2, axis=1), mpp=0.25)
    report = wsiseg.segment(fine, tmp_path, **SMALL)
    mask = mask_of(report)
    assert mask.shape == (600, 1040)
    assert report.execution["model_grid"] == [300, 520]
    assert "resampled from 0.25 to 0.5" in report.remarks[0]
    # Pairs of equal pixels averaged give nearly the pixels of the coarse slide.
    agreement = (mask[::2, ::2] == mask_of(segmented)).mean()
    assert agreement > 0.93
    # Each pixel of the model's grid becomes two by two pixels; tissue is applied to them singly.
    plain = mask_of(wsiseg.segment(fine, tmp_path / "plain", tissue_filter=False, **SMALL))
    np.testing.assert_array_equal(plain[::2, ::2].repeat(2, axis=0).repeat(2, axis=1), plain)


def test_a_small_difference_of_spacing_is_used_as_it_is_and_said(
    picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    report = wsiseg.segment(write_tiff(tmp_path / "s.tif", picture, mpp=0.51), tmp_path, **SMALL)
    assert report.execution["model_grid"] == [300, 520]
    assert "used as they are: 2 % from the model's 0.5" in report.remarks[0]


def test_a_blank_slide_ends_with_background_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = write_tiff(tmp_path / "blank.tif", np.full((300, 260, 3), 238, np.uint8))
    from wsiseg.predict import NetworkPredictor, Outputs

    original, seen = NetworkPredictor.__call__, []

    def kept(self: NetworkPredictor, images: NDArray[np.uint8]) -> Outputs:
        seen.append(images.any())
        return original(self, images)

    monkeypatch.setattr(NetworkPredictor, "__call__", kept)
    report = wsiseg.segment(blank, tmp_path, **SMALL)
    assert not seen
    assert not mask_of(report).any()
    assert report.tissue_share == 0.0
    assert "no tissue was found: the whole mask is background" in report.remarks


@pytest.mark.slow
def test_what_cannot_be_decoded_is_void_with_its_place_and_share(
    picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = write_tiff(tmp_path / "broken.tif", picture, tile=64)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0].aspage()
        across = -(-page.imagewidth // 64)
        offset, count = (values[1 * across + 2] for values in (page.dataoffsets, page.databytecounts))
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = b"\xff" * count
    path.write_bytes(data)
    for number, filtered in enumerate((True, False)):
        report = wsiseg.segment(path, tmp_path / str(number), tissue_filter=filtered, **SMALL)
        mask = mask_of(report)
        expected = np.zeros(mask.shape, bool)
        expected[64:128, 128:192] = True
        np.testing.assert_array_equal(mask == VOID, expected)
        assert report.void.unreadable_pixels == 64 * 64
        assert report.void.unreadable_share == 64 * 64 / (300 * 520)
        assert report.void.places == ((64, 128, 128, 192),)
        assert "could not be decoded and are void" in " ".join(report.remarks)


def test_a_region_segments_inside_its_polygons_only(slide: Path, segmented: Report, tmp_path: Path) -> None:
    roi = tmp_path / "roi.geojson"
    square = polygon(None, (40, 50), (200, 50), (200, 150), (40, 150))
    roi.write_text(json.dumps({"type": "FeatureCollection", "features": [square]}))
    report = wsiseg.segment(slide, tmp_path, region=roi, **SMALL)
    mask = mask_of(report)
    inside = np.zeros(mask.shape, bool)
    inside[50:150, 40:200] = True
    np.testing.assert_array_equal(mask == VOID, ~inside)
    np.testing.assert_array_equal(mask[inside], mask_of(segmented)[inside])
    assert report.void.outside_region_pixels == int((~inside).sum())
    assert report.void.unreadable_pixels == 0


def test_a_model_without_a_background_class_segments_everything(slide: Path, tmp_path: Path) -> None:
    from wsiseg.models.zoo import ZOO

    card = json.loads((ZOO / "demo-breast8.json").read_text()) | {"background": None}
    (tmp_path / "all.json").write_text(json.dumps(card))
    (tmp_path / card["weights"]).write_bytes((ZOO / card["weights"]).read_bytes())
    report = wsiseg.segment(slide, tmp_path, tmp_path / "all.json", **SMALL)
    assert report.tissue_share is None
    plain = wsiseg.segment(slide, tmp_path / "plain", "demo-breast8", tissue_filter=False, **SMALL)
    np.testing.assert_array_equal(mask_of(report), mask_of(plain))


@pytest.mark.parametrize("image", ["full", "model"])
def test_each_stored_tile_is_decoded_once_for_mask_and_image(
    picture: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    from wsiseg.geometry import region_shape
    from wsiseg.sources import tiff

    # 320 pixels a block: rows of windows and slabs cross its borders.
    slide = write_tiff(tmp_path / "tiles.tif", picture.repeat(3, axis=0), tile=320)
    read: list[Region] = []
    original = tiff.TiffSource.read

    def counted(self: tiff.TiffSource, region: Region) -> Pixels:
        read.append(region)
        return original(self, region)

    monkeypatch.setattr(tiff.TiffSource, "read", counted)
    wsiseg.segment(
        slide, tmp_path, "demo-breast8", tissue_filter=False, **(SMALL | {"image": image, "taper": 4})
    )
    seen = np.zeros((900, 520), int)
    for region in read:
        seen[region] += 1
    np.testing.assert_array_equal(seen, 1)
    assert sum(h * w for h, w in map(region_shape, read)) == 900 * 520


def test_a_stored_image_in_millimetres_or_with_a_damaged_chunk_is_read_as_it_is(
    segmented: Report, picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    import shutil

    copied = tmp_path / "copy.ome.zarr"
    shutil.copytree(segmented.store, copied)
    meta = json.loads((copied / "zarr.json").read_text())
    multiscale = meta["attributes"]["ome"]["multiscales"][0]
    for axis in multiscale["axes"][1:]:
        axis["unit"] = "millimeter"
    for transform in multiscale["datasets"][0]["coordinateTransformations"]:
        transform["scale"] = [1.0, 0.0005, 0.0005]
    (copied / "zarr.json").write_text(json.dumps(meta))
    source = wsiseg.open_source(copied)
    assert (source.geometry.unit, source.geometry.spacing) == ("micrometer", (0.5, 0.5))
    report = wsiseg.segment(copied, tmp_path / "out", **SMALL)
    np.testing.assert_array_equal(mask_of(report), mask_of(segmented))
    shard = max((copied / "0" / "c").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    data = bytearray(shard.read_bytes())
    data[10:200] = b"\xff" * 190  # inside its first chunk
    shard.write_bytes(data)
    pixels = wsiseg.open_source(copied).read(wsiseg.open_source(copied).geometry.whole)
    assert 0 < (~pixels.valid).sum() <= 32 * 32
    np.testing.assert_array_equal(np.moveaxis(pixels.values, 0, -1)[pixels.valid], picture[pixels.valid])


@pytest.mark.parametrize("image", ["full", "none"])
def test_statistics_of_a_case_do_not_keep_the_whole_image_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    card = edited(espnet3d_card(tmp_path, channels=1), preprocessing={"statistics": "case"})
    values = np.random.default_rng(0).integers(1, 99, (12, 12, 400)).astype(np.int16)
    write_volume(tmp_path / "v.nii", values)
    held = []
    original = CachedSource.read

    def read(cached: CachedSource, region: Region) -> Pixels:
        made = original(cached, region)
        held.append(len(cached._blocks))
        return made

    monkeypatch.setattr(CachedSource, "read", read)
    monkeypatch.setattr("wsiseg.pipeline.make_executor", None)
    with pytest.raises(TypeError):  # after the statistics
        wsiseg.segment(tmp_path / "v.nii", tmp_path, card, image=image, memory=640, chunk=16, slab=16)
    assert len(held) == 400 // 16
    assert max(held) <= 2
