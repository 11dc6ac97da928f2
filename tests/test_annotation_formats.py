"""Marks of ASAP, ImageScope, HALO and NDP.view: exact pixels, and mistakes named by their line."""

from __future__ import annotations

import gzip
import json
import logging
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from wsiseg.annotations import open_truth
from wsiseg.annotations.reading import read_mark_file, read_marks
from wsiseg.classes import BREAST8, VOID
from wsiseg.errors import AnnotationError
from wsiseg.geometry import Geometry

GRID = Geometry(axes="yx", shape=(23, 31), spacing=(0.5, 0.25), unit="micrometer")
Corners = Sequence[tuple[float, float]]


def square(y: float, x: float, *, height: float, width: float) -> Corners:
    """Corners (x, y), not closed."""
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def asap(*marks: tuple[str, Corners], kind: str = "Polygon") -> str:
    """By group and corners."""
    drawn = "\n".join(
        f'<Annotation Name="a{n}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>\n'
        + "\n".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(corners))
        + "\n</Coordinates></Annotation>"
        for n, (group, corners) in enumerate(marks)
    )
    groups = '<Group Name="blood" PartOfGroup="None" Color="#64FE2E"><Attributes /></Group>'
    return (
        f'<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>\n{drawn}\n</Annotations>'
        f"<AnnotationGroups>{groups}</AnnotationGroups></ASAP_Annotations>\n"
    )


def region(corners: Corners, *, vertex: str, kind: str, negative: bool = False, text: str = "") -> str:
    drawn = "".join(f'<{vertex} X="{x}" Y="{y}" />\n' for x, y in corners)
    return (
        f'<Region Id="1" Type="{kind}" NegativeROA="{int(negative)}" Text="{text}" HasEndcaps="0">\n'
        f"<Vertices>\n{drawn}</Vertices></Region>\n"
    )


def layers(*named: tuple[str, str], start: str = '<Annotations MicronsPerPixel="0.25">') -> str:
    """By name and regions."""
    return (
        start
        + "".join(
            f'\n<Annotation Id="1" Name="{name}" LineColor="65280"><Regions>{regions}</Regions></Annotation>'
            for name, regions in named
        )
        + "\n</Annotations>\n"
    )


def imagescope(corners: Corners, *, kind: str = "0", negative: bool = False, text: str = "") -> str:
    return region(corners, vertex="Vertex", kind=kind, negative=negative, text=text)


def halo(corners: Corners, *, kind: str = "Polygon", negative: bool = False) -> str:
    return region(corners, vertex="V", kind=kind, negative=negative)


def ndpa(title: str, corners: Corners, *, closed: int = 1) -> str:
    points = "".join(f"<point><x>{x}</x><y>{y}</y></point>\n" for x, y in corners)
    return (
        f'<ndpviewstate id="1"><title>{title}</title><coordformat>nanometers</coordformat>\n'
        f'<annotation type="freehand" displayname="AnnotateFreehand"><pointlist>{points}</pointlist>'
        f"<closed>{closed}</closed></annotation></ndpviewstate>\n"
    )


