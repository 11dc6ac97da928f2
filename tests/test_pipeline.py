"""From a file to a mask: spacing, tissue, region, void, resume, report; on small real pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

import wsiseg
from tests.conftest import REPOSITORY, SLIDE
from wsiseg.classes import VOID
from wsiseg.errors import (
    AnnotationError,
    ConfigMismatch,
    MissingSpacing,
    SourceError,
    StoreError,
    UnreadableSource,
    UsageError,
)
from wsiseg.report import Report

T = TypeVar("T")
CROPS = REPOSITORY / "wsiseg" / "samples" / "ynet-breast8"
NAMES = ("1222_1_7200_3600_2", "1339_1_1000_9800_1.33", "2204_1_18400_11800_1.33")
SMALL: dict[str, Any] = {"core": 64, "halo": 16, "slab": 64, "chunk": 32, "tissue_margin_um": 8.0}


@pytest.fixture(scope="session")
def picture() -> NDArray[np.uint8]:
    """A small scene (y, x, 3) of real crops side by side, with glass on the right and below."""
    scene = np.full((300, 520, 3), 243, np.uint8)
    for number, name in enumerate(NAMES):
        crop = np.asarray(Image.open(CROPS / "images" / f"{name}.png"))
        scene[10 : 10 + 200, 130 * number + 5 : 130 * number + 125] = crop[:200, :120]
    return scene


def write_tiff(path: Path, rgb: NDArray[np.uint8], *, mpp: float | None = 0.5, tile: int = 32) -> Path:
    """A tiled lossless TIFF of known pixel size."""
    resolution: dict[str, Any] = {}
    if mpp is not None:
        resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, rgb, tile=(tile, tile), photometric="rgb", compression="zlib", **resolution)
    return path


@pytest.fixture(scope="session")
def slide(picture: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiff(tmp_path_factory.mktemp("slide") / "scene.tif", picture)


def mask_of(report: Report) -> NDArray[np.uint8]:
    return np.asarray(wsiseg.open_store(report.store).mask()[:])


@pytest.fixture(scope="session")
def segmented(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return wsiseg.segment(slide, tmp_path_factory.mktemp("out"), **SMALL)


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
    assert written["model"]["name"] == "demo-breast8"
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


@pytest.mark.parametrize("image", ["model", "none"])
@pytest.mark.parametrize("slab", [32, 128])
def test_the_mask_does_not_depend_on_slabs_readers_or_the_stored_image(
    slide: Path, segmented: Report, tmp_path: Path, image: str, slab: int
) -> None:
    report = wsiseg.segment(slide, tmp_path, **(SMALL | {"slab": slab, "readers": 4, "image": image}))
    np.testing.assert_array_equal(mask_of(report), mask_of(segmented))


def test_a_second_run_computes_nothing(
    slide: Path, segmented: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a finished case must not be computed again")

    monkeypatch.setattr("wsiseg.pipeline.load_predictor", refuse)
    monkeypatch.setattr("wsiseg.pipeline.detect_tissue", refuse)
    before = segmented.report.read_bytes()
    again = wsiseg.segment(slide, segmented.report.parent, **SMALL)
    assert again.status == "already complete"
    assert segmented.report.read_bytes() == before


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def stop_after(count: int) -> Any:
    def progress(items: Iterator[T], *, total: int, what: str) -> Iterator[T]:
        for number, item in enumerate(items):
            if number == count:
                raise Interrupted
            yield item

    return progress


@pytest.mark.parametrize("taper", [0, 8])
def test_interrupted_and_resumed_is_byte_identical_and_repeats_only_the_interrupted_slab(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taper: int
) -> None:
    options = SMALL | {"taper": taper, "image": "none"}
    whole = wsiseg.segment(slide, tmp_path / "whole", **options)
    windows: list[int] = []
    from wsiseg.predict import NetworkPredictor, Outputs

    original = NetworkPredictor.__call__

    def counted(self: NetworkPredictor, images: NDArray[np.uint8]) -> Outputs:
        windows.append(1)
        return original(self, images)

    monkeypatch.setattr(NetworkPredictor, "__call__", counted)
    wsiseg.segment(slide, tmp_path / "count", **options)
    uninterrupted = len(windows)
    windows.clear()
    for count in (0, 1, 2, 1):
        with pytest.raises(Interrupted):
            wsiseg.segment(slide, tmp_path / "parts", progress=stop_after(count), **options)
    parts = wsiseg.segment(slide, tmp_path / "parts", **options)
    np.testing.assert_array_equal(mask_of(parts), mask_of(whole))
    files = {
        p.relative_to(whole.store): p.read_bytes() for p in (whole.store / "labels").rglob("*") if p.is_file()
    }
    assert files == {
        p.relative_to(parts.store): p.read_bytes() for p in (parts.store / "labels").rglob("*") if p.is_file()
    }
    # With a taper a slab is made of three rows of windows: its own and those that fade into it.
    per_slab = -(-520 // 64) * (3 if taper else 1)
    assert len(windows) <= uninterrupted + 4 * per_slab


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


def test_a_slide_coarser_than_the_model_is_refused_unless_told_otherwise(
    picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    coarse = write_tiff(tmp_path / "coarse.tif", picture[::2, ::2], mpp=1.0)
    with pytest.raises(SourceError, match="coarser than the 0.5 that the model .* --allow-upsampling"):
        wsiseg.segment(coarse, tmp_path, **SMALL)
    report = wsiseg.segment(coarse, tmp_path, allow_upsampling=True, **SMALL)
    assert mask_of(report).shape == (150, 260)
    assert report.execution["model_grid"] == [300, 520]


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
    assert seen == [False]  # the trial, a window of zeros
    assert not mask_of(report).any()
    assert report.tissue_share == 0.0
    assert "no tissue was found: the whole mask is background" in report.remarks


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


def polygon(name: str | None, *corners: tuple[float, float]) -> dict[str, Any]:
    properties = {"classification": {"name": name}} if name else {}
    ring = [list(c) for c in (*corners, corners[0])]
    return {
        "type": "Feature",
        "properties": properties,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }


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


def test_annotations_of_a_crop_are_scored_and_a_finished_mask_is_scored_without_computing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = NAMES[0]
    image, truth = CROPS / "images" / f"{name}.png", CROPS / "masks" / f"{name}.png"
    report = wsiseg.segment(image, tmp_path, mpp=0.5, core=128, halo=64, annotations=truth)
    assert report.scores is not None
    prediction, expected = mask_of(report), np.asarray(Image.open(truth))[..., 0]
    for entry in report.scores.classes:
        p, t = prediction == entry.index, expected == entry.index
        union = int((p | t).sum())
        assert entry.iou == (int((p & t).sum()) / union if union else None)
    assert wsiseg.evaluate(report.store, truth) == report.scores
    monkeypatch.setattr("wsiseg.pipeline.load_predictor", None)
    flipped = tmp_path / "other.png"
    Image.fromarray(expected[::-1]).save(flipped)
    again = wsiseg.segment(image, tmp_path, mpp=0.5, core=128, halo=64, annotations=flipped)
    assert again.scores is not None
    assert again.scores != report.scores


def test_evaluate_takes_pictures_and_writes_scores(tmp_path: Path) -> None:
    truth = np.array([[0, 2], [4, 255]], np.uint8).repeat(3, axis=0)
    prediction = np.array([[0, 2], [2, 2]], np.uint8).repeat(3, axis=0)
    Image.fromarray(truth).save(tmp_path / "truth.png")
    Image.fromarray(prediction).save(tmp_path / "prediction.png")
    scores = wsiseg.evaluate(
        tmp_path / "prediction.png", tmp_path / "truth.png", out=tmp_path / "scores.json"
    )
    assert [c.iou for c in scores.classes] == [1.0, None, 0.5, None, 0.0, None, None, None]
    assert scores.mean_iou == 0.5
    assert scores.void_pixels == 3
    assert json.loads((tmp_path / "scores.json").read_text())["pixel_accuracy"] == pytest.approx(6 / 9)


def test_truth_that_does_not_fit_is_refused_before_anything_is_computed(slide: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(AnnotationError, match="small.png has 10 x 12 pixels .* the prediction has 300 x 520"):
        wsiseg.segment(slide, tmp_path, annotations=tmp_path / "small.png", **SMALL)
    strange = tmp_path / "strange.geojson"
    strange.write_text(json.dumps([polygon("cartilage", (0, 0), (9, 0), (9, 9))]))
    with pytest.raises(
        AnnotationError, match="feature 1 has class 'cartilage', which the model does not know"
    ):
        wsiseg.segment(slide, tmp_path, annotations=strange, **SMALL)
    with pytest.raises(AnnotationError, match="no such annotation"):
        wsiseg.segment(slide, tmp_path, annotations=tmp_path / "none.png", **SMALL)
    assert not list(tmp_path.glob("*.ome.zarr"))
    with pytest.raises(AnnotationError, match="no such prediction"):
        wsiseg.evaluate(tmp_path / "none.png", strange)


def test_a_store_begun_with_another_model_or_settings_is_refused(
    slide: Path, segmented: Report, tmp_path: Path
) -> None:
    out = segmented.report.parent
    with pytest.raises(
        ConfigMismatch, match="model was 'demo-breast8' and is now 'demo-breast8-without-2204'"
    ):
        wsiseg.segment(slide, out, "demo-breast8-without-2204", **SMALL)
    with pytest.raises(ConfigMismatch, match="halo was"):
        wsiseg.segment(slide, out, **(SMALL | {"halo": 32}))
    with pytest.raises(Interrupted):
        wsiseg.segment(slide, tmp_path, progress=stop_after(1), **SMALL)
    with pytest.raises(ConfigMismatch, match="model was"):
        wsiseg.segment(slide, tmp_path, "demo-breast8-without-2204", **SMALL)
    with pytest.raises(ConfigMismatch, match="threads was"):
        wsiseg.segment(slide, tmp_path, threads=1 if _threads() > 1 else 2, **SMALL)


def _threads() -> int:
    import os

    return len(os.sched_getaffinity(0))


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
        ({"colour": 1}, "unknown setting 'colour'; known are: allow_upsampling, batch"),
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


def test_a_model_without_a_background_class_segments_everything(slide: Path, tmp_path: Path) -> None:
    from wsiseg.models.registry import ZOO

    card = json.loads((ZOO / "demo-breast8.json").read_text()) | {"background": None}
    (tmp_path / "all.json").write_text(json.dumps(card))
    (tmp_path / card["weights"]).write_bytes((ZOO / card["weights"]).read_bytes())
    report = wsiseg.segment(slide, tmp_path, tmp_path / "all.json", **SMALL)
    assert report.tissue_share is None
    plain = wsiseg.segment(slide, tmp_path / "plain", tissue_filter=False, **SMALL)
    np.testing.assert_array_equal(mask_of(report), mask_of(plain))


def test_case_statistics_are_kept_in_the_ledger_and_used_again(slide: Path, tmp_path: Path) -> None:
    from wsiseg.models.registry import ZOO

    card = json.loads((ZOO / "demo-breast8.json").read_text())
    card["preprocessing"]["statistics"] = "case"
    (tmp_path / "case.json").write_text(json.dumps(card))
    (tmp_path / card["weights"]).write_bytes((ZOO / card["weights"]).read_bytes())
    whole = wsiseg.segment(slide, tmp_path / "a", tmp_path / "case.json", **SMALL)
    with pytest.raises(Interrupted):
        wsiseg.segment(slide, tmp_path / "b", tmp_path / "case.json", progress=stop_after(2), **SMALL)
    stats = json.loads((tmp_path / "b" / "scene.ome.zarr" / "ledger" / "stats.json").read_text())
    assert 100 < stats["mean"][0] < 245
    parts = wsiseg.segment(slide, tmp_path / "b", tmp_path / "case.json", **SMALL)
    np.testing.assert_array_equal(mask_of(parts), mask_of(whole))


def test_the_shipped_slide_states_its_spacing() -> None:
    source = wsiseg.open_source(SLIDE)
    assert source.geometry.shape == (2967, 2220)
    assert source.geometry.spacing == (0.499, 0.499)


@pytest.mark.parametrize("image", ["full", "model"])
def test_each_stored_tile_is_decoded_once_for_mask_and_image(
    picture: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    from wsiseg.geometry import Region, region_shape
    from wsiseg.sources import tiff
    from wsiseg.sources.base import Pixels

    # 320 pixels a block: rows of windows and slabs cross its borders.
    slide = write_tiff(tmp_path / "tiles.tif", picture.repeat(3, axis=0), tile=320)
    read: list[Region] = []
    original = tiff.TiffSource.read

    def counted(self: tiff.TiffSource, region: Region) -> Pixels:
        read.append(region)
        return original(self, region)

    monkeypatch.setattr(tiff.TiffSource, "read", counted)
    wsiseg.segment(slide, tmp_path, tissue_filter=False, **(SMALL | {"image": image, "taper": 4}))
    seen = np.zeros((900, 520), int)
    for region in read:
        seen[region] += 1
    np.testing.assert_array_equal(seen, 1)
    assert sum(h * w for h, w in map(region_shape, read)) == 900 * 520


def test_overwriting_with_a_model_that_cannot_be_used_leaves_the_result(slide: Path, tmp_path: Path) -> None:
    from wsiseg.errors import ModelError
    from wsiseg.models.registry import ZOO

    report = wsiseg.segment(slide, tmp_path, **SMALL)
    card = json.loads((ZOO / "demo-breast8.json").read_text()) | {"sha256": "0" * 64}
    (tmp_path / "bad.json").write_text(json.dumps(card))
    (tmp_path / card["weights"]).write_bytes((ZOO / card["weights"]).read_bytes())
    with pytest.raises(ModelError, match="sha256"):
        wsiseg.segment(slide, tmp_path, tmp_path / "bad.json", overwrite=True, **SMALL)
    assert wsiseg.open_store(report.store).verify() == []
    with pytest.raises(Interrupted):
        wsiseg.segment(slide, tmp_path, overwrite=True, progress=stop_after(1), **SMALL)
    assert not report.report.exists()
    assert not report.overlay.exists()


def test_a_damaged_report_is_written_again(slide: Path, tmp_path: Path) -> None:
    report = wsiseg.segment(slide, tmp_path, **SMALL)
    report.report.write_text("{")
    again = wsiseg.segment(slide, tmp_path, **SMALL)
    assert again.status == "already complete"
    assert json.loads(report.report.read_text())["classes"] == report.model_dump(mode="json")["classes"]


def test_a_folder_of_the_inputs_name_does_not_change_what_the_input_is(slide: Path, tmp_path: Path) -> None:
    copied = tmp_path / slide.name
    copied.write_bytes(slide.read_bytes())
    first = wsiseg.segment(copied, tmp_path / copied.stem, **SMALL)
    assert wsiseg.segment(copied, tmp_path / copied.stem, **SMALL).status == "already complete"
    assert set(first.input) >= {"sha256"}


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


def test_a_mask_that_cannot_be_decoded_is_one_sentence(slide: Path, tmp_path: Path) -> None:
    report = wsiseg.segment(slide, tmp_path, **SMALL)
    shard = next(p for p in (report.store / "labels" / "tissue" / "0" / "c").rglob("*") if p.is_file())
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    Image.fromarray(np.zeros((300, 520), np.uint8)).save(tmp_path / "truth.png")
    with pytest.raises(AnnotationError, match="has pixels that cannot be decoded, near row"):
        wsiseg.evaluate(report.store, tmp_path / "truth.png")
