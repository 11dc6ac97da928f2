"""The expected calibration error is the formula's, however pixels are put together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from wsiseg.reliability import BINS, Reliability
from wsiseg.tallies import confidence_sums, value_counts


def of_pixels(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> Reliability:
    return Reliability.of(confidence, pixels=np.ones(len(confidence)), right=right)


def by_formula(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Sum over bins of |B| / n * |accuracy - confidence|, pixel by pixel."""
    total = 0.0
    for number in range(BINS):
        own = [i for i, p in enumerate(confidence) if number / BINS < p <= (number + 1) / BINS]
        if own:
            accuracy = sum(bool(right[i]) for i in own) / len(own)
            mean = sum(float(confidence[i]) for i in own) / len(own)
            total += len(own) / len(confidence) * abs(accuracy - mean)
    return total


probabilities = st.one_of(
    st.floats(0, 1, exclude_min=True),
    st.integers(1, BINS).map(lambda n: n / BINS),  # the bounds themselves
    st.integers(1, 255).map(lambda n: n / 255),
)


@given(
    pixels=st.lists(st.tuples(probabilities, st.booleans()), min_size=1, max_size=60),
    cut=st.integers(0, 60),
)
def test_the_error_is_the_formulas_and_adds_up(pixels: list[tuple[float, bool]], cut: int) -> None:
    confidence, right = np.array([p for p, _ in pixels]), np.array([r for _, r in pixels])
    whole = of_pixels(confidence, right)
    assert whole.error == pytest.approx(by_formula(confidence, right), abs=1e-12)
    parts = of_pixels(confidence[:cut], right[:cut]) + of_pixels(confidence[cut:], right[cut:])
    assert parts.error == pytest.approx(whole.error, abs=1e-12)
    np.testing.assert_array_equal(parts.pixels, whole.pixels)
    table = whole.table
    assert table.pixels == sum(b.pixels for b in table.bins) == len(pixels)
    assert all(b.above < (b.confidence or b.up_to) <= b.up_to + 1e-12 for b in table.bins)


def test_counts_of_a_value_weigh_as_many_pixels() -> None:
    values = np.array([0.2, 0.9, 0.95])
    made = Reliability.of(values, pixels=np.array([3, 1, 4]), right=np.array([1, 1, 2]))
    each = of_pixels(np.repeat(values, [3, 1, 4]), np.array([1, 0, 0, 1, 1, 1, 0, 0], bool))
    assert made.error == pytest.approx(each.error)
    assert made.error == pytest.approx((abs(0.6 - 1) + abs(0.9 - 1) + abs(3.8 - 2)) / 8)
    last = made.table.bins[-1]
    assert (last.pixels, last.accuracy) == (4, 0.5)
    assert last.confidence == pytest.approx(0.95)


def test_nothing_has_no_error() -> None:
    assert Reliability.empty().error is None
    assert Reliability.empty().table.bins[0].accuracy is None


@given(
    mask=arrays(np.uint8, (5, 7), elements=st.sampled_from([0, 1, 4, 255])),
    confidence=arrays(np.uint8, (5, 7), elements=st.sampled_from([0, 1, 128, 255])),
    piece=st.integers(1, 40),
)
def test_sums_of_values_are_those_of_single_pixels(
    mask: NDArray[np.uint8], confidence: NDArray[np.uint8], piece: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsiseg.tallies.COUNTED_PX", piece)
        counts, sums = value_counts(mask), confidence_sums(mask, confidence)
    assert counts == {str(v): int((mask == v).sum()) for v in np.unique(mask)}
    decided = confidence > 0
    assert sums == {
        str(v): [int((decided & (mask == v)).sum()), int(confidence[mask == v].sum())]
        for v in np.unique(mask[decided])
    }
