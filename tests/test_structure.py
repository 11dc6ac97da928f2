"""Structure numbers of masks that are small enough to count by hand."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

import wsiseg.export.numbers
import wsiseg.structure
from tests.conftest import random_image
from tests.stores import CLASSES, blobs, store_of
from wsiseg.classes import VOID
from wsiseg.errors import UsageError
from wsiseg.export.command import export_store
from wsiseg.geometry import Geometry
from wsiseg.structure import Rings, Structure, structure

VOLUME = Path(wsiseg.__file__).parent / "samples" / "msd-hippocampus" / "images" / "hippocampus_149.nii.gz"


def rows_of(text: str) -> NDArray[np.uint8]:
    return np.array([[VOID if c == "." else int(c) for c in row] for row in text.split()], np.uint8)


def numbers(mask: NDArray[np.uint8], *, spacing: tuple[float, float] = (2.0, 1.0), rings: Rings) -> Structure:
    grid = Geometry(axes="yx", shape=mask.shape, spacing=spacing, unit="micrometer")
    return structure(mask, classes=CLASSES, geometry=grid, rings=rings)


NO_RINGS = Rings((), ())


def test_boundaries_are_the_edges_between_two_classes() -> None:
    # Pixels 2 µm high and 1 µm wide. 1 and 2: three upright edges of 2 µm and one level edge of 1 µm.
    found = numbers(rows_of("112 112 122 .00"), rings=NO_RINGS)
    by_pair = {(b.a, b.b): b for b in found.boundaries}
    assert by_pair["epithelium", "stroma"].edges_um == 3 * 2 + 1
    assert by_pair["epithelium", "stroma"].length_um == pytest.approx(7 * math.pi / 4)
    assert by_pair["background", "stroma"].edges_um == 2 * 1
    assert len(found.boundaries) == 2  # none with void


def test_boundaries_do_not_depend_on_the_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = blobs((40, 50))
    whole = numbers(mask, rings=NO_RINGS)
    monkeypatch.setattr(wsiseg.structure, "STRIP_ROWS", 7)
    assert numbers(mask, rings=NO_RINGS) == whole
    assert sum(b.edges_um for b in whole.boundaries) == (
        2 * (mask[:, 1:] != mask[:, :-1]).sum() + (mask[1:] != mask[:-1]).sum()
    )


def test_the_length_of_a_circle_is_nearly_that_of_a_circle() -> None:
    y, x = np.mgrid[:400, :400]
    mask = (np.hypot(y - 200, x - 200) < 150).astype(np.uint8)
    (found,) = numbers(mask, spacing=(1.0, 1.0), rings=NO_RINGS).boundaries
    assert found.length_um == pytest.approx(2 * math.pi * 150, rel=0.01)


def test_pieces_touch_along_edges_and_are_counted_by_size() -> None:
    mask = rows_of("1101 0010 ..00")
    found = {c.name: c for c in numbers(mask, spacing=(10.0, 10.0), rings=NO_RINGS).classes}
    ones = found["epithelium"]
    assert (ones.pixels, ones.count, ones.area_um2) == (4, 3, 400.0)  # 2 and 1 and 1 pixels of 100 µm²
    assert (ones.median_um2, ones.largest_um2) == (100.0, 200.0)
    assert ones.by_size == (0, 3, 0, 0, 0, 0)
    assert ones.share == 0.4
    assert (found["stroma"].count, found["stroma"].median_um2, found["stroma"].share) == (0, None, 0.0)


def test_layers_are_counted_by_the_distance_of_pixel_centres() -> None:
    rings = Rings(inner=(1,), outer=(2,), step_um=10.0, reach_um=30.0, min_um2=0)
    found = numbers(rows_of("0012203."), spacing=(10.0, 10.0), rings=rings)
    first, second, third = found.layers
    assert (first.from_um, first.to_um) == (0.0, 10.0)
    assert first.area_um2 == {"background": 100.0, "epithelium": 0.0, "stroma": 100.0, "=blood": 0.0}
    assert second.share == {"background": 0.5, "epithelium": 0.0, "stroma": 0.5, "=blood": 0.0}
    assert third.area_um2["background"] == 100.0  # to the right only: there is nothing more to the left
    (piece,) = found.components
    assert (piece.area_um2, piece.shell_um2, piece.box_px) == (100.0, 200.0, (0, 1, 2, 3))
    assert piece.thickness_um == 20.0  # stroma is half of the first two rings and nothing of the third


def test_what_lies_between_two_components_belongs_to_the_nearer_one() -> None:
    rings = Rings(inner=(1,), outer=(2,), step_um=1.0, reach_um=3.0, min_um2=2.0)
    found = numbers(rows_of("1222211 1222211"), spacing=(1.0, 1.0), rings=rings)
    assert [(c.number, c.shell_um2, c.thickness_um) for c in found.components] == [
        (1, 4.0, 2.0),
        (2, 4.0, 2.0),
    ]
    found = numbers(
        rows_of("1222211 1222211"), spacing=(1.0, 1.0), rings=Rings((1,), (2,), 1.0, 3.0, min_um2=3.0)
    )
    assert [(c.number, c.area_um2, c.shell_um2) for c in found.components] == [(1, 4.0, 4.0)]
    assert found.layers[0].area_um2["stroma"] == 4.0  # round the small one too


def test_stroma_that_reaches_the_last_ring_is_as_thick_as_all_of_them() -> None:
    rings = Rings(inner=(1,), outer=(2,), step_um=1.0, reach_um=3.0, min_um2=0)
    (piece,) = numbers(rows_of("122222"), spacing=(1.0, 1.0), rings=rings).components
    assert piece.thickness_um == 3.0


def test_layers_computed_in_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.where(blobs((90, 70), side=9) == 1, blobs((90, 70), seed=1), 2).astype(np.uint8)
    mask[40:, 30:] = 2  # far from everything
    rings = Rings(inner=(1,), outer=(2,), step_um=3.0, reach_um=12.0, min_um2=20.0)
    whole = numbers(mask, rings=rings)
    monkeypatch.setattr(wsiseg.structure, "BLOCK_PX", 16)
    parts = numbers(mask, rings=rings)
    assert parts.layers == whole.layers  # which of two equally near pieces gets a pixel may differ
    distance = ndimage.distance_transform_edt(mask != 1, sampling=(2.0, 1.0))
    for layer in whole.layers:
        at = (distance > layer.from_um) & (distance <= layer.to_um)
        assert layer.area_um2["stroma"] == 2.0 * (mask[at] == 2).sum()


def test_the_table_holds_all_numbers_of_a_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = blobs((700, 1100), side=40)
    store = store_of(tmp_path / "s.ome.zarr", mask, spacing=(0.5, 0.5), slab_rows=128, chunk=64)
    done = export_store(store.path, to="csv", out=tmp_path / "a.csv", structure=True, mpp=1.1)
    found = done.details["structure"]
    assert found["spacing_um"] == [1.0, 1.0]
    assert (found["inner"], found["outer"]) == (["epithelium"], ["stroma"])
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text("utf-8"))))
    (share,) = [r for r in rows if r["measure"] == "share" and r["class"] == "epithelium"]
    assert float(share["value"]) == (mask[::2, ::2] == 1).mean()
    (edges,) = [
        r
        for r in rows
        if r["measure"] == "boundary edges" and (r["class"], r["other"]) == ("epithelium", "stroma")
    ]
    assert float(edges["value"]) == next(
        b["edges_um"] for b in found["boundaries"] if (b["a"], b["b"]) == ("epithelium", "stroma")
    )
    assert sum(r["measure"] == "shell thickness" for r in rows) == len(found["components"]) > 0
    monkeypatch.setattr(wsiseg.export.numbers, "MOST_PIXELS", 700 * 1100 // 4)
    usual = export_store(store.path, to="csv", out=tmp_path / "b.csv", structure=True)
    assert usual.details == done.details
    other = export_store(
        store.path, to="csv", out=tmp_path / "c.csv", structure=True, around=("Stroma",), min_area=1e9
    )
    found = other.details["structure"]
    assert (found["inner"], found["outer"], found["components"]) == (["stroma"], [], [])


def test_a_structure_that_cannot_be_computed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(tmp_path / "s.ome.zarr", blobs((60, 60)))

    def export(**asked: Any) -> None:
        export_store(store.path, to="csv", out=tmp_path / "a.csv", structure=True, **asked)

    with pytest.raises(UsageError, match="--mpp is 0.1 µm and the mask has pixels of 0.5 µm"):
        export(mpp=0.1)
    with pytest.raises(UsageError, match="'bone' is no class of this mask; its classes are background, "):
        export(around=("bone",))
    with pytest.raises(UsageError, match="--regions says nothing of --structure"):
        export(regions=tmp_path / "r.geojson")
    monkeypatch.setattr(wsiseg.export.numbers, "MOST_ASKED_PIXELS", 100)
    with pytest.raises(UsageError, match="has 3600 pixels at --mpp 0.5, and at most 100 are looked at"):
        export(mpp=0.5)


def test_a_mask_without_the_inner_tissue_has_no_layers() -> None:
    found = numbers(rows_of("0022"), rings=NO_RINGS)
    assert (found.layers, found.components) == ((), ())
    rings = Rings(inner=(1,), outer=(2,), step_um=1.0, reach_um=2.0)
    found = numbers(rows_of("0022"), rings=rings)
    assert found.layers[0].share["stroma"] is None
    assert found.components == ()


def test_a_case_is_segmented_with_its_structure_in_report_and_table(tmp_path: Path) -> None:
    Image.fromarray(np.moveaxis(random_image((96, 96)), 0, -1)).save(tmp_path / "a.png")
    given: dict[str, Any] = {"mpp": 0.5, "model": "demo-breast8", "device": "cpu", "image": "none"}
    plain = wsiseg.segment(tmp_path / "a.png", tmp_path / "out", **given)
    assert plain.structure is None
    report = wsiseg.segment(tmp_path / "a.png", tmp_path / "out", **given, structure=True)
    assert report.status == "already complete"  # the mask is; its structure is counted now
    assert report.structure is not None
    done = export_store(report.store, to="csv", out=tmp_path / "b.csv", structure=True)
    assert done.details["structure"] == report.structure.model_dump(mode="json")
    assert (tmp_path / "out" / "a.structure.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    again = wsiseg.segment(tmp_path / "a.png", tmp_path / "out", **given)
    assert again.structure == report.structure
    with pytest.raises(UsageError, match="is a volume; --structure is for slides"):
        wsiseg.segment(VOLUME, tmp_path / "out", structure=True)
