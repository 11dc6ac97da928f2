"""Outlines along pixel edges: valid, complete, and the same however the mask is cut into strips."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp
from numpy.typing import NDArray
from scipy import ndimage

import wsiseg.outlines
from wsiseg.annotations.marks import Mark
from wsiseg.annotations.polygons import PolygonLabels
from wsiseg.classes import VOID
from wsiseg.outlines import Piece, Runs, Tracer

masks = stnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    elements=st.sampled_from([0, 1, 2, VOID]),
)


def traced(mask: NDArray[np.uint8], *, rows: int = 100, min_pixels: float = 0) -> list[Piece]:
    tracer = Tracer(mask.shape[1])
    for start in range(0, len(mask), rows):
        tracer.add(mask[start : start + rows])
    return list(tracer.pieces(min_pixels=min_pixels))


def polygon(piece: Piece) -> shapely.Polygon:
    return shapely.Polygon(piece.rings[0], piece.rings[1:])


def drawn(pieces: list[Piece], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    marks = [Mark(n, polygon(p), None) for n, p in enumerate(pieces)]
    labels = PolygonLabels(marks, [p.value for p in pieces], grid=shape)
    return labels.read(tuple(slice(0, n) for n in shape))


def mask_of(text: str) -> NDArray[np.uint8]:
    return np.array([[VOID if c == "." else int(c) for c in row] for row in text.split()], np.uint8)


@settings(max_examples=150, deadline=None)
@given(masks, st.integers(1, 9))
def test_outlines_drawn_again_are_the_mask_and_valid(mask: NDArray[np.uint8], rows: int) -> None:
    pieces = traced(mask, rows=rows)
    for piece in pieces:
        shape = polygon(piece)
        assert shape.is_valid, shapely.is_valid_reason(shape)
        assert shape.area == piece.pixels
        assert shape.exterior.is_ccw
        assert not any(hole.is_ccw for hole in shape.interiors)
    np.testing.assert_array_equal(drawn(pieces, mask.shape) if pieces else mask * 0 + VOID, mask)
    count = sum(ndimage.label(mask == value)[1] for value in (0, 1, 2))
    assert len(pieces) == count


def test_a_square_with_a_hole_has_eight_corners() -> None:
    (piece,) = traced(mask_of("111 1.1 111"))
    outside, hole = (ring.tolist() for ring in piece.rings)
    assert outside == [[0, 0], [3, 0], [3, 3], [0, 3]]
    assert sorted(hole) == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert piece.pixels == 8


def test_pixels_that_touch_at_a_corner_are_two_pieces() -> None:
    pieces = traced(mask_of("1. .1"))
    assert [p.rings[0].tolist() for p in pieces] == [
        [[0, 0], [1, 0], [1, 1], [0, 1]],
        [[1, 1], [2, 1], [2, 2], [1, 2]],
    ]


def test_a_ring_that_closes_at_a_point_is_an_outside_and_a_hole() -> None:
    (piece,) = traced(mask_of("111 1.1 11."))  # the hole and the outside meet at (2, 2)
    assert len(piece.rings) == 2
    assert polygon(piece).is_valid
    assert [shapely.Polygon(r).area for r in piece.rings] == [8, 1]


def test_small_pieces_are_left_out_and_their_place_stays_open() -> None:
    mask = mask_of("000 010 000")
    (piece,) = traced(mask, min_pixels=2)
    assert (piece.value, piece.pixels, len(piece.rings)) == (0, 8, 2)


def test_strips_are_cut_small_where_a_mask_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(0).integers(0, 3, (50, 40), np.uint8)
    whole = traced(mask)
    monkeypatch.setattr(wsiseg.outlines, "STRIP_PX", 100)
    monkeypatch.setattr(wsiseg.outlines, "CORNERS_AT_ONCE", 50)
    for a, b in zip(whole, traced(mask), strict=True):
        assert [r.tolist() for r in a.rings] == [r.tolist() for r in b.rings]


def test_nothing_gives_nothing() -> None:
    assert list(Tracer(5).pieces()) == []
    assert traced(mask_of("...")) == []


def test_runs_know_their_pieces() -> None:
    runs = Runs.of(mask_of("0110 0010 1111"))
    assert runs.lengths.tolist() == [1, 2, 1, 2, 1, 1, 4]
    piece = runs.pieces()
    assert len(set(piece.tolist())) == 3
    assert len({piece[n] for n in (1, 4, 6)}) == 1  # the ones
