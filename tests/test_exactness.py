"""On the shipped slide with the shipped network: what streaming, --exact and the default halo promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import wsiseg
from tests.conftest import SLIDE
from tests.executors import memory_for_band
from wsiseg.execute.streaming import padded
from wsiseg.execute.windowed import balanced_core
from wsiseg.models.zoo import load_card
from wsiseg.predict import load_predictor
from wsiseg.report import Report

pytestmark = pytest.mark.slow
Mask = NDArray[np.uint8]
MODEL = "demo-breast8"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Report]:
    """The shipped slide without the tissue filter, with some settings."""

    def run(**options: Any) -> Report:
        out = tmp_path_factory.mktemp("out")
        return wsiseg.segment(SLIDE, out, MODEL, image="none", tissue_filter=False, **options)

    return run


def mask_of(report: Report) -> Mask:
    return np.asarray(wsiseg.open_store(report.store).mask()[:])


@pytest.fixture(scope="module")
def segment(run: Callable[..., Report]) -> Callable[..., Mask]:
    """The mask of the shipped slide before the tissue filter, with some settings."""
    return lambda **options: mask_of(run(**options))


@pytest.fixture(scope="module")
def streamed(run: Callable[..., Report]) -> Mask:
    """What the program does when nothing is asked for."""
    report = run()
    assert report.execution["executor"] == "streaming"
    assert 64 < report.execution["band"] < report.mask_shape[0]
    assert report.work.repeated_share == 0
    assert report.work.computed_pixels == np.prod(report.mask_shape)
    return mask_of(report)


@pytest.fixture(scope="module")
def windowed(segment: Callable[..., Mask]) -> Mask:
    """Windows with the default core and halo."""
    return segment(executor="windowed")


@pytest.fixture(scope="module")
def one_window(segment: Callable[..., Mask]) -> Mask:
    """One window over the whole slide, with the context that the receptive field needs."""
    return segment(core=4096, exact=True)


def to_window_border(shape: tuple[int, int], *, core: tuple[int, ...]) -> NDArray[np.float64]:
    """Distance of each pixel to the nearest border between two cores."""
    rows, columns = (
        np.min([np.abs(np.arange(n) + 0.5 - border) for border in range(side, n, side)], axis=0)
        for n, side in zip(shape, core, strict=True)
    )
    nearest: NDArray[np.float64] = np.minimum(rows[:, None], columns[None, :])
    return nearest


def test_streaming_is_the_network_over_the_whole_slide_but_for_float_ties(streamed: Mask) -> None:
    predictor = load_predictor(MODEL, "cpu")
    source = wsiseg.open_source(SLIDE)
    whole = tuple(slice(0, n) for n in padded(source.geometry.shape, stride=8))
    scores = predictor(source.read(whole).values[None]).scores[0]
    expected = scores[:, : streamed.shape[0], : streamed.shape[1]].argmax(dim=0).to(torch.uint8).numpy()
    assert len(np.unique(expected)) >= 5
    assert (streamed != expected).sum() <= streamed.size / 1_000_000


@pytest.mark.parametrize("band", [16, 64])
def test_the_height_of_bands_changes_only_float_ties(
    run: Callable[..., Report], streamed: Mask, band: int
) -> None:
    other = run(memory=memory_for_band((2967, 2220), band=band))
    assert other.execution["band"] == band
    assert (mask_of(other) != streamed).sum() <= streamed.size / 1_000_000


def test_exact_windows_are_streaming_but_for_float_ties(
    segment: Callable[..., Mask], one_window: Mask, streamed: Mask
) -> None:
    for windows in (one_window, segment(core=512, exact=True)):
        assert (windows != streamed).sum() <= streamed.size / 1_000_000


def test_the_default_windows_agree_with_streaming_and_differ_near_their_borders(
    windowed: Mask, streamed: Mask
) -> None:
    differing = windowed != streamed
    assert differing.any()
    assert differing.mean() <= 0.01
    core = balanced_core((2967, 2220), core=load_card(MODEL).windows.core, stride=8)
    distance = to_window_border((2967, 2220), core=core)
    assert distance[differing].mean() < 0.4 * distance.mean()


def test_the_default_core_and_halo_keep_99_percent_and_what_the_card_says(
    windowed: Mask, one_window: Mask
) -> None:
    windows = load_card(MODEL).windows
    agreement = float((windowed == one_window).mean())
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


def test_readers_and_slabs_change_no_bit_of_streaming(segment: Callable[..., Mask], streamed: Mask) -> None:
    np.testing.assert_array_equal(segment(readers=1, slab=1024), streamed)
    np.testing.assert_array_equal(segment(readers=4, slab=512), streamed)


def test_a_halo_off_by_one_stride_is_seen(segment: Callable[..., Mask], one_window: Mask) -> None:
    """The comparison can fail: half the context gives another mask."""
    assert (segment(core=512, halo=0) != one_window).any()
