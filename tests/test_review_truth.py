"""A reviewer's polygons as truth, and how far reviewers agree."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import wsiseg
from tests.test_store import finished, make_plan
from wsiseg.classes import MaskClass
from wsiseg.cli import app
from wsiseg.errors import AnnotationError, UsageError
from wsiseg.metrics import ConfusionMatrix
from wsiseg.reviews.corrections import Corrections, Review
from wsiseg.reviews.truth import Reviewed, kappa
from wsiseg.store import CaseStore

SHAPE = (20, 30)
CLASSES = tuple(
    MaskClass(index=n, name=name, color=(40 * n, 0, 0)) for n, name in enumerate(("background", "a", "b"))
)


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    """A mask that is all of class a."""
    plan = make_plan(shape=SHAPE, classes=CLASSES)
    return finished(tmp_path / "case.ome.zarr", plan, mask=np.ones(SHAPE, np.uint8))


def draw(store: CaseStore, initials: str, *, left: int, right: int, index: int) -> None:
    """Columns from left to right, over all rows."""
    ring = [(left, 0), (right, 0), (right, SHAPE[0]), (left, SHAPE[0])]
    Corrections(store).draw(initials, str(uuid.uuid4()), [[ring]], index=index, version=0)


def test_without_annotations_only_what_was_drawn_counts(store: CaseStore) -> None:
    draw(store, "AB", left=0, right=6, index=2)
    draw(store, "AB", left=4, right=10, index=1)
    scores = wsiseg.evaluate(store.path, corrected="AB")
    assert (scores.counted_pixels, scores.void_pixels) == (200, 400)
    assert scores.confusion == ((0, 0, 0), (0, 120, 0), (0, 80, 0))  # columns 4 and 5 are the later one's
    assert scores.pixel_accuracy == 0.6
    assert scores.review is not None
    assert (scores.review.reviewer, scores.review.polygons, scores.review.of_this_mask) == ("AB", 2, True)


def test_over_annotations_what_was_drawn_takes_their_place(store: CaseStore, tmp_path: Path) -> None:
    truth = np.ones(SHAPE, np.uint8)
    truth[:, 15:] = 2
    Image.fromarray(truth).save(tmp_path / "truth.png")
    before = wsiseg.evaluate(store.path, tmp_path / "truth.png")
    assert before.pixel_accuracy == 0.5
    draw(store, "AB", left=12, right=18, index=1)
    after = wsiseg.evaluate(store.path, tmp_path / "truth.png", corrected="AB")
    assert after.counted_pixels == 600
    assert after.pixel_accuracy == 0.6  # 18 of 30 columns
    assert wsiseg.evaluate(store.path, tmp_path / "truth.png") == before


def test_a_review_is_of_the_mask_that_was_there_when_the_verdict_was_given(tmp_path: Path) -> None:
    path, mask = tmp_path / "case.ome.zarr", np.ones(SHAPE, np.uint8)
    store = finished(path, make_plan(shape=SHAPE, classes=CLASSES), mask=mask)
    draw(store, "AB", left=0, right=6, index=2)
    shutil.rmtree(path)
    other = finished(path, make_plan(shape=SHAPE, classes=CLASSES, inputs={"model": "b"}), mask=mask)
    assert not Reviewed(other).report("AB").of_this_mask
    Corrections(other).say("AB", Review(verdict="accepted"), version=0)
    assert Reviewed(other).report("AB").of_this_mask


def test_agreement_is_of_the_pixels_that_both_have_marked(store: CaseStore) -> None:
    draw(store, "AB", left=0, right=20, index=1)
    draw(store, "CD", left=10, right=15, index=1)
    draw(store, "CD", left=15, right=30, index=2)
    Corrections(store).say("EF", Review(verdict="accepted"), version=0)
    (pair,) = Reviewed(store).agreement()
    assert pair.reviewers == ("AB", "CD")
    assert pair.pixels == 200
    assert pair.same_share == 0.5
    assert pair.kappa == 0.0  # AB calls all of them a: chance has it right as often
    assert pair.iou == {"background": None, "a": 0.5, "b": 0.0}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([[20, 5], [10, 15]], 0.4), ([[5, 0], [0, 5]], 1.0), ([[9, 0], [0, 0]], None), ([[0, 0], [0, 0]], None)],
)
def test_kappa(counts: list[list[int]], expected: float | None) -> None:
    assert kappa(ConfusionMatrix(np.array(counts))) == expected


def test_what_cannot_be_scored_is_said(store: CaseStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="say what the truth is"):
        wsiseg.evaluate(store.path)
    with pytest.raises(AnnotationError, match="XY has drawn nothing on .*; it has layers of nobody"):
        wsiseg.evaluate(store.path, corrected="XY")
    with pytest.raises(UsageError, match="no initials"):
        wsiseg.evaluate(store.path, corrected="../x")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(UsageError, match="has no reviews"):
        wsiseg.evaluate(tmp_path / "mask.png", corrected="AB")


def test_the_command_says_what_reviewers_say(store: CaseStore) -> None:
    draw(store, "AB", left=0, right=10, index=2)
    draw(store, "CD", left=0, right=10, index=1)
    Corrections(store).say("AB", Review(verdict="needs work", comment="[ducts]"), version=0)
    asked = ["evaluate", "--prediction", str(store.path), "--corrected", "AB"]
    said = CliRunner().invoke(app, asked).output
    assert "AB: needs work, 1 polygons\nAB: [ducts]\n" in said
    assert "AB and CD on 200 pixels that both marked: kappa 0.0000; IoU a 0.0000, b 0.0000" in said
    found = json.loads(CliRunner().invoke(app, [*asked, "--json"]).output)
    assert found["review"]["verdict"] == "needs work"
    assert found["confusion"] == [[0, 0, 0], [0, 0, 0], [0, 200, 0]]
