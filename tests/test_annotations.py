"""Truth of every kind is read on the prediction's grid, by pixel centres, and mistakes are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from wsiseg.annotations import open_truth, polygon_region
from wsiseg.annotations.marks import Mark
from wsiseg.annotations.polygons import PolygonLabels, polygon_truth
from wsiseg.annotations.reading import read_marks
from wsiseg.classes import BREAST8, VOID, MaskClass
from wsiseg.errors import AnnotationError, SourceError, UnreadableSource
from wsiseg.geometry import Geometry, Region
from wsiseg.ngff import image_metadata, label_group_metadata, label_metadata

Mask = NDArray[np.uint8]
Ring = Sequence[tuple[float, float]]
GRID = Geometry(axes="yx", shape=(23, 31), spacing=(0.5, 0.25), unit="micrometer")
PARTS = [
    (slice(y, min(y + 7, 23)), slice(x, min(x + 10, 31))) for y in range(0, 23, 7) for x in range(0, 31, 10)
]


def some_mask(shape: tuple[int, ...] = GRID.shape, *, seed: int = 0) -> Mask:
    """Known classes and void, no two rows or columns alike."""
    values = np.array([*range(8), VOID], np.uint8)
    return np.asarray(values[np.random.default_rng(seed).integers(0, len(values), shape)], np.uint8)


def square(y: float, x: float, *, height: float, width: float) -> Ring:
    """A closed ring in GeoJSON's (x, y) order."""
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]


def feature(
    rings: Any, name: str | None = "blood", *, kind: str = "Polygon", **properties: Any
) -> dict[str, Any]:
    if name is not None:
        properties["classification"] = {"name": name, "color": [1, 2, 3]}
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": rings},
        "properties": properties,
    }


def write_geojson(folder: Path, data: Any) -> Path:
    path = folder / "marks.geojson"
    if isinstance(data, list):
        data = {"type": "FeatureCollection", "features": data}
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def truth_of(folder: Path, features: Any) -> Mask:
    labels = open_truth(write_geojson(folder, features), geometry=GRID, classes=BREAST8)
    assert labels.shape == GRID.shape
    return labels.read(GRID.whole)