def written(folder: Path, text: str, name: str = "marks.xml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def truth_of(path: Path) -> NDArray[np.uint8]:
    return open_truth(path, geometry=GRID, classes=BREAST8).read(GRID.whole)


def expected(*parts: tuple[int, int, int, int, int]) -> NDArray[np.uint8]:
    """A mask with boxes (y0, y1, x0, x1, value), painted in turn."""
    mask = np.full(GRID.shape, VOID, np.uint8)
    for y0, y1, x0, x1, value in parts:
        mask[y0:y1, x0:x1] = value
    return mask


def test_asap_polygons_have_the_class_of_their_group_and_later_ones_win(tmp_path: Path) -> None:
    text = asap(
        ("blood", square(2, 3, height=9, width=12)),
        ("necrosis", square(8, 10, height=6, width=15)),
    )
    path = written(tmp_path, text)
    np.testing.assert_array_equal(truth_of(path), expected((2, 11, 3, 15, 6), (8, 14, 10, 25, 7)))
    assert [(m.number, m.class_name, m.place) for m in read_marks(path)] == [
        (1, "blood", "line 3"),
        (2, "necrosis", "line 9"),
    ]


def test_asap_corners_stand_in_the_order_that_they_state(tmp_path: Path) -> None:
    corners = square(2, 3, height=9, width=12)
    text = asap(("blood", corners))
    lines = text.splitlines()
    lines[3:7] = [lines[5], lines[3], lines[6], lines[4]]
    np.testing.assert_array_equal(truth_of(written(tmp_path, "\n".join(lines))), expected((2, 11, 3, 15, 6)))


def test_asap_dots_are_passed_over_and_rectangles_are_areas(tmp_path: Path) -> None:
    dot = asap(("blood", [(3, 4)]), kind="Dot")
    with pytest.raises(AnnotationError, match="has no polygons"):
        read_marks(written(tmp_path, dot))
    path = written(tmp_path, asap(("blood", square(1, 1, height=2, width=3)), kind="Rectangle"))
    np.testing.assert_array_equal(truth_of(path), expected((1, 3, 1, 4, 6)))


def test_a_decimal_comma_is_a_decimal_sign(tmp_path: Path) -> None:
    text = asap(("blood", square(2, 3, height=9, width=12))).replace('X="15"', 'X="14,6"')
    (mark,) = read_marks(written(tmp_path, text))
    assert tuple(shapely.bounds(mark.area)) == (3, 2, 14.6, 11)


@pytest.mark.parametrize("draw", [imagescope, halo])
def test_negative_regions_are_holes_in_their_layer_and_what_lies_in_them_is_kept(
    tmp_path: Path, draw: type
) -> None:
    drawn = (
        draw(square(1, 1, height=20, width=25))
        + draw(square(4, 4, height=12, width=14), negative=True)
        + draw(square(6, 6, height=3, width=4))
    )
    other = draw(square(0, 2, height=6, width=3))
    text = layers(("Blood", drawn), ("secretion", other))
    found = truth_of(written(tmp_path, text, "marks.annotations"))
    np.testing.assert_array_equal(
        found, expected((1, 21, 1, 26, 6), (4, 16, 4, 18, VOID), (6, 9, 6, 10, 6), (0, 6, 2, 5, 5))
    )


def test_holes_that_stick_out_or_overlap_are_cut_off_once(tmp_path: Path) -> None:
    drawn = (
        imagescope(square(4, 4, height=12, width=20))
        + imagescope(square(0, 0, height=8, width=8), negative=True)
        + imagescope(square(6, 6, height=4, width=6), negative=True)
    )
    found = truth_of(written(tmp_path, layers(("blood", drawn))))
    np.testing.assert_array_equal(
        found, expected((4, 16, 4, 24, 6), (4, 8, 4, 8, VOID), (6, 10, 6, 12, VOID))
    )


def test_a_region_that_a_hole_leaves_in_two_parts_has_both(tmp_path: Path) -> None:
    drawn = imagescope(square(4, 4, height=6, width=20)) + imagescope(
        square(0, 10, height=23, width=3), negative=True
    )
    path = written(tmp_path, layers(("blood", drawn)))
    np.testing.assert_array_equal(truth_of(path), expected((4, 10, 4, 10, 6), (4, 10, 13, 24, 6)))
    (mark,) = read_marks(path)
    assert isinstance(mark.area, shapely.MultiPolygon)


def test_two_corners_of_a_rectangle_are_opposite_ones_and_an_ellipse_fills_its_box(tmp_path: Path) -> None:
    drawn = halo([(12, 9), (3, 2)], kind="Rectangle")
    assert shapely.equals(
        read_marks(written(tmp_path, layers(("blood", drawn))))[0].area, shapely.box(3, 2, 12, 9)
    )
    drawn = halo([(3, 2), (13, 10)], kind="Ellipse")
    (mark,) = read_marks(written(tmp_path, layers(("blood", drawn))))
    assert shapely.area(mark.area) == pytest.approx(np.pi * 5 * 4, rel=1e-4)
    assert shapely.bounds(mark.area) == pytest.approx((3, 2, 13, 10))


def test_rulers_pins_and_clicks_too_many_are_no_areas(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = (
        halo([(1, 2), (3, 4)], kind="Ruler")
        + halo([(1, 2)], kind="Pin")
        + halo([(1, 2), (3, 4)])
        + halo(square(1, 1, height=2, width=2))
    )
    path = written(tmp_path, layers(("blood", drawn)))
    with caplog.at_level(logging.WARNING):
        assert [mark.number for mark in read_marks(path)] == [4]
    assert "1 regions have fewer than three corners" in caplog.text
    assert "begins in line 11" in caplog.text


def test_the_class_is_the_layers_name_or_its_description_or_the_regions_text(tmp_path: Path) -> None:
    drawn = imagescope(square(1, 1, height=2, width=2), text="of the region")
    described = '<Attributes><Attribute Name="Description" Value="described" /></Attributes>'
    text = layers(("named", drawn), ("", drawn), ("", drawn))
    text = text.replace('Name="" LineColor="65280">', f'Name="" LineColor="65280">{described}', 1)
    names = [mark.class_name for mark in read_marks(written(tmp_path, text))]
    assert names == ["named", "described", "of the region"]


def test_ndpa_is_read_in_nanometres_and_open_lines_and_pins_are_no_areas(tmp_path: Path) -> None:
    text = (
        "<annotations>"
        + ndpa("blood", square(-2000, -3000, height=1000, width=1500))
        + ndpa("line", square(0, 0, height=10, width=10), closed=0)
        + '<ndpviewstate id="3"><title>here</title></ndpviewstate>'
        + '<ndpviewstate id="4"><title>p</title><annotation type="pin"><x>1</x><y>2</y></annotation>'
        + "</ndpviewstate>"
        + '<ndpviewstate id="5"><title> c </title><coordformat>nanometers</coordformat>'
        + '<annotation type="circle"><x>100</x><y>-200</y><radius>50</radius></annotation></ndpviewstate>'
        + "</annotations>"
    )
    found = read_mark_file(written(tmp_path, text, "slide.ndpi.ndpa"))
    assert found.unit == "nanometres"
    assert [(m.number, m.class_name) for m in found.marks] == [(1, "blood"), (5, "c")]
    assert shapely.equals(found.marks[0].area, shapely.box(-3000, -2000, -1500, -1000))
    assert shapely.bounds(found.marks[1].area) == pytest.approx((50, -250, 150, -150))


def test_the_content_says_what_a_file_is_whatever_it_is_called(tmp_path: Path) -> None:
    text = asap(("blood", square(2, 3, height=9, width=12)))
    for name in ("marks.geojson", "marks.annotations", "marks.xml"):
        np.testing.assert_array_equal(truth_of(written(tmp_path, text, name)), expected((2, 11, 3, 15, 6)))
    path = tmp_path / "marks.xml.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    np.testing.assert_array_equal(truth_of(path), expected((2, 11, 3, 15, 6)))
    path = tmp_path / "wide.xml"
    path.write_bytes(text.replace('"1.0"', '"1.0" encoding="utf-16"').encode("utf-16"))
    np.testing.assert_array_equal(truth_of(path), expected((2, 11, 3, 15, 6)))


GOOD_ASAP = asap(("blood", square(2, 3, height=9, width=12)))
GOOD_LAYER = layers(("blood", imagescope(square(2, 3, height=9, width=12))))
GOOD_NDPA = f"<annotations>\n{ndpa('blood', square(2, 3, height=9, width=12))}</annotations>"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            GOOD_ASAP.replace('Y="11"', 'Y="high"', 1),
            r"line 6: <Coordinate> has Y 'high', which is no number",
        ),
        (GOOD_ASAP.replace('Y="11"', "", 1), r"line 6: <Coordinate> has no Y"),
        (GOOD_ASAP.replace('Y="11"', 'Y="nan"', 1), r"line 3 has a corner at \(15, nan\), on no slide"),
        (
            GOOD_ASAP.replace("Polygon", "Blob"),
            r"line 3: <Annotation> has Type 'Blob', which is none of ASAP",
        ),
        (GOOD_ASAP.replace("Coordinates>", "Places>"), r"line 3: <Annotation> has no <Coordinates>"),
        (GOOD_ASAP.replace("</Annotations>", "", 1), r"line 9: it is not valid XML: mismatched tag"),
        (GOOD_ASAP[:150], r"line 4: it is not valid XML: "),
        (GOOD_LAYER.replace('Type="0"', 'Type="9"'), r"line 2: <Region> has Type '9', which is none"),
        (GOOD_LAYER.replace('ROA="0"', 'ROA="?"'), r"line 2: <Region> has NegativeROA '\?'; it is 0 or 1"),
        (GOOD_LAYER.replace("Vertices>", "Places>"), r"line 2: <Region> has no <Vertices>"),
        (GOOD_NDPA.replace("<y>11</y>", ""), r"line 5: <point> has no y"),
        (GOOD_NDPA.replace("<y>11</y>", "<y>a</y>", 1), r"line 5: <point> has y 'a', which is no number"),
        (GOOD_NDPA.replace("nanometers", "inches"), r"line 2: <ndpviewstate> has coordformat 'inches'"),
        (GOOD_NDPA.replace("freehand", "blob"), r"line 3: <annotation> has type 'blob'"),
        (GOOD_NDPA.replace("pointlist>", "list>"), r"line 3: <annotation> has no <pointlist>"),
        ("<svg></svg>", r"line 1: <svg> begins no annotations that are known; those of ASAP begin with"),
        ("<", r"line 1: it is not valid XML"),
        ('<?xml version="1.0" encoding="klingon"?><a/>', r"line 1: it is not valid XML: unknown encoding"),
        (
            '<?xml version="1.0"?>\n<!DOCTYPE a [<!ENTITY b "c">]>\n<ASAP_Annotations>&b;</ASAP_Annotations>',
            r"line 2: it has a document type, which no annotations need",
        ),
        ("<a>" * 100, r"line 1: its elements are nested deeper than 64"),
        (f"<annotations><title>{'x' * 20_000}</title></annotations>", "line 1: <title> has more than 10000"),
    ],
)
def test_a_malformed_file_names_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(AnnotationError, match=said) as caught:
        read_marks(written(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "marks.xml"))
    assert "\n" not in str(caught.value)


