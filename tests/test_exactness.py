"""On the shipped slide with the shipped network: what --exact and the default halo promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import wsiseg
from tests.conftest import SLIDE
from wsiseg.models.registry import load_card

pytestmark = pytest.mark.slow
Mask = NDArray[np.uint8]


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Mask]:
    """The mask of the shipped slide before the tissue filter, with some settings."""

    def run(**options: Any) -> Mask:
        out = tmp_path_factory.mktemp("out")
        report = wsiseg.segment(SLIDE, out, image="none", tissue_filter=False, **options)
        return np.asarray(wsiseg.open_store(report.store).mask()[:])

    return run


@pytest.fixture(scope="module")
def one_window(segment: Callable[..., Mask]) -> Mask:
    """One window over the whole slide, with the context that the receptive field needs."""
    return segment(core=4096, exact=True)


def test_exact_windows_are_one_window_over_the_whole_slide_but_for_float_ties(
    segment: Callable[..., Mask], one_window: Mask
) -> None:
    differing = int((segment(core=512, exact=True) != one_window).sum())
    assert differing <= one_window.size / 100_000


def test_the_default_core_and_halo_keep_99_percent_and_what_the_card_says(
    segment: Callable[..., Mask], one_window: Mask
) -> None:
    windows = load_card("demo-breast8").windows
    agreement = float((segment() == one_window).mean())
    assert agreement >= 0.99
    stated = {(row.core, row.halo): row.agreement for row in windows.agreement}
    assert windows.halo is not None
    assert agreement == pytest.approx(stated[windows.core, windows.halo], abs=2e-4)


def test_readers_and_slabs_change_no_bit_and_batches_only_float_ties(segment: Callable[..., Mask]) -> None:
    reference = segment(core=256)
    np.testing.assert_array_equal(segment(core=256, readers=1, slab=1024), reference)
    np.testing.assert_array_equal(segment(core=256, readers=4, slab=512), reference)
    for batch in (3, 8):
        differing = int((segment(core=256, batch=batch) != reference).sum())
        assert differing <= reference.size / 1_000_000, (batch, differing)


def test_a_halo_off_by_one_stride_is_seen(segment: Callable[..., Mask], one_window: Mask) -> None:
    """The comparison can fail: half the context gives another mask."""
    assert (segment(core=512, halo=0) != one_window).any()