def by_centres(area: shapely.Geometry, shape: tuple[int, ...] = GRID.shape) -> NDArray[np.bool_]:
    """The pixels whose centres lie in an area, asked one by one."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.asarray(shapely.contains_xy(area, x + 0.5, y + 0.5), bool)


# --- class-index pictures


def test_a_grey_png_is_read_region_by_region(tmp_path: Path) -> None:
    mask = some_mask()
    path = tmp_path / "truth.PNG"
    Image.fromarray(mask).save(path)
    labels = open_truth(path, geometry=GRID, classes=BREAST8)
    np.testing.assert_array_equal(labels.read(GRID.whole), mask)
    for part in PARTS:
        np.testing.assert_array_equal(labels.read(part), mask[part])


def test_a_palette_png_gives_indices_whatever_its_colours(tmp_path: Path) -> None:
    mask = some_mask(seed=1)
    picture = Image.fromarray(mask).convert("P")
    picture.putdata(mask.ravel().tolist())
    picture.putpalette([(7 * i + 90) % 256 for i in range(768)])
    path = tmp_path / "truth.png"
    picture.save(path)
    with Image.open(path) as again:
        assert again.mode == "P"
    np.testing.assert_array_equal(open_truth(path, geometry=GRID, classes=BREAST8).read(GRID.whole), mask)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_rgb_with_equal_channels_is_read_as_indices(tmp_path: Path, suffix: str) -> None:
    mask = some_mask(seed=2)
    path = tmp_path / f"truth.{suffix}"
    Image.fromarray(np.repeat(mask[..., None], 3, axis=2)).save(path)
    labels = open_truth(path, geometry=GRID, classes=BREAST8)
    np.testing.assert_array_equal(labels.read(GRID.whole), mask)
    np.testing.assert_array_equal(labels.read(PARTS[5]), mask[PARTS[5]])


def test_alpha_of_a_mask_is_passed_over(tmp_path: Path) -> None:
    mask = some_mask(seed=3)
    alpha = np.full_like(mask, 200)
    for name, channels in [("la.png", [mask, alpha]), ("rgba.png", [mask, mask, mask, alpha])]:
        Image.fromarray(np.stack(channels, axis=2)).save(tmp_path / name)
        labels = open_truth(tmp_path / name, geometry=GRID, classes=BREAST8)
        np.testing.assert_array_equal(labels.read(GRID.whole), mask)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_a_tiled_tiff_of_any_integer_type_is_read_region_by_region(tmp_path: Path, dtype: type[Any]) -> None:
    mask = some_mask((45, 70), seed=4)
    grid = Geometry(axes="yx", shape=(45, 70), spacing=(0.5, 0.25), unit="micrometer")
    path = tmp_path / "truth.tiff"
    tifffile.imwrite(path, mask.astype(dtype), tile=(16, 32), compression="zlib")
    labels = open_truth(path, geometry=grid, classes=BREAST8)
    part = (slice(13, 34), slice(29, 67))
    np.testing.assert_array_equal(labels.read(part), mask[part])
    assert labels.read(part).dtype == np.uint8


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_colour_picture_is_refused(tmp_path: Path, suffix: str) -> None:
    rgb = np.repeat(some_mask()[..., None], 3, axis=2)
    rgb[4, 5, 2] ^= 1
    path = tmp_path / f"truth.{suffix}"
    Image.fromarray(rgb).save(path)
    with pytest.raises(AnnotationError, match="is a colour picture; a mask holds class indices"):
        open_truth(path, geometry=GRID, classes=BREAST8).read(GRID.whole)


def test_a_class_that_the_model_does_not_know_is_refused(tmp_path: Path) -> None:
    mask = np.zeros(GRID.shape, np.uint8)
    mask[22, 30] = 8
    path = tmp_path / "truth.png"
    Image.fromarray(mask).save(path)
    labels = open_truth(path, geometry=GRID, classes=BREAST8)
    with pytest.raises(
        AnnotationError, match=r"has class 8, which the model does not know: .* 0 to 7, and 255"
    ):
        labels.read(GRID.whole)
    np.testing.assert_array_equal(labels.read((slice(0, 22), slice(0, 31))), 0)


def test_void_is_known_to_every_model(tmp_path: Path) -> None:
    path = tmp_path / "truth.png"
    Image.fromarray(np.full(GRID.shape, VOID, np.uint8)).save(path)
    classes = (MaskClass(index=0, name="only", color=(0, 0, 0)),)
    np.testing.assert_array_equal(open_truth(path, geometry=GRID, classes=classes).read(GRID.whole), VOID)


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.float32, 1), (np.uint16, 256), (np.int16, 300), (np.int16, -1), (np.int32, -256)]
)
def test_values_that_are_no_class_indices_are_refused(tmp_path: Path, dtype: type[Any], value: int) -> None:
    mask = np.zeros(GRID.shape, dtype)
    mask[3, 4] = value
    path = tmp_path / "truth.tif"
    tifffile.imwrite(path, mask)
    with pytest.raises(AnnotationError, match=f"{np.dtype(dtype)} values; class indices are 0 to 255"):
        open_truth(path, geometry=GRID, classes=BREAST8).read(GRID.whole)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("shape", [(31, 23), (22, 31), (23, 32)])
def test_truth_on_another_grid_is_refused(tmp_path: Path, suffix: str, shape: tuple[int, int]) -> None:
    path = tmp_path / f"truth.{suffix}"
    Image.fromarray(np.zeros(shape, np.uint8)).save(path)
    expected = f"has {shape[0]} x {shape[1]} pixels \\(y x x\\), the prediction has 23 x 31: "
    with pytest.raises(AnnotationError, match=expected):
        open_truth(path, geometry=GRID, classes=BREAST8)


def test_missing_and_unknown_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"no such annotation: .*none\.png"):
        open_truth(tmp_path / "none.png", geometry=GRID, classes=BREAST8)
    other = tmp_path / "truth.docx"
    other.write_bytes(b"words")
    with pytest.raises(AnnotationError, match=r"truth\.docx is not a known kind of annotation"):
        open_truth(other, geometry=GRID, classes=BREAST8)
    for name in ("truth.png", "truth.tif"):
        (tmp_path / name).write_bytes(b"words")
        with pytest.raises(UnreadableSource, match=name):
            open_truth(tmp_path / name, geometry=GRID, classes=BREAST8)


# --- polygons


def test_polygons_take_the_pixels_whose_centres_they_hold(tmp_path: Path) -> None:
    truth = truth_of(tmp_path, [feature([square(2, 3, height=4, width=6)], "Necrosis")])
    expected = np.full(GRID.shape, VOID, np.uint8)
    expected[2:6, 3:9] = 7
    np.testing.assert_array_equal(truth, expected)


@pytest.mark.parametrize(("edge", "first"), [(4.0, 4), (4.25, 4), (4.49, 4), (4.51, 5), (4.75, 5), (5.0, 5)])
def test_an_edge_left_of_the_centre_takes_the_pixel(tmp_path: Path, edge: float, first: int) -> None:
    ring = [(edge, edge), (20, edge), (20, 20), (edge, 20), (edge, edge)]
    truth = truth_of(tmp_path, [feature([ring])])
    expected = np.full(GRID.shape, VOID, np.uint8)
    expected[first:20, first:20] = 6
    np.testing.assert_array_equal(truth, expected)


def test_holes_are_not_labelled_and_later_polygons_win(tmp_path: Path) -> None:
    truth = truth_of(
        tmp_path,
        [
            feature([square(1, 1, height=20, width=25), square(5, 5, height=10, width=12)], "normal stroma"),
            feature([square(3, 20, height=9, width=8)], "blood"),
            feature([square(8, 8, height=2, width=3)], "SECRETION "),
        ],
    )
    expected = np.full(GRID.shape, VOID, np.uint8)
    expected[1:21, 1:26] = 3
    expected[5:15, 5:17] = VOID
    expected[3:12, 20:28] = 6
    expected[8:10, 8:11] = 5
    np.testing.assert_array_equal(truth, expected)


def test_a_hole_of_a_later_polygon_shows_the_earlier_one(tmp_path: Path) -> None:
    truth = truth_of(
        tmp_path,
        [
            feature([square(0, 0, height=23, width=31)], "background"),
            feature([square(4, 4, height=12, width=12), square(7, 7, height=4, width=5)], "blood"),
        ],
    )
    expected = np.zeros(GRID.shape, np.uint8)
    expected[4:16, 4:16] = 6
    expected[7:11, 7:12] = 0
    np.testing.assert_array_equal(truth, expected)


def test_a_multipolygon_has_all_its_parts(tmp_path: Path) -> None:
    parts = [[square(1, 2, height=5, width=4)], [square(12, 20, height=3, width=7)]]
    truth = truth_of(tmp_path, [feature(parts, kind="MultiPolygon")])
    expected = np.full(GRID.shape, VOID, np.uint8)
    expected[1:6, 2:6] = 6
    expected[12:15, 20:27] = 6
    np.testing.assert_array_equal(truth, expected)


@pytest.mark.parametrize("island_first", [False, True])
def test_an_island_in_the_hole_of_another_part_is_kept(tmp_path: Path, island_first: bool) -> None:
    parts = [
        [square(2, 2, height=18, width=20), square(5, 5, height=12, width=14)],
        [square(8, 9, height=5, width=4)],
    ]
    truth = truth_of(tmp_path, [feature(parts[:: -1 if island_first else 1], kind="MultiPolygon")])
    expected = np.full(GRID.shape, VOID, np.uint8)
    expected[2:20, 2:22] = 6
    expected[5:17, 5:19] = VOID
    expected[8:13, 9:13] = 6
    np.testing.assert_array_equal(truth, expected)


def test_a_bow_tie_is_both_its_halves(tmp_path: Path) -> None:
    ring = [(2.0, 2.0), (22.0, 18.0), (22.0, 2.0), (2.0, 18.0), (2.0, 2.0)]
    halves = shapely.union(
        shapely.Polygon([(2, 2), (12, 10), (2, 18)]), shapely.Polygon([(22, 18), (12, 10), (22, 2)])
    )
    truth = truth_of(tmp_path, [feature([ring])])
    sure = by_centres(halves)
    near = by_centres(shapely.buffer(halves.boundary, 1e-6))
    np.testing.assert_array_equal((truth == 6)[~near], sure[~near])
    assert sure.sum() == pytest.approx(halves.area, abs=20)


def test_a_bow_tie_with_a_loose_end_is_both_its_halves(tmp_path: Path) -> None:
    # The way out to (28, 4) and back encloses nothing.
    ring = [(2, 2.25), (22, 18.25), (22, 2.25), (28, 4), (22, 2.25), (2, 18.25), (2, 2.25)]
    halves = shapely.union(
        shapely.Polygon([(2, 2.25), (12, 10.25), (2, 18.25)]),
        shapely.Polygon([(22, 18.25), (12, 10.25), (22, 2.25)]),
    )
    truth = truth_of(tmp_path, [feature([ring])])
    np.testing.assert_array_equal(truth == 6, by_centres(halves))


def star(rng: np.random.Generator) -> shapely.Polygon:
    """A random polygon round a random middle, often with a hole, that may stick out of the grid."""
    y, x = rng.uniform(-4, 27), rng.uniform(-4, 35)
    angles = np.sort(rng.uniform(0, 2 * math.pi, rng.integers(3, 12)))
    radii = rng.uniform(2, 14, len(angles))
    around = [(x + r * math.cos(a), y + r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]
    outer = shapely.Polygon(around)
    hole = shapely.box(x - 1.3, y - 1.1, x + 1.7, y + 1.9)
    cut = shapely.difference(shapely.make_valid(outer), hole)
    return cut if isinstance(cut, shapely.Polygon) and not cut.is_empty else hole


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_random_polygons_read_whole_and_in_parts_equal_the_pixel_centre_rule(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    areas = [star(rng) for _ in range(rng.integers(1, 5))]
    classes = rng.integers(0, 8, len(areas))
    features = [
        feature(shapely.geometry.mapping(a)["coordinates"], BREAST8[k].name)
        for a, k in zip(areas, classes, strict=True)
    ]
    expected = np.full(GRID.shape, VOID, np.uint8)
    for area, index in zip(areas, classes, strict=True):
        expected[by_centres(area)] = index

    path = write_geojson(tmp_path_factory.mktemp("stars"), features)
    labels = polygon_truth(path, classes=BREAST8, grid=GRID.shape)
    np.testing.assert_array_equal(labels.read(GRID.whole), expected)
    for part in PARTS:
        np.testing.assert_array_equal(labels.read(part), expected[part])
        assert labels.touches(part) >= bool((expected[part] != VOID).any())


def half_steps(seed: int) -> Iterator[shapely.Polygon]:
    """Triangles with corners on pixel corners and centres, whose edges run through centres."""
    rng = np.random.default_rng(seed)
    for _ in range(3):
        triangle = shapely.Polygon(rng.integers(0, [62, 46], (3, 2)) / 2)
        if triangle.area > 0:
            yield triangle


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_parts_equal_the_whole_also_where_edges_run_through_pixel_centres(seed: int) -> None:
    areas = list(half_steps(seed))
    if not areas:
        return
    marks = [Mark(n, area, None) for n, area in enumerate(areas)]
    labels = PolygonLabels(marks, range(len(marks)), grid=GRID.shape)
    whole = labels.read(GRID.whole)
    for part in PARTS:
        np.testing.assert_array_equal(labels.read(part), whole[part])


def test_polygons_far_away_touch_nothing_and_polygons_inside_do(tmp_path: Path) -> None:
    path = write_geojson(tmp_path, [feature([square(10, 12, height=2, width=3)], None)])
    roi = polygon_region(path, grid=GRID.shape)
    assert roi.touches((slice(10, 11), slice(13, 14)))
    assert roi.touches((slice(0, 23), slice(0, 31)))
    assert not roi.touches((slice(0, 5), slice(0, 5)))
    expected = np.full(GRID.shape, VOID, np.uint8)
    expected[10:12, 12:15] = 1
    np.testing.assert_array_equal(roi.read(GRID.whole), expected)


@pytest.mark.parametrize("wrap", ["list", "feature", "collection"])
def test_lists_single_features_and_collections_are_read(tmp_path: Path, wrap: str) -> None:
    one = feature([square(1, 2, height=3, width=4)])
    path = tmp_path / "marks.json"
    data: Any = {"list": [one], "feature": one, "collection": {"features": [one]}}[wrap]
    path.write_text(json.dumps(data), encoding="utf-8")
    (mark,) = read_marks(path)
    assert (mark.number, mark.class_name) == (1, "blood")
    assert tuple(shapely.bounds(mark.area)) == (2, 1, 6, 4)


def test_points_lines_and_empty_polygons_are_passed_over(tmp_path: Path) -> None:
    features = [
        feature([3, 4], kind="Point"),
        feature([[3, 4], [5, 6]], kind="LineString"),
        feature([]),
        feature([square(1, 1, height=2, width=2)], "blood"),
    ]
    path = write_geojson(tmp_path, features)
    assert [mark.number for mark in read_marks(path)] == [4]
    with pytest.raises(AnnotationError, match=r"marks\.geojson has no polygons"):
        read_marks(write_geojson(tmp_path, features[:3]))
    with pytest.raises(AnnotationError, match="has no polygons"):
        read_marks(write_geojson(tmp_path, []))


def test_heights_of_corners_are_passed_over(tmp_path: Path) -> None:
    ring = [(*corner, 9.0) for corner in square(1, 2, height=3, width=4)]
    truth = truth_of(tmp_path, [feature([ring])])
    expected = np.full(GRID.shape, VOID, np.uint8)
    expected[1:4, 2:6] = 6
    np.testing.assert_array_equal(truth, expected)


@pytest.mark.parametrize("content", [b"", b"{", b"words", b'{"features": [\xff]}'])
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "marks.geojson"
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=r"marks\.geojson is not valid GeoJSON: "):
        open_truth(path, geometry=GRID, classes=BREAST8)


def test_a_geojson_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"cannot read the annotation .*none\.geojson: No such file"):
        polygon_region(tmp_path / "none.geojson", grid=GRID.shape)


@pytest.mark.parametrize("data", [3, "words", {"type": "FeatureCollection"}, {"features": 3}, None])
def test_json_without_features_is_refused(tmp_path: Path, data: Any) -> None:
    path = tmp_path / "marks.geojson"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(AnnotationError, match="is not GeoJSON: it has no list of features"):
        read_marks(path)


@pytest.mark.parametrize(
    "broken",
    [
        3,
        {},
        {"type": "Feature", "geometry": None},
        {"type": "Feature", "geometry": {"type": "Polygon"}},
        {"type": "Feature", "geometry": {"type": "Blob", "coordinates": []}},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[1, 2]]]}},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[["a", 2], [3, 4], [5, 7]]]}},
        {**feature([square(1, 1, height=2, width=2)]), "properties": [1]},
    ],
)
def test_a_feature_that_is_not_geojson_is_named(tmp_path: Path, broken: Any) -> None:
    good = feature([square(1, 1, height=2, width=2)])
    with pytest.raises(AnnotationError, match=r"marks\.geojson: feature 2 is not valid GeoJSON"):
        read_marks(write_geojson(tmp_path, [good, broken]))


def test_a_class_of_polygons_that_the_model_does_not_know_is_refused(tmp_path: Path) -> None:
    path = write_geojson(tmp_path, [feature([square(1, 1, height=2, width=2)], "tumour")])
    with pytest.raises(
        AnnotationError,
        match=r"1 of 1 marks have .* not know: 'tumour' \(1, first: feature 1\); its classes are backgr",
    ):
        open_truth(path, geometry=GRID, classes=BREAST8)


@pytest.mark.parametrize(
    "properties", [{}, {"classification": None}, {"classification": {}}, {"classification": "blood"}]
)
def test_a_polygon_without_a_class_is_refused_as_truth(tmp_path: Path, properties: dict[str, Any]) -> None:
    path = write_geojson(tmp_path, [feature([square(1, 1, height=2, width=2)], None, **properties)])
    with pytest.raises(
        AnnotationError, match=r"not know: no class at all \(1, first: feature 1\); its classes"
    ):
        open_truth(path, geometry=GRID, classes=BREAST8)


def test_a_class_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    mark = feature([square(1, 1, height=2, width=2)], None, classification={"name": 3})
    with pytest.raises(AnnotationError, match="feature 1"):
        open_truth(write_geojson(tmp_path, [mark]), geometry=GRID, classes=BREAST8)


# --- OME-Zarr labels


def write_labels(folder: Path, mask: Mask, *, names: Sequence[str] = ("tissue",)) -> Path:
    """An OME-Zarr image without pixels, with a label image."""
    image = folder / "case.ome.zarr"
    labels = zarr.open_group(image, mode="w").create_group("labels")
    labels.attrs["ome"] = label_group_metadata(names)
    for name in names:
        group = labels.create_group(name)
        group.attrs["ome"] = label_metadata(
            name=name, levels=1, axes="yx", spacing=(0.5, 0.25), unit="micrometer", classes=BREAST8
        )
        group.create_array("0", data=mask, chunks=(8, 12))
    return image


def test_labels_of_an_ome_zarr_are_read_from_its_group_or_from_the_image(tmp_path: Path) -> None:
    mask = some_mask(seed=6)
    image = write_labels(tmp_path, mask)
    for path in (image, image / "labels" / "tissue"):
        labels = open_truth(path, geometry=GRID, classes=BREAST8)
        np.testing.assert_array_equal(labels.read(GRID.whole), mask)
        for part in PARTS:
            np.testing.assert_array_equal(labels.read(part), mask[part])


def test_labels_on_another_grid_or_with_unknown_classes_are_refused(tmp_path: Path) -> None:
    image = write_labels(tmp_path, some_mask((22, 31)))
    with pytest.raises(AnnotationError, match="has 22 x 31 pixels"):
        open_truth(image, geometry=GRID, classes=BREAST8)
    mask = some_mask()
    mask[0, 0] = 99
    labels = open_truth(write_labels(tmp_path, mask), geometry=GRID, classes=BREAST8)
    with pytest.raises(AnnotationError, match="has class 99"):
        labels.read(GRID.whole)


def test_several_labels_are_refused_with_their_names(tmp_path: Path) -> None:
    image = write_labels(tmp_path, some_mask(), names=("a", "b"))
    with pytest.raises(SourceError, match=r"has labels \['a', 'b'\]; name one of them, as .*labels/NAME"):
        open_truth(image, geometry=GRID, classes=BREAST8)
    assert open_truth(image / "labels" / "b", geometry=GRID, classes=BREAST8).shape == GRID.shape


def test_a_label_outside_its_group_is_refused(tmp_path: Path) -> None:
    image = write_labels(tmp_path, some_mask())
    zarr.open_group(image / "labels", mode="r+").attrs["ome"] = {"version": "0.5", "labels": ["../../other"]}
    with pytest.raises(SourceError, match=r"names a label outside itself: '\.\./\.\./other'"):
        open_truth(image, geometry=GRID, classes=BREAST8)


def test_a_folder_of_labels_that_is_no_zarr_group_is_refused(tmp_path: Path) -> None:
    (tmp_path / "case" / "labels").mkdir(parents=True)
    with pytest.raises(UnreadableSource, match="labels"):
        open_truth(tmp_path / "case", geometry=GRID, classes=BREAST8)


def test_an_ome_zarr_colour_image_is_refused_as_truth(tmp_path: Path) -> None:
    path = tmp_path / "image.ome.zarr"
    group = zarr.open_group(path, mode="w")
    group.attrs["ome"] = image_metadata(
        name="image", paths=["0"], axes="yx", spacing=(0.5, 0.25), unit="micrometer", channels=True
    )
    group.create_array("0", data=np.stack([some_mask(seed=n) for n in range(3)]), chunks=(3, 8, 12))
    with pytest.raises((AnnotationError, SourceError), match=r"channels|colour"):
        open_truth(path, geometry=GRID, classes=BREAST8).read(GRID.whole)


def test_volumes_have_truth_too(tmp_path: Path) -> None:
    grid = Geometry(axes="zyx", shape=(3, 8, 11), spacing=(2.0, 0.5, 0.25), unit="millimeter")
    mask = some_mask(grid.shape, seed=7)
    group = zarr.open_group(tmp_path / "volume", mode="w")
    group.attrs["ome"] = label_metadata(
        name="volume", levels=1, axes="zyx", spacing=grid.spacing, unit="millimeter", classes=BREAST8
    )
    group.create_array("0", data=mask, chunks=(2, 5, 6))
    labels = open_truth(tmp_path / "volume", geometry=grid, classes=BREAST8)
    part: Region = (slice(1, 3), slice(4, 7), slice(2, 9))
    np.testing.assert_array_equal(labels.read(part), mask[part])
