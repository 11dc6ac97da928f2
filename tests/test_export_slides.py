"""Masks of slides as OME-TIFF, PNG and tables: other programs read what the store holds."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

import wsiseg
import wsiseg.export.png
from tests.cases import mask_of, polygon
from tests.stores import CLASSES, COLORS, blobs, store_of
from tests.test_cli import Ran, assert_one_sentence
from tests.test_volumes import affine_of, write_volume
from wsiseg.annotations.labels import open_index_image
from wsiseg.classes import VOID
from wsiseg.errors import AnnotationError, UsageError
from wsiseg.export.command import export_store
from wsiseg.export.tables import write_csv
from wsiseg.files import fingerprint
from wsiseg.report import Report
from wsiseg.sources.volume import VolumeSource
from wsiseg.store import CaseStore

SHAPE = (1100, 1500)


@pytest.fixture(scope="module")
def mask() -> NDArray[np.uint8]:
    made = blobs(SHAPE, side=37)
    made[:40, :50] = VOID
    return made


@pytest.fixture(scope="module")
def store(mask: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> CaseStore:
    return store_of(tmp_path_factory.mktemp("s") / "a.ome.zarr", mask, slab_rows=256, chunk=128)


def colored(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    palette = np.full((256, 3), 128, np.uint8)
    palette[:4] = COLORS
    return palette[mask]


@pytest.mark.parametrize("colors", [False, True])
def test_an_ome_tiff_holds_every_level_and_its_pixel_size(
    store: CaseStore, mask: NDArray[np.uint8], tmp_path: Path, colors: bool
) -> None:
    path = tmp_path / "a.ome.tif"
    done = export_store(store.path, to="ome-tiff", out=path, colors=colors)
    assert done.details["levels"] == 3
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        assert tiff.is_bigtiff
        (series,) = tiff.series
        assert [level.shape[:2] for level in series.levels] == [(1100, 1500), (550, 750), (275, 375)]
        for n, level in enumerate(series.levels):
            part = mask[:: 2**n, :: 2**n]
            np.testing.assert_array_equal(level.asarray(), colored(part) if colors else part)
            assert level.keyframe.tile == (512, 512)
            assert level.keyframe.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        found = tifffile.xml2dict(tiff.ome_metadata or "")["OME"]["Image"]
        assert (found["Pixels"]["PhysicalSizeX"], found["Pixels"]["PhysicalSizeY"]) == (0.25, 0.5)
        assert found["Name"] == "case"
    with openslide.OpenSlide(str(path)) as slide:
        rgb = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
    np.testing.assert_array_equal(rgb, colored(mask) if colors else np.repeat(mask[..., None], 3, axis=2))
    if colors:
        source = wsiseg.open_source(path)
        assert source.geometry == store.geometry
        assert [s.geometry.shape for s in source.levels] == [(1100, 1500), (550, 750), (275, 375)]
        pixels = source.read(source.geometry.whole).values
        np.testing.assert_array_equal(np.moveaxis(pixels, 0, -1), colored(mask))
    else:
        labels = open_index_image(path, classes=CLASSES)
        np.testing.assert_array_equal(labels.read(store.geometry.whole), mask)


def test_an_ome_tiff_is_the_same_twice_and_says_nothing_of_the_machine(
    store: CaseStore, tmp_path: Path
) -> None:
    for name in ("a.ome.tif", "b.ome.tif"):
        export_store(store.path, to="ome-tiff", out=tmp_path / name)
    data = (tmp_path / "a.ome.tif").read_bytes()
    assert data == (tmp_path / "b.ome.tif").read_bytes()
    assert str(tmp_path).encode() not in data
    with pytest.raises(UsageError, match="the name of an OME-TIFF ends in"):
        export_store(store.path, to="ome-tiff", out=tmp_path / "a.tif")


def test_a_png_has_the_class_at_the_centre_of_each_pixel(
    store: CaseStore, mask: NDArray[np.uint8], tmp_path: Path
) -> None:
    done = export_store(store.path, to="png", out=tmp_path / "a.png", mpp=0.5)
    assert done.details == {"shape": [1100, 750], "pixel_size_um": [0.5, 0.5]}
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        assert picture.info["dpi"][0] == pytest.approx(50800, rel=1e-4)
        np.testing.assert_array_equal(np.asarray(picture), mask[:, 1::2])
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), colored(mask[:, 1::2]))
    export_store(store.path, to="png", out=tmp_path / "b.png", mpp=3.0)
    with Image.open(tmp_path / "b.png") as picture:
        values = np.asarray(picture)
    # Of level 2, the coarsest that is fine enough on both axes; the last row's centre lies outside.
    y = np.arange(184) * 6 + 3
    x = np.arange(125) * 12 + 6
    even = [4 * np.minimum(n // 4, size - 1) for n, size in ((y, 275), (x, 375))]
    np.testing.assert_array_equal(values, mask[np.ix_(*even)])


def test_a_png_without_a_resolution_is_of_a_level_that_is_small_enough(
    store: CaseStore, mask: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsiseg.export.png, "USUAL_SIDE_PX", 800)
    export_store(store.path, to="png", out=tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), mask[::2, ::2])
    monkeypatch.setattr(wsiseg.export.png, "USUAL_SIDE_PX", 80)
    done = export_store(store.path, to="png", out=tmp_path / "b.png")
    assert done.details["shape"] == [275, 375]


def test_a_png_that_nobody_could_use_is_refused(
    store: CaseStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mpp in (0.1, 1e4, float("nan")):
        with pytest.raises(UsageError, match="pixels of 0.25 to 550 µm"):
            export_store(store.path, to="png", out=tmp_path / "a.png", mpp=mpp)
    with pytest.raises(UsageError, match="the name of a PNG ends in .png"):
        export_store(store.path, to="png", out=tmp_path / "a.jpg")
    monkeypatch.setattr(wsiseg.export.png, "MOST_PIXELS", 1000)
    with pytest.raises(UsageError, match="would have 825000 pixels and 1000 are written"):
        export_store(store.path, to="png", out=tmp_path / "a.png", mpp=0.5)


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))


def test_a_table_has_the_area_of_every_class_in_the_whole_and_in_each_region(tmp_path: Path) -> None:
    mask = np.zeros((8, 10), np.uint8)
    mask[:, 5:] = 1
    mask[:2] = VOID
    store = store_of(tmp_path / "s.ome.zarr", mask, spacing=(500.0, 200.0))
    regions = [
        polygon("tumour", (4, 0), (8, 0), (8, 4), (4, 4)),
        polygon(None, (0, 0), (1, 0), (1, 1), (0, 1)),
    ]
    (tmp_path / "r.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": regions}))
    export_store(store.path, to="csv", out=tmp_path / "a.csv", regions=tmp_path / "r.geojson")
    rows = read_table(tmp_path / "a.csv")
    assert list(rows[0]) == ["region", "region_class", "class_index", "class", "pixels", "area_mm2", "share"]
    found = [tuple(r.values()) for r in rows if r["class_index"] in "01"]
    assert found == [
        ("whole", "", "0", "background", "30", "3.0", "0.5"),
        ("whole", "", "1", "epithelium", "30", "3.0", "0.5"),
        ("1", "tumour", "0", "background", "2", "0.2", "0.25"),
        ("1", "tumour", "1", "epithelium", "6", "0.6", "0.75"),
        ("2", "", "0", "background", "0", "0.0", ""),  # nothing but void
        ("2", "", "1", "epithelium", "0", "0.0", ""),
    ]
    assert rows[3]["class"] == "'=blood"  # no formula


def test_the_table_of_a_real_case_agrees_with_its_report(segmented: Report, tmp_path: Path) -> None:
    done = export_store(segmented.store, to="csv", out=tmp_path / "a.csv")
    for row, own in zip(done.details["areas"], segmented.classes, strict=True):
        assert (row["pixels"], row["share"]) == (own.pixels, own.share)
        assert row["area_mm2"] == pytest.approx(own.area_mm2, abs=1e-6)


def test_volumes_have_a_table_in_ml_and_no_polygons(tmp_path: Path) -> None:
    mask = blobs((6, 20, 20))
    grid: dict[str, Any] = {"axes": "zyx", "spacing": (2.0, 1.0, 1.0), "unit": "millimeter"}
    store = store_of(tmp_path / "v.ome.zarr", mask, **grid)
    done = export_store(store.path, to="csv", out=tmp_path / "a.csv")
    assert [r["volume_ml"] for r in done.details["areas"]] == [
        pytest.approx(int((mask == n).sum()) * 0.002) for n in range(4)
    ]
    with pytest.raises(UsageError, match="is the mask of a volume, which --to png is not for"):
        export_store(store.path, to="png", out=tmp_path / "a.png")
    with pytest.raises(UsageError, match="mask of a volume; structure numbers are for slides"):
        export_store(store.path, to="csv", out=tmp_path / "b.csv", structure=True)
    (tmp_path / "r.geojson").write_text(json.dumps([polygon("a", (0, 0), (1, 0), (1, 1))]))
    with pytest.raises(AnnotationError, match="holds polygons, which belong to slides"):
        export_store(store.path, to="csv", out=tmp_path / "b.csv", regions=tmp_path / "r.geojson")
    with pytest.raises(UsageError, match="takes over the orientation of the volume's own file; name the"):
        export_store(store.path, to="nifti", out=tmp_path / "a.nii.gz")


def test_a_volume_goes_back_on_the_grid_of_its_file(tmp_path: Path) -> None:
    path = write_volume(
        tmp_path / "v.nii.gz", np.zeros((5, 6, 7), np.int16), affine_of((2, 0, 1), (1, -1, 1))
    )
    source = wsiseg.open_source(path)
    assert isinstance(source, VolumeSource)
    mask = blobs(source.geometry.shape, side=2)
    grid = {"axes": "zyx", "spacing": source.geometry.spacing, "unit": "millimeter"}
    inputs = {"input": fingerprint(path), "settings": {}}
    store = store_of(tmp_path / "v.ome.zarr", mask, inputs=inputs, **grid)
    done = export_store(store.path, to="nifti", out=tmp_path / "m.nii.gz", input=path)
    assert done.details == {"shape": [5, 6, 7]}
    image: Any = nib.load(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), source.native.to_native(mask))


def test_options_that_belong_to_the_structure_are_refused_without_it(
    store: CaseStore, tmp_path: Path
) -> None:
    for option, asked in (
        ("--mpp", {"mpp": 1.0}),
        ("--around", {"around": ("a",)}),
        ("--min-area", {"min_area": 1.0}),
    ):
        with pytest.raises(UsageError, match=f"{option} belongs to --structure"):
            export_store(store.path, to="csv", out=tmp_path / "a.csv", **asked)
    with pytest.raises(UsageError, match="the name of a table ends in .csv"):
        write_csv(tmp_path / "a.xls", [{"a": 1}])


def test_the_command_writes_and_says_what(
    segmented: Report, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.geojson"
    ran = Ran(capfd, "export", segmented.store, "--to", "geojson", "--out", path, "--background", "--json")
    assert ran.status == 0, ran.err
    found = json.loads(ran.out)
    assert (found["out"], found["details"]["frame"]) == (str(path), "level0")
    scores = wsiseg.evaluate(segmented.store, path)
    assert scores.pixel_accuracy == 1.0
    assert scores.counted_pixels == (mask_of(segmented) != VOID).sum()
    ran = Ran(capfd, "export", segmented.store, "--to", "csv", "--out", tmp_path / "a.csv", "--structure")
    assert ran.status == 0, ran.err
    assert f"written {tmp_path / 'a.csv'}" in ran.out
    ran = Ran(capfd, "export", segmented.store, "--to", "geojson", "--out", path)
    assert_one_sentence(ran, 2, "is there already", "--overwrite")
    ran = Ran(capfd, "export", tmp_path / "none", "--to", "png", "--out", tmp_path / "a.png")
    assert_one_sentence(ran, 1, "is not a wsiseg result")
