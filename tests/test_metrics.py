"""Scores are those of one confusion matrix over all pixels, and add up over cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsiseg.classes import VOID, anonymous_classes
from wsiseg.metrics import ConfusionMatrix, score

FIXTURE = Path(__file__).parents[2] / "shared" / "fixtures" / "metrics_iou.npz"
needs_fixture = pytest.mark.skipif(
    not FIXTURE.is_file(), reason="needs ../shared/fixtures/metrics_iou.npz beside the project"
)


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
    """Truth and prediction of one shape in 1 to 4 dimensions, with void, and the number of classes."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    classes = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = np.array([*range(classes), VOID], np.uint8)
    truth, prediction = (values[rng.integers(0, len(values), shape)] for _ in range(2))
    return truth, prediction, classes


def brute_force(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int
) -> tuple[list[list[int]], int]:
    """Counts, truth by prediction, and the number of void pixels, one pixel after the other."""
    counts = [[0] * classes for _ in range(classes)]
    void = 0
    for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if VOID in (t, p):
            void += 1
        else:
            counts[t][p] += 1
    return counts, void


@given(mask_pairs())
@settings(max_examples=30, deadline=None)
def test_counts_equal_those_of_single_pixels(
    case: tuple[NDArray[np.uint8], NDArray[np.uint8], int],
) -> None:
    truth, prediction, classes = case
    matrix = ConfusionMatrix.of(truth=truth, prediction=prediction, num_classes=classes)
    counts, void = brute_force(truth, prediction, classes)
    assert matrix.counts.tolist() == counts
    assert matrix.void == void


@given(mask_pairs(), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_the_confusion_of_two_parts_adds_up_to_that_of_the_whole(
    case: tuple[NDArray[np.uint8], NDArray[np.uint8], int], cut: int
) -> None:
    truth, prediction, classes = case
    whole = ConfusionMatrix.of(truth=truth, prediction=prediction, num_classes=classes)
    a, b = (
        ConfusionMatrix.of(truth=truth[part], prediction=prediction[part], num_classes=classes)
        for part in (slice(0, cut), slice(cut, None))
    )
    for total in (a + b, ConfusionMatrix.empty(classes) + b + a):
        np.testing.assert_array_equal(total.counts, whole.counts)
        assert total.void == whole.void
        assert score(total, anonymous_classes(classes)) == score(whole, anonymous_classes(classes))


@given(mask_pairs())
@settings(max_examples=30, deadline=None)
def test_scores_equal_those_of_sets_of_pixels(
    case: tuple[NDArray[np.uint8], NDArray[np.uint8], int],
) -> None:
    truth, prediction, classes = case
    scores = score(
        ConfusionMatrix.of(truth=truth, prediction=prediction, num_classes=classes),
        anonymous_classes(classes),
    )
    counted = (truth != VOID) & (prediction != VOID)
    ious, weighted = [], 0.0
    for k, row in enumerate(scores.classes):
        t, p = (truth == k) & counted, (prediction == k) & counted
        both, either = int((t & p).sum()), int((t | p).sum())
        assert row.iou == (pytest.approx(both / either) if either else None)
        assert row.dice == (pytest.approx(2 * both / (t.sum() + p.sum())) if either else None)
        assert row.precision == (pytest.approx(both / p.sum()) if p.any() else None)
        assert row.recall == (pytest.approx(both / t.sum()) if t.any() else None)
        assert row.absent == (not either)
        assert (row.truth_pixels, row.predicted_pixels) == (t.sum(), p.sum())
        if either:
            ious.append(both / either)
            weighted += t.sum() * both / either
    total = int(counted.sum())
    assert scores.counted_pixels == total
    assert scores.void_pixels == truth.size - total
    assert scores.mean_iou == (pytest.approx(np.mean(ious)) if ious else None)
    assert scores.pixel_accuracy == (pytest.approx((truth == prediction)[counted].mean()) if total else None)
    assert scores.frequency_weighted_iou == (pytest.approx(weighted / total) if total else None)


def test_an_absent_class_has_no_score_and_does_not_lower_the_mean() -> None:
    truth = np.array([0, 0, 1, 1], np.uint8)
    prediction = np.array([0, 0, 1, 0], np.uint8)
    scores = score(
        ConfusionMatrix.of(truth=truth, prediction=prediction, num_classes=4), anonymous_classes(4)
    )
    assert [row.iou for row in scores.classes] == [pytest.approx(2 / 3), 0.5, None, None]
    assert [row.absent for row in scores.classes] == [False, False, True, True]
    assert scores.mean_iou == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_class_that_is_only_predicted_scores_zero_without_a_recall() -> None:
    truth = np.array([0, 0], np.uint8)
    prediction = np.array([0, 1], np.uint8)
    row = score(
        ConfusionMatrix.of(truth=truth, prediction=prediction, num_classes=2), anonymous_classes(2)
    ).classes[1]
    assert (row.iou, row.dice, row.precision, row.recall, row.absent) == (0.0, 0.0, 0.0, None, False)


def test_rows_are_truth_and_columns_prediction() -> None:
    matrix = ConfusionMatrix.of(
        truth=np.array([1, 1, 2], np.uint8), prediction=np.array([0, 2, 2], np.uint8), num_classes=3
    )
    scores = score(matrix, anonymous_classes(3))
    assert scores.confusion == ((0, 0, 0), (1, 0, 1), (0, 0, 1))


def test_where_everything_is_void_there_are_no_scores() -> None:
    void = np.full((2, 3), VOID, np.uint8)
    known = np.zeros((2, 3), np.uint8)
    matrix = ConfusionMatrix.of(truth=void, prediction=known, num_classes=2)
    scores = score(matrix, anonymous_classes(2))
    assert (scores.counted_pixels, scores.void_pixels) == (0, 6)
    assert scores.mean_iou is None
    assert scores.pixel_accuracy is None
    assert scores.frequency_weighted_iou is None


def test_masks_of_other_shapes_and_unknown_classes_are_refused() -> None:
    a, b = np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8)
    with pytest.raises(ValueError, match=r"truth \(2, 3\) and prediction \(3, 2\) differ in shape"):
        ConfusionMatrix.of(truth=a, prediction=b, num_classes=2)
    with pytest.raises(ValueError, match="class 7 is not among the 3 classes"):
        ConfusionMatrix.of(truth=a, prediction=a + np.uint8(7), num_classes=3)
    with pytest.raises(ValueError, match="class 3 is not among the 3 classes"):
        ConfusionMatrix.of(truth=a + np.uint8(3), prediction=a, num_classes=3)


@needs_fixture
def test_scores_equal_the_golden_ones_over_all_batches() -> None:
    with np.load(FIXTURE) as golden:
        truth, prediction = golden["gt"], golden["pred"]
        batches = [
            ConfusionMatrix.of(truth=t, prediction=p, num_classes=8)
            for t, p in zip(truth, prediction, strict=True)
        ]
        total = sum(batches, ConfusionMatrix.empty(8))
        scores = score(total, anonymous_classes(8))
        np.testing.assert_array_equal(total.counts, golden["confusion_rows_gt"])
        np.testing.assert_allclose(
            [row.iou or 0.0 for row in scores.classes], golden["global_iou"], atol=1e-12
        )
        assert scores.mean_iou == pytest.approx(float(golden["global_miou"]), abs=1e-12)
        assert scores.pixel_accuracy == pytest.approx(float(golden["global_acc"]), abs=1e-12)
        # A mean over batches of per-batch scores is another, smaller number.
        assert scores.mean_iou != pytest.approx(float(golden["orig_iouEval_miou"]), abs=0.05)
