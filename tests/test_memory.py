"""What lives long lies apart from the heap, and is what it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wsiseg.memory import APART_BYTES, apart, zeros_apart
from wsiseg.sources.base import channels_last


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_many_values_are_copied_with_their_layout(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    plain: NDArray[Any] = rng.integers(0, 100, (2, 70, 90, 100)).astype(dtype)
    interleaved = channels_last(2, (70, 90, 100), dtype=np.dtype(dtype))
    interleaved[:] = plain
    for values in (plain, interleaved, plain.transpose(0, 3, 1, 2)):
        assert values.nbytes >= APART_BYTES
        copy = apart(values)
        np.testing.assert_array_equal(copy, values)
        assert copy.dtype == values.dtype
        assert copy.strides == values.strides
        assert not np.shares_memory(copy, values)


def test_few_values_stay_where_they_are() -> None:
    few = np.arange(100, dtype=np.uint8)
    assert apart(few) is few


def test_zeros_can_be_written_on() -> None:
    for shape in ((3, 4), (1, APART_BYTES)):
        made = zeros_apart(shape, np.uint8)
        assert made.shape == shape
        assert not made.any()
        made[:] = 7
        assert (made == 7).all()