def test_a_file_of_more_elements_than_memory_has_room_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsiseg.annotations.xmltext.MOST_ELEMENTS", 10)
    with pytest.raises(AnnotationError, match="line 2: it has more than 10 elements"):
        read_marks(written(tmp_path, "<a>\n" + "<b/>" * 20 + "</a>"))


def test_what_cannot_be_unpacked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "marks.geojson.gz"
    path.write_bytes(gzip.compress(b"{}")[:-6])
    with pytest.raises(AnnotationError, match="cannot unpack the annotation"):
        read_marks(path)
    path.write_bytes(gzip.compress(bytes(2000)))
    monkeypatch.setattr("wsiseg.annotations.reading.LARGEST_MARKS", 1000)
    with pytest.raises(AnnotationError, match="unpacked it has more than 0.0 MB"):
        read_marks(path)


def test_twenty_thousand_cells_with_measurements_take_little_time_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A buffer of so much is asked for, and not touched.
    monkeypatch.setattr("wsiseg.annotations.reading.LARGEST_MARKS", 1 << 26)
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    unit = np.round(np.stack([np.cos(angles), np.sin(angles)], axis=1) * 20, 2)
    measured = json.dumps({f"Nucleus: measurement {n}": n / 7 for n in range(20)})
    ends = '"properties": {"classification": {"name": "Blood"}, "measurements": ' + measured + "}}"
    features = []
    for n in range(20_000):
        ring = (unit + np.array([(n % 200) * 90 + 50, (n // 200) * 90 + 50])).tolist()
        features.append(
            f'{{"type": "Feature", "geometry": {{"type": "Polygon", "coordinates": [{ring}]}}, {ends}'
        )
    path = written(tmp_path, f'{{"type": "FeatureCollection", "features": [{",".join(features)}]}}')
    del features
    size, start = path.stat().st_size, time.process_time()
    tracemalloc.start()
    try:
        marks = read_marks(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(marks) == 20_000
    areas = shapely.area(np.array([mark.area for mark in marks]))
    assert areas.sum() == pytest.approx(20_000 * 1236, rel=1e-3)
    # The text as bytes and as letters, and the corners; as lists they alone had three times its size.
    assert peak < 2.7 * size
    assert time.process_time() - start < 25  # 3 without being watched
