"""What a reviewer says and draws is stored at once, and nobody's change is lost for another's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_store import finished, make_plan
from wsiseg.annotations import open_truth
from wsiseg.classes import MaskClass
from wsiseg.errors import AnnotationError, UsageError
from wsiseg.reviews.corrections import Corrections, Outdated, Review, area_of
from wsiseg.store import CaseStore

SQUARE = [[[(2, 3), (8, 3), (8, 9), (2, 9)]]]
CLASSES = tuple(
    MaskClass(index=n, name=name, color=(40 * n, 0, 0)) for n, name in enumerate(("background", "a", "b"))
)


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    shape = (40, 50)
    plan = make_plan(shape=shape, classes=CLASSES)
    return finished(tmp_path / "case.ome.zarr", plan, mask=np.zeros(shape, np.uint8))


def name() -> str:
    return str(uuid.uuid4())


def ids(corrections: Corrections, initials: str = "AB") -> list[str]:
    return [str(one["id"]) for one in corrections.layer(initials).features]


def test_a_polygon_is_there_for_whoever_opens_the_case_next_and_for_qupath(store: CaseStore) -> None:
    one = name()
    Corrections(store, model="m").draw("AB", one, SQUARE, index=2, version=0)
    layer = Corrections(store).layer("AB")
    assert layer.about.case == "case"
    assert layer.about.plan == store.plan.identity
    (stored,) = layer.features
    assert stored["id"] == one
    assert stored["properties"]["classification"] == {"name": "b", "color": [80, 0, 0]}
    assert {k: v for k, v in stored["properties"]["wsiseg"].items() if k != "time"} == {
        "reviewer": "AB", "model": "m", "version": 1,
    }  # fmt: skip
    truth = open_truth(Corrections(store).path("AB"), geometry=store.geometry, classes=CLASSES)
    expected = np.full((40, 50), 255, np.uint8)
    expected[3:9, 2:8] = 2
    np.testing.assert_array_equal(truth.read(store.geometry.whole), expected)


def test_polygons_are_changed_in_their_place_and_deleted(store: CaseStore) -> None:
    reviews = Corrections(store)
    first, second = name(), name()
    reviews.draw("AB", first, SQUARE, index=1, version=0)
    reviews.draw("AB", second, SQUARE, index=2, version=0)
    layer = reviews.draw("AB", first, SQUARE, index=2, version=1)
    assert [one["id"] for one in layer.features] == [first, second]
    assert layer.features[0]["properties"]["wsiseg"]["version"] == 2
    assert [one["id"] for one in reviews.remove("AB", first, version=2).features] == [second]


def test_a_change_of_what_another_window_changed_is_refused(store: CaseStore) -> None:
    mine, theirs = Corrections(store), Corrections(store)
    one, other = name(), name()
    mine.draw("AB", one, SQUARE, index=1, version=0)
    theirs.draw("AB", other, SQUARE, index=1, version=0)  # of another polygon: both are kept
    assert ids(mine) == [one, other]
    theirs.draw("AB", one, SQUARE, index=2, version=1)
    with pytest.raises(Outdated, match="changed in another window"):
        mine.draw("AB", one, SQUARE, index=1, version=1)
    with pytest.raises(Outdated, match="changed in another window"):
        mine.remove("AB", one, version=1)
    theirs.remove("AB", one, version=2)
    with pytest.raises(Outdated, match="deleted in another window"):
        mine.draw("AB", one, SQUARE, index=1, version=2)
    mine.draw("AB", one, SQUARE, index=1, version=0)  # an undone deletion
    assert ids(mine) == [other, one]

    mine.say("AB", Review(verdict="accepted", comment="good"), version=0)
    with pytest.raises(Outdated, match="the verdict"):
        theirs.say("AB", Review(verdict="rejected"), version=0)
    assert mine.layer("AB").about.verdict == "accepted"


def test_each_reviewer_has_a_layer(store: CaseStore) -> None:
    reviews = Corrections(store)
    assert reviews.layers() == {}
    reviews.say("CD", Review(verdict="needs work", comment="ducts"), version=0)
    reviews.draw("AB", name(), SQUARE, index=1, version=0)
    (store.path.parent / "case.review.too-many-letters.geojson").write_text("{}")
    (store.path.parent / "case.two.review.AB.geojson").write_text("{}")
    assert {k: (v.about.verdict, len(v.features)) for k, v in reviews.layers().items()} == {
        "AB": ("open", 1), "CD": ("needs work", 0),
    }  # fmt: skip


@pytest.mark.parametrize("initials", ["", "..", "A/B", "A B", "-A", "NINECHARS", "ab", "Ä"])
def test_what_are_no_initials_names_no_file(store: CaseStore, initials: str) -> None:
    with pytest.raises(UsageError, match="no initials"):
        Corrections(store).say(initials, Review(), version=0)
    assert {p.name for p in store.path.parent.iterdir()} == {store.path.name}


@pytest.mark.parametrize(
    ("rings", "said"),
    [
        ([], "three corners"),
        ([[(0, 0), (1, 1)]], "three corners"),
        ([[(0, 0), (1, 1), (1, float("nan"))]], "no number"),
        ([[(60, 60), (70, 60), (70, 70)]], "no area on the slide"),
        ([[(1, 1), (2, 2), (3, 3)]], "no area on the slide"),
        ([[(0, 0)] * 100_001], "more than 100,000 corners"),
        ([[(0, 0), (1, 1), 3]], "list of rings"),
    ],
)
def test_what_is_no_polygon_is_refused(rings: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        area_of([rings], shape=(40, 50))


def test_polygons_are_valid_and_on_the_slide() -> None:
    bow = area_of([[[(0, 0), (10, 10), (10, 0), (0, 10)]]], shape=(40, 50))
    assert bow.is_valid
    assert bow.area == 50  # two triangles: what the outline goes round
    square = [(-5, -5), (10, -5), (10, 10), (-5, 10)]
    assert area_of([[square]], shape=(40, 50)).bounds == (0, 0, 10, 10)
    holed = [[(0, 0), (9, 0), (9, 9), (0, 9)], [(3, 3), (6, 3), (6, 6), (3, 6)]]
    assert area_of([holed], shape=(40, 50)).area == 72
    assert area_of([holed, [square]], shape=(40, 50)).area == 100


def test_a_class_or_an_id_that_is_none_is_refused(store: CaseStore) -> None:
    with pytest.raises(UsageError, match="no class 7"):
        Corrections(store).draw("AB", name(), SQUARE, index=7, version=0)
    with pytest.raises(UsageError, match="no id"):
        Corrections(store).draw("AB", "../x", SQUARE, index=1, version=0)


@pytest.mark.parametrize("content", ["", "[]", '{"wsiseg": {}}', "{"])
def test_a_damaged_layer_is_named_and_not_overwritten(store: CaseStore, content: str) -> None:
    path = Corrections(store).path("AB")
    path.write_text(content)
    with pytest.raises(AnnotationError, match=r"case\.review\.AB\.geojson is no layer of a review"):
        Corrections(store).draw("AB", name(), SQUARE, index=1, version=0)
    assert path.read_text() == content


def test_threads_that_draw_at_the_same_time_lose_nothing(store: CaseStore) -> None:
    names = [[name() for _ in range(10)] for _ in range(4)]

    def draw(own: list[str]) -> None:
        for one in own:
            Corrections(store).draw("AB", one, SQUARE, index=1, version=0)

    threads = [threading.Thread(target=draw, args=(own,)) for own in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ids(Corrections(store))) == sorted(one for own in names for one in own)


DRAWS = """
import sys, uuid
from pathlib import Path
from wsiseg.reviews.corrections import Corrections
from wsiseg.store import open_store
reviews = Corrections(open_store(Path(sys.argv[1])))
while True:
    name = str(uuid.uuid4())
    reviews.draw("AB", name, [[[(2, 3), (8, 3), (8, 9)]]], index=1, version=0)
    print(name, flush=True)
"""


def test_a_viewer_killed_while_it_saves_loses_no_more_than_the_stroke_in_hand(store: CaseStore) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DRAWS, str(store.path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = [process.stdout.readline().strip() for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    said += process.stdout.read().split()
    process.wait()
    process.stdout.close()
    found = ids(Corrections(store))
    assert found[: len(said)] == said
    assert len(found) <= len(said) + 1
    json.loads(Corrections(store).path("AB").read_text())
    Corrections(store).draw("AB", name(), SQUARE, index=1, version=0)  # nothing is locked
