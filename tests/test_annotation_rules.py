"""What names mean, which mark counts, what lies in none, and where marks lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.test_annotation_formats import GRID, asap, expected, ndpa, square, written
from wsiseg.annotations import frames as frames_module
from wsiseg.annotations import open_truth, polygon_region
from wsiseg.annotations.names import read_table
from wsiseg.annotations.polygons import polygon_regions
from wsiseg.classes import BREAST8, VOID, MaskClass
from wsiseg.config import AnnotationRules, make_rules
from wsiseg.errors import AnnotationError, UsageError
from wsiseg.sources.slide import OnGlass

LARGE, SMALL = square(2, 3, height=12, width=20), square(4, 6, height=5, width=7)


def truth_of(path: Path, *, slide: Path | None = None, sized: bool = True, **rules: Any) -> NDArray[np.uint8]:
    labels = open_truth(
        path, geometry=GRID, classes=BREAST8, rules=AnnotationRules(**rules), slide=slide, sized=sized
    )
    for part in [(slice(0, 9), slice(0, 12)), (slice(9, 23), slice(12, 31))]:
        whole = labels.read(GRID.whole)
        np.testing.assert_array_equal(labels.read(part), whole[part])
        assert isinstance(labels.read(part), np.ndarray)
    return labels.read(GRID.whole)


def table(folder: Path, text: str, name: str = "names.csv") -> Path:
    return written(folder, text, name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.csv", "annotation,class\nTumor,malignant epithelium\n gland ,Secretion\nROI,\nbad,ignore\n"),
        (
            "names.yaml",
            "Tumor: malignant epithelium\ngland: Secretion\nROI:\nbad: ignore\n",
        ),
    ],
)
def test_a_table_says_what_names_mean(tmp_path: Path, name: str, text: str) -> None:
    path = written(
        tmp_path,
        asap(
            ("tumor", square(1, 1, height=10, width=20)),
            ("Gland", square(2, 2, height=3, width=4)),
            ("roi", square(0, 0, height=23, width=31)),
            ("bad", square(3, 3, height=4, width=5)),
            ("blood", square(15, 5, height=2, width=3)),
        ),
    )
    np.testing.assert_array_equal(
        truth_of(path, class_names=table(tmp_path, text, name)),
        expected((1, 11, 1, 21, 2), (2, 5, 2, 6, 5), (3, 7, 3, 8, VOID), (15, 17, 5, 8, 6)),
    )


def test_marks_without_a_class_are_named_by_an_empty_cell(tmp_path: Path) -> None:
    path = written(tmp_path, asap(("None", LARGE), ("blood", SMALL)))
    names = table(tmp_path, "annotation,class\n,necrosis\n")
    np.testing.assert_array_equal(
        truth_of(path, class_names=names), expected((2, 14, 3, 23, 7), (4, 9, 6, 13, 6))
    )


def test_where_a_table_leaves_out_everything_nothing_is_stated(tmp_path: Path) -> None:
    path = written(tmp_path, asap(("roi", LARGE)))
    names = table(tmp_path, "annotation,class\nroi,\n")
    assert (truth_of(path, class_names=names) == VOID).all()
    assert (truth_of(path, class_names=names, unannotated="background") == 0).all()


def test_all_names_that_are_not_known_are_told_at_once(tmp_path: Path) -> None:
    marks = [("tumor", LARGE), ("blood", SMALL), ("Stroma", SMALL), ("tumor", SMALL), ("None", SMALL)]
    with pytest.raises(AnnotationError) as caught:
        truth_of(written(tmp_path, asap(*marks)))
    said = str(caught.value)
    assert (
        "4 of 5 marks have what the model does not know: 'tumor' (2, first: line 3), 'Stroma' (1, first: "
        "line 15), no class at all (1, first: line 27); its classes are background, benign epithelium" in said
    )
    assert "--class-names" in said
    many = [(f"name {n}", SMALL) for n in range(20)]
    with pytest.raises(AnnotationError, match="first: line 69\\) and 8 more; its classes"):
        truth_of(written(tmp_path, asap(*many)))


def test_a_table_that_names_other_classes_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, asap(("tumor", LARGE)))
    names = table(tmp_path, "annotation,class\ntumor,cancer\nx,fat\n")
    with pytest.raises(UsageError, match=r"names\.csv names the classes 'cancer', 'fat', which the model"):
        truth_of(path, class_names=names)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,class\na,b\n", "its columns are 'name,class'; they must be annotation,class"),
        ("", "its columns are ''; they must be"),
        ("annotation,class\na,b,c\n", "line 2 has 3 cells; it must have 2"),
        ('annotation,class\n"a\n', "is no table of class names: unexpected end of data"),
        ("annotation,class\na,b\nA ,c\n", "says of 'A ' that it is 'b' and 'c'; leave one"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_table(table(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "said"),
    [("[1, 2]", "it must be CSV"), ("1: a", "has 1: 'a', which are no"), ("{", "is no table")],
)
def test_yaml_that_is_no_table_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_table(table(tmp_path, text, "names.yaml"))
    with pytest.raises(UsageError, match="cannot read the class names .*: No such file"):
        read_table(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    "marks", [[("blood", LARGE), ("necrosis", SMALL)], [("necrosis", SMALL), ("blood", LARGE)]]
)
def test_the_later_or_the_smaller_mark_counts(
    tmp_path: Path, marks: Sequence[tuple[str, Sequence[tuple[float, float]]]]
) -> None:
    path = written(tmp_path, asap(*marks))
    both = expected((2, 14, 3, 23, 6), (4, 9, 6, 13, 7))
    alone = expected((2, 14, 3, 23, 6))
    np.testing.assert_array_equal(truth_of(path, annotation_overlap="smaller"), both)
    np.testing.assert_array_equal(truth_of(path), both if marks[0][0] == "blood" else alone)


def test_of_marks_of_one_size_the_later_counts_and_crossed_outlines_have_both_their_halves(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, asap(("blood", SMALL), ("necrosis", SMALL)))
    np.testing.assert_array_equal(truth_of(path, annotation_overlap="smaller"), expected((4, 9, 6, 13, 7)))
    # Its halves are larger than the square, though one counts against the other.
    bow_tie = [(0, 0), (30, 22), (30, 0), (0, 22)]
    path = written(tmp_path, asap(("blood", square(1, 0, height=20, width=4)), ("necrosis", bow_tie)))
    assert truth_of(path, annotation_overlap="smaller")[10, 1] == 6
    assert truth_of(path)[10, 1] == 7


def test_what_lies_in_no_mark_is_background_where_that_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, asap(("blood", SMALL)))
    found = truth_of(path, unannotated="background")
    mask = np.zeros(GRID.shape, np.uint8)
    mask[4:9, 6:13] = 6
    np.testing.assert_array_equal(found, mask)
    with pytest.raises(AnnotationError, match="should be background, a class that the model has not"):
        open_truth(
            path,
            geometry=GRID,
            classes=(MaskClass(index=0, name="blood", color=(1, 2, 3)),),
            rules=AnnotationRules(unannotated="background"),
        )


def test_micrometres_are_divided_by_the_size_of_a_pixel_on_each_axis(tmp_path: Path) -> None:
    path = written(tmp_path, asap(("blood", square(2, 1.5, height=2.5, width=1.75))))
    found = truth_of(path, annotation_units="micrometres")
    np.testing.assert_array_equal(found, expected((4, 9, 6, 13, 6)))
    with pytest.raises(AnnotationError, match="is in micrometres, and nobody knows the size of a pixel"):
        truth_of(path, annotation_units="micrometres", sized=False)


def test_marks_in_the_frame_of_bounds_are_moved_to_their_corner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames_module, "bounds_corner", lambda path: (3, 5))
    path = written(tmp_path, asap(("blood", square(1, 1, height=5, width=7))))
    found = truth_of(path, annotation_frame="bounds", slide=tmp_path / "slide.mrxs")
    np.testing.assert_array_equal(found, expected((4, 9, 6, 13, 6)))
    with pytest.raises(AnnotationError, match="counts from the bounds of a slide: name its file with --in"):
        truth_of(path, annotation_frame="bounds")


def test_ndpa_lies_on_the_glass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pixels of 500 x 250 nm; the middle (15.5, 11.5) of the image lies at (40000, -70000) nm.
    glass = OnGlass(middle_nm=(-70_000, 40_000), spacing_um=(0.5, 0.25), shape=(23, 31))
    monkeypatch.setattr(frames_module, "on_glass", lambda path: glass)
    y, x = (4 - 11.5) * 500 - 70_000, (6 - 15.5) * 250 + 40_000
    text = f"<annotations>{ndpa('blood', square(y, x, height=5 * 500, width=7 * 250))}</annotations>"
    path = written(tmp_path, text, "slide.ndpi.ndpa")
    np.testing.assert_array_equal(truth_of(path, slide=tmp_path / "slide.ndpi"), expected((4, 9, 6, 13, 6)))
    roi = polygon_region(path, grid=GRID.shape, slide=tmp_path / "slide.ndpi")
    np.testing.assert_array_equal(roi.read(GRID.whole), expected((4, 9, 6, 13, 1)))
    with pytest.raises(AnnotationError, match=r"counts from the centre of the glass, .* name it with --in"):
        truth_of(path)
    with pytest.raises(AnnotationError, match="counts from the centre of the glass"):
        polygon_regions(path, grid=GRID.shape)
    monkeypatch.setattr(frames_module, "on_glass", lambda path: None)
    with pytest.raises(AnnotationError, match=r"slide\.tif does not say where its image lies on it"):
        truth_of(path, slide=tmp_path / "slide.tif")


def test_qupath_names_derived_classes_in_parts(tmp_path: Path) -> None:
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[*SMALL, SMALL[0]]]},
        "properties": {"classification": {"names": ["Tumor", "Positive"], "color": [1, 2, 3]}},
    }
    names = table(tmp_path, 'annotation,class\n"Tumor: Positive",necrosis\n')
    path = written(tmp_path, json.dumps([feature]), "marks.geojson")
    np.testing.assert_array_equal(truth_of(path, class_names=names), expected((4, 9, 6, 13, 7)))


def test_rules_that_are_none_are_refused() -> None:
    assert make_rules({"annotation_overlap": None}) == AnnotationRules()
    with pytest.raises(UsageError, match="setting 'annotation_overlap' = 'larger'"):
        make_rules({"annotation_overlap": "larger"})
