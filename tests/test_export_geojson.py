"""Polygons for QuPath: drawn again they are the mask, and they are valid."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp
from numpy.typing import NDArray

import wsiseg
import wsiseg.export.geojson
from tests.stores import CLASSES, blobs, store_of
from tests.vendor_files import write_scn
from wsiseg.annotations.polygons import polygon_truth
from wsiseg.classes import VOID
from wsiseg.errors import StoreError, UsageError
from wsiseg.export.command import Frame, export_store
from wsiseg.export.geojson import Outlines, write_geojson
from wsiseg.files import fingerprint
from wsiseg.sources.slide import bounds_corner

SPACING = (0.5, 0.25)


def write(path: Path, mask: NDArray[np.uint8], **asked: Any) -> dict[str, Any]:
    outlines = Outlines(**asked)
    write_geojson(path, mask, classes=CLASSES, spacing=SPACING, outlines=outlines, about={"frame": "level0"})
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def drawn(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    labels = polygon_truth(path, classes=CLASSES, grid=shape)
    return labels.read(tuple(slice(0, n) for n in shape))


def shapes(found: dict[str, Any]) -> list[Any]:
    return [shapely.geometry.shape(f["geometry"]) for f in found["features"]]


@pytest.fixture
def low_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsiseg.export.geojson, "BAND_ROWS", 5)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.usefixtures("low_bands")
def test_polygons_drawn_again_are_the_mask(tmp_path: Path, merge: bool) -> None:
    mask = blobs((43, 61))
    mask[3:9, 5:11] = VOID
    found = write(tmp_path / "a.geojson", mask, merge=merge)
    np.testing.assert_array_equal(drawn(tmp_path / "a.geojson", mask.shape), mask)
    assert all(s.is_valid for s in shapes(found))
    assert sum(s.area for s in shapes(found)) == (mask != VOID).sum()
    rows = {int(y) % 5 for s in shapes(found) for y in s.bounds[1::2] if s.bounds[3] - s.bounds[1] > 5}
    assert bool(rows) is merge  # bands cut what is higher than they are


@settings(max_examples=60, deadline=None)
@given(
    stnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 9)), elements=st.integers(0, 3)),
    st.booleans(),
)
def test_any_mask_comes_back_from_its_file(
    tmp_path_factory: pytest.TempPathFactory, mask: NDArray[np.uint8], merge: bool
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wsiseg.export.geojson, "BAND_ROWS", 4)
        write(path, mask, merge=merge)
    np.testing.assert_array_equal(drawn(path, mask.shape), mask)


def test_features_are_as_qupath_writes_them(tmp_path: Path) -> None:
    found = write(tmp_path / "a.geojson", np.array([[0, 1]], np.uint8), left_out=(0,))
    assert found == {
        "type": "FeatureCollection",
        "wsiseg": {"frame": "level0"},
        "features": [
            {
                "type": "Feature",
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [[[1, 0], [2, 0], [2, 1], [1, 1], [1, 0]]],
                },
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": "epithelium", "color": [130, 0, 130]},
                },
            }
        ],
    }


def test_a_mask_of_nothing_is_a_file_without_features(tmp_path: Path) -> None:
    assert write(tmp_path / "a.geojson", np.full((4, 4), VOID, np.uint8))["features"] == []


def test_simplified_outlines_are_valid_near_the_edges_and_have_fewer_corners(tmp_path: Path) -> None:
    y, x = np.mgrid[:200, :400]
    mask = (np.hypot((y - 100) * 0.5, (x - 200) * 0.25) < 40).astype(np.uint8)  # a disc of 40 µm
    exact = write(tmp_path / "a.geojson", mask, left_out=(0,))
    fewer = write(tmp_path / "b.geojson", mask, left_out=(0,), tolerance_um=1.0)
    (old,), (new,) = shapes(exact), shapes(fewer)
    assert new.is_valid
    assert len(new.exterior.coords) < 0.2 * len(old.exterior.coords)
    scaled = [shapely.transform(s, lambda xy: xy * [0.25, 0.5]) for s in (old, new)]
    assert shapely.hausdorff_distance(scaled[0].exterior, scaled[1].exterior) <= 1.0


def test_simplified_polygons_of_any_shape_are_valid(tmp_path: Path) -> None:
    found = write(tmp_path / "a.geojson", blobs((80, 80), side=5), tolerance_um=0.8)
    assert len(found["features"]) > 50
    assert all(s.is_valid and s.area > 0 for s in shapes(found))


def test_pieces_below_an_area_are_dropped_but_none_that_a_band_cuts(tmp_path: Path, low_bands: None) -> None:
    mask = np.zeros((12, 8), np.uint8)
    mask[1:3, 1:3] = 1  # 4 pixels of 0.125 µm²
    mask[4:7, 4] = 1  # 3 pixels, of two bands
    mask[8, 1] = 1
    found = write(tmp_path / "a.geojson", mask, left_out=(0,), min_area_um2=0.5)
    assert [s.area for s in shapes(found)] == [4, 1, 2]
    whole = write(tmp_path / "b.geojson", mask, left_out=(0,), min_area_um2=0.5, merge=True)
    assert [s.area for s in shapes(whole)] == [4]


def test_the_same_mask_gives_the_same_compressed_bytes(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s.ome.zarr", blobs((50, 70)))
    done = export_store(store.path, to="geojson", out=tmp_path / "a.geojson.gz", background=True)
    export_store(store.path, to="geojson", out=tmp_path / "b.geojson.gz", background=True)
    first = (tmp_path / "a.geojson.gz").read_bytes()
    assert first == (tmp_path / "b.geojson.gz").read_bytes()
    found = json.loads(gzip.decompress(first))
    assert found["wsiseg"]["frame"] == "level0"
    assert found["wsiseg"]["pixel_size_um"] == [0.25, 0.5]
    assert sum(done.details["polygons"].values()) == len(found["features"])


def test_background_is_written_only_if_it_is_asked_for(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s.ome.zarr", blobs((50, 70)))
    done = export_store(store.path, to="geojson", out=tmp_path / "a.geojson")
    assert set(done.details["polygons"]) == {"epithelium", "stroma", "=blood"}


def test_polygons_in_the_frame_of_bounds_are_moved(tmp_path: Path) -> None:
    slide = write_scn(tmp_path / "a.scn", np.full((64, 96, 3), 90, np.uint8), around=32)
    shape = wsiseg.open_source(slide).geometry.shape
    y, x = bounds_corner(slide)
    assert (y, x) == (32, 32)
    mask = blobs(shape, side=40)
    inputs = {"input": fingerprint(slide), "settings": {}}
    store = store_of(tmp_path / "s.ome.zarr", mask, inputs=inputs)
    plain = export_store(store.path, to="geojson", out=tmp_path / "a.geojson")
    moved = export_store(
        store.path, to="geojson", out=tmp_path / "b.geojson", frame=Frame.bounds, input=slide
    )
    assert (plain.details["frame"], plain.details["origin_in_level0_px"]) == ("level0", [0, 0])
    assert (moved.details["frame"], moved.details["origin_in_level0_px"]) == ("bounds", [x, y])
    a, b = (json.loads((tmp_path / name).read_bytes()) for name in ("a.geojson", "b.geojson"))
    for old, new in zip(shapes(a), shapes(b), strict=True):
        assert shapely.transform(new, lambda xy: xy + np.array([x, y])).equals(old)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s.ome.zarr", blobs((20, 20)))

    def export(**asked: Any) -> None:
        export_store(store.path, **{"to": "geojson", "out": tmp_path / "a.geojson", **asked})

    with pytest.raises(UsageError, match="the name of a GeoJSON ends in .geojson, .json, "):
        export(out=tmp_path / "a.txt")
    with pytest.raises(UsageError, match="--tolerance is -1.0; it must be 0 or a positive number"):
        export(tolerance=-1.0)
    with pytest.raises(UsageError, match="--min-area is nan; it must be"):
        export(min_area=float("nan"))
    with pytest.raises(UsageError, match="bounds of a slide stand in its file; name the slide"):
        export(frame=Frame.bounds)
    with pytest.raises(UsageError, match="--input .*nothing.svs is not there"):
        export(frame=Frame.bounds, input=tmp_path / "nothing.svs")
    (tmp_path / "other.svs").write_bytes(b"other")
    with pytest.raises(UsageError, match="other.svs is not the file that .* was made from"):
        export(frame=Frame.bounds, input=tmp_path / "other.svs")
    with pytest.raises(UsageError, match="--to docx is not known; it is one of geojson, "):
        export(to="docx")
    with pytest.raises(UsageError, match="--colors says nothing of --to geojson; leave it out"):
        export(colors=True)
    with pytest.raises(UsageError, match="is a folder; name a file"):
        export(out=tmp_path)
    export()
    with pytest.raises(UsageError, match="is there already; use --overwrite"):
        export()
    export(overwrite=True)
    wrong = store_of(tmp_path / "w.ome.zarr", np.full((20, 20), 9, np.uint8))
    with pytest.raises(StoreError, match="the mask holds 9, which is none of its classes"):
        export_store(wrong.path, to="geojson", out=tmp_path / "w.geojson")
    assert not (tmp_path / "w.geojson").exists()
