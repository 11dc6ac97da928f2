"""Masks as the XML of ASAP, ImageScope, HALO and NDP.view: drawn again they are the mask."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp
from numpy.typing import NDArray

import wsiseg
from tests.stores import CLASSES, blobs, store_of
from tests.vendor_files import write_ndpi, write_scn
from wsiseg.annotations import open_truth
from wsiseg.annotations.marks import Mark, parts_of
from wsiseg.annotations.reading import read_marks
from wsiseg.classes import VOID
from wsiseg.errors import UsageError
from wsiseg.export.command import export_store
from wsiseg.export.geojson import Outlines
from wsiseg.export.marks import (
    ASAP,
    HALO,
    IMAGESCOPE,
    NDPA,
    Area,
    Kind,
    Layer,
    keyhole,
    write_marks,
    write_pieces,
)
from wsiseg.files import fingerprint
from wsiseg.geometry import Geometry
from wsiseg.sources.slide import on_glass

KINDS = {"asap": ASAP, "imagescope": IMAGESCOPE, "halo": HALO}
EVERY = {**KINDS, "ndpa": NDPA}


def name_of(kind: Kind) -> str:
    return f"marks{kind.suffixes[0]}"


def drawn(path: Path, shape: tuple[int, ...], *, slide: Path | None = None) -> NDArray[np.uint8]:
    grid = Geometry(axes="yx", shape=shape, spacing=(0.25, 0.5), unit="micrometer")
    labels = open_truth(path, geometry=grid, classes=CLASSES, slide=slide)
    return labels.read(grid.whole)


def write(path: Path, mask: NDArray[np.uint8], *, kind: Kind, **asked: Any) -> dict[str, int]:
    return write_pieces(
        path, mask, kind=kind, what="a file", classes=CLASSES, spacing=(0.25, 0.5), outlines=Outlines(**asked)
    )


def again(path: Path, marks: list[Mark], *, kind: Kind) -> list[Mark]:
    """Marks written and read once more."""
    layers = {name: Layer(name, (1, 2, 3)) for name in dict.fromkeys(m.class_name or "" for m in marks)}
    areas = [
        Area(layers[mark.class_name or ""], [ring[:-1] for ring in part])
        for mark in marks
        for part in parts_of(mark.area)
    ]
    write_marks(path, areas, kind=kind, layers=list(layers.values()), what="a file")
    return read_marks(path)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("merge", [False, True])
def test_polygons_drawn_again_are_the_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, merge: bool
) -> None:
    monkeypatch.setattr("wsiseg.export.geojson.BAND_ROWS", 7)
    mask = blobs((50, 70))
    path = tmp_path / name_of(KINDS[name])
    counts = write(path, mask, kind=KINDS[name], merge=merge)
    assert sum(counts.values()) > 10
    np.testing.assert_array_equal(drawn(path, mask.shape), mask)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mask=stnp.arrays(
        np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, VOID])
    )
)
def test_any_mask_comes_back_from_its_file(tmp_path: Path, name: str, mask: NDArray[np.uint8]) -> None:
    if (mask == VOID).all():
        return
    path = tmp_path / name_of(KINDS[name])
    write(path, mask, kind=KINDS[name])
    np.testing.assert_array_equal(drawn(path, mask.shape), mask)


@pytest.mark.parametrize("name", EVERY)
def test_what_was_read_is_written_and_read_as_the_same_marks(tmp_path: Path, name: str) -> None:
    kind = EVERY[name]
    path, second = tmp_path / name_of(kind), tmp_path / f"second{kind.suffixes[0]}"
    write(path, blobs((40, 60)), kind=kind)
    first = read_marks(path)
    moved = [
        Mark(m.number, shapely.transform(m.area, lambda xy: xy * (1 / 3) + 0.1), m.class_name) for m in first
    ]
    for marks in (first, moved):  # whole numbers, and such as have no short text
        once = again(second, marks, kind=kind)
        assert [m.class_name for m in once] == [m.class_name for m in marks]
        for a, b in zip(marks, once, strict=True):
            assert shapely.equals_exact(a.area, b.area)


def test_a_keyhole_has_the_area_of_its_polygon_and_turns_round_holes_the_other_way() -> None:
    outside = np.array([(0, 0), (9, 0), (9, 7), (0, 7)])
    holes = [np.array([(1, 1), (3, 1), (3, 3), (1, 3)]), np.array([(5, 2), (5, 4), (8, 4), (8, 2)])]
    ring = keyhole([outside, *holes])
    x, y = ring.astype(float).T
    assert (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2 == 63 - 4 - 6
    assert len(ring) == 4 + 2 * (4 + 2)
    np.testing.assert_array_equal(keyhole([outside]), outside)


def test_layers_have_the_colours_of_their_classes(tmp_path: Path) -> None:
    mask = blobs((40, 60))
    for name, kind in KINDS.items():
        write(tmp_path / f"{name}.xml", mask, kind=kind)
    color = CLASSES[1].color
    assert f'LineColor="{color[0] + 256 * color[1] + 65536 * color[2]}" Name="{CLASSES[1].name}"' in (
        tmp_path / "halo.xml"
    ).read_text("utf-8")
    assert 'Color="#{:02x}{:02x}{:02x}"'.format(*color) in (tmp_path / "asap.xml").read_text("utf-8")


def test_a_name_with_signs_of_xml_comes_back(tmp_path: Path) -> None:
    area = shapely.box(1, 2, 3, 4)
    for kind in EVERY.values():
        (mark,) = again(tmp_path / name_of(kind), [Mark(1, area, "a<b> & \"c\" 'd'")], kind=kind)
        assert mark.class_name == "a<b> & \"c\" 'd'"


def test_the_same_store_gives_the_same_bytes_and_what_does_not_belong_is_refused(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s.ome.zarr", blobs((50, 70)))
    done = export_store(store.path, to="asap", out=tmp_path / "a.xml.gz")
    export_store(store.path, to="asap", out=tmp_path / "b.xml.gz")
    first = (tmp_path / "a.xml.gz").read_bytes()
    assert first == (tmp_path / "b.xml.gz").read_bytes()
    assert gzip.decompress(first).count(b"<Annotation ") == sum(done.details["polygons"].values())
    with pytest.raises(UsageError, match=r"the name of HALO's annotations ends in \.annotations, \.xml, "):
        export_store(store.path, to="halo", out=tmp_path / "a.txt")
    with pytest.raises(UsageError, match="--frame says nothing of --to ndpa"):
        export_store(store.path, to="ndpa", out=tmp_path / "a.ndpa", frame="bounds")
    with pytest.raises(UsageError, match="NDPA counts from the centre of the glass"):
        export_store(store.path, to="ndpa", out=tmp_path / "a.ndpa")


def test_ndpa_of_a_slide_lies_where_the_slide_does(tmp_path: Path) -> None:
    slide = write_ndpi(tmp_path / "a.ndpi", np.full((64, 96, 3), 90, np.uint8), middle_nm=(-70_000, 40_000))
    glass = on_glass(slide)
    assert glass is not None
    assert (glass.middle_nm, glass.shape) == ((-70_000, 40_000), (64, 96))
    mask = blobs(wsiseg.open_source(slide).geometry.shape, side=40)
    store = store_of(tmp_path / "s.ome.zarr", mask, inputs={"input": fingerprint(slide), "settings": {}})
    out = tmp_path / "a.ndpi.ndpa"
    done = export_store(store.path, to="ndpa", out=out, input=slide, background=True)
    assert done.details["frame"] == "nanometres from the centre of the glass"
    np.testing.assert_array_equal(drawn(out, mask.shape, slide=slide), mask)
    corners = np.concatenate([shapely.get_coordinates(mark.area) for mark in read_marks(out)])
    # The left upper corner of the image: half of its size from its middle.
    assert corners.min(axis=0) == pytest.approx(
        [40_000 - 48 * 1000 * glass.spacing_um[1], -70_000 - 32 * 1000 * glass.spacing_um[0]]
    )
    grey = write_scn(tmp_path / "a.scn", np.full((64, 96, 3), 90, np.uint8), around=32)
    other = store_of(tmp_path / "t.ome.zarr", mask, inputs={"input": fingerprint(grey), "settings": {}})
    with pytest.raises(UsageError, match=r"a\.scn does not say where its image lies on the glass"):
        export_store(other.path, to="ndpa", out=tmp_path / "b.ndpa", input=grey)
