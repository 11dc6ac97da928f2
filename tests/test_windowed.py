"""Window by window equals one window over everything, in 1 to 4 dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.conftest import BitsPredictor, array_source, card_of, random_image
from wsiseg.classes import VOID
from wsiseg.execute.base import Rows, to_level0
from wsiseg.execute.windowed import Windowed, balanced_core
from wsiseg.geometry import Region
from wsiseg.models.layers import CONV
from wsiseg.predict import NetworkPredictor, Outputs
from wsiseg.sources.array import ArraySource
from wsiseg.sources.cached import CachedSource
from wsiseg.windows import WindowPlan, slabs


def everything(region: Region) -> bool:
    return True


def collect(
    executor: Windowed,
    source: ArraySource,
    *,
    first_row: int = 0,
    wanted: Callable[[Region], bool] = everything,
    readers: int = 2,
) -> NDArray[np.uint8]:
    """All rows that an executor yields; they must join without gaps up to the last."""
    with CachedSource(source, readers=readers) as cached:
        pieces = list(executor.run(cached, first_row=first_row, wanted=wanted))
    assert all(a.rows.stop == b.rows.start for a, b in itertools.pairwise(pieces))
    assert pieces[0].rows.start <= first_row
    assert pieces[-1].rows.stop == source.geometry.shape[0]
    return np.concatenate([p.mask for p in pieces])[first_row - pieces[0].rows.start :]


class LocalMean:
    """Scores of two classes from the mean over a neighbourhood of `reach` pixels on each side."""

    def __init__(self, ndim: int, *, reach: int) -> None:
        self.card = card_of(2, channels=1)
        self._conv = CONV[ndim](1, 1, 2 * reach + 1, padding=reach, bias=False).double()
        with torch.no_grad():
            self._conv.weight.copy_(
                torch.rand(self._conv.weight.shape, generator=torch.Generator().manual_seed(1))
            )

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            mean = self._conv(torch.from_numpy(images.copy()).double())
        middle = self._conv.weight.sum() * 127.5
        return Outputs(torch.cat([mean, 2 * middle - mean], dim=1))


@pytest.mark.parametrize("ndim", [1, 2, 3, 4])
@pytest.mark.parametrize("taper", [0, 2])
def test_what_each_pixel_says_alone_arrives_at_its_place(ndim: int, taper: int) -> None:
    shape = (23, 17, 11, 9)[:ndim]
    image = random_image(shape)
    plan = WindowPlan(shape=shape, core=(8, 5, 6, 4)[:ndim], halo=(3, 2, 4, 2)[:ndim])
    mask = collect(Windowed(BitsPredictor(), plan, taper=taper, batch=2), array_source(image))
    np.testing.assert_array_equal(mask, image[0] & 3)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_sufficient_halo_gives_the_mask_of_one_window_and_one_pixel_less_does_not(ndim: int) -> None:
    shape, reach = {1: (301,), 2: (41, 37), 3: (41, 37, 13)}[ndim], 3
    image = random_image(shape, channels=1, seed=3)
    predictor = LocalMean(ndim, reach=reach)
    one = WindowPlan(shape=shape, core=shape, halo=(reach,) * ndim)
    whole = collect(Windowed(predictor, one), array_source(image))
    assert 0.05 < whole.mean() < 0.95

    def pieces(halo: int) -> NDArray[np.uint8]:
        plan = WindowPlan(shape=shape, core=(8, 6, 5)[:ndim], halo=(halo,) * ndim)
        return collect(Windowed(predictor, plan, batch=3), array_source(image))

    np.testing.assert_array_equal(pieces(reach), whole)
    assert (pieces(reach - 1) != whole).any()


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_taper_gives_the_weighted_sum_of_all_windows(ndim: int) -> None:
    """A predictor that sees where it is in its window shows every weight; brute force adds them up."""
    shape, core, halo, taper = (22, 19, 10)[:ndim], (8, 6, 4)[:ndim], (3, 3, 3)[:ndim], 2

    class InWindow:
        card = card_of(3, channels=1)

        def __call__(self, images: NDArray[np.uint8]) -> Outputs:
            place = sum(np.indices(images.shape[2:]))
            scores = np.stack([np.sin(place + 2.0 * k) for k in range(3)])
            return Outputs(
                torch.from_numpy(np.broadcast_to(scores, (images.shape[0], *scores.shape)).astype("f4"))
            )

    plan = WindowPlan(shape=shape, core=core, halo=halo)
    image = random_image(shape, channels=1)
    mask = collect(Windowed(InWindow(), plan, taper=taper), array_source(image))
    sums = np.zeros((3, *shape))
    grids = np.indices(shape)
    for window in plan.windows():
        weight = np.ones(shape)
        for axis, (w, i, n) in enumerate(zip(window.core, window.index, plan.grid, strict=True)):
            centre = grids[axis] + 0.5
            rise = np.clip((centre - (w.start - taper)) / (2 * taper), 0, 1) if i > 0 else (centre > w.start)
            fall = np.clip((w.stop + taper - centre) / (2 * taper), 0, 1) if i + 1 < n else (centre < w.stop)
            weight = weight * rise * fall
        place = sum(g - r.start for g, r in zip(grids, window.read, strict=True))
        sums += weight * np.stack([np.sin(place + 2.0 * k) for k in range(3)])
    ordered = np.sort(sums, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-5
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(mask[clear], sums.argmax(0)[clear])


@pytest.mark.parametrize("taper", [0, 3])
def test_starting_at_any_row_gives_the_same_rows(taper: int) -> None:
    shape = (50, 21)
    image = random_image(shape, channels=1, seed=5)
    plan = WindowPlan(shape=shape, core=(8, 8), halo=(5, 4))
    executor = Windowed(LocalMean(2, reach=4), plan, taper=taper)
    whole = collect(executor, array_source(image))
    for row in range(0, 50, 3):
        np.testing.assert_array_equal(collect(executor, array_source(image), first_row=row), whole[row:])
        assert executor.first_row_read(row) <= max(0, row - taper) - 4


@pytest.mark.parametrize("taper", [0, 2])
def test_skipped_windows_change_nothing_where_something_is_wanted(taper: int) -> None:
    shape = (40, 40)
    image = random_image(shape, channels=1, seed=9)
    predictor = LocalMean(2, reach=3)
    plan = WindowPlan(shape=shape, core=(8, 8), halo=(4, 4))
    spot = (slice(13, 19), slice(22, 27))

    def near(region: Region) -> bool:
        return all(a.start < b.stop and b.start < a.stop for a, b in zip(region, spot, strict=True))

    whole = collect(Windowed(predictor, plan, taper=taper), array_source(image))
    part = collect(Windowed(predictor, plan, taper=taper), array_source(image), wanted=near)
    np.testing.assert_array_equal(part[spot], whole[spot])
    nothing = collect(Windowed(predictor, plan, taper=taper), array_source(image), wanted=lambda r: False)
    assert not nothing.any()


def test_batches_have_one_shape_and_do_not_change_the_mask() -> None:
    shape = (30, 44)
    image = random_image(shape)
    plan = WindowPlan(shape=shape, core=(8, 8), halo=(2, 2))
    for batch in (1, 3, 8):
        predictor = BitsPredictor()
        mask = collect(Windowed(predictor, plan, batch=batch), array_source(image), readers=4)
        np.testing.assert_array_equal(mask, image[0] & 3)
        assert set(predictor.batches) == {batch}


@pytest.mark.parametrize("taper", [0, 2])
def test_what_cannot_be_decoded_is_void_exactly_there(taper: int) -> None:
    shape = (26, 20)
    image = random_image(shape)
    valid = np.ones(shape, bool)
    valid[7:18, 3:11] = False
    plan = WindowPlan(shape=shape, core=(8, 8), halo=(2, 2))
    mask = collect(Windowed(BitsPredictor(), plan, taper=taper), array_source(image, valid=valid))
    np.testing.assert_array_equal(mask == VOID, ~valid)
    np.testing.assert_array_equal(mask[valid], (image[0] & 3)[valid])


@given(
    height=st.integers(3, 60),
    from_height=st.integers(2, 60),
    piece=st.integers(1, 9),
    slab=st.integers(1, 20),
    skip=st.integers(0, 3),
)
@settings(max_examples=80, deadline=None)
def test_rows_reach_level_0_by_pixel_centres_for_any_slab_and_piece(
    height: int, from_height: int, piece: int, slab: int, skip: int
) -> None:
    coarse = np.random.default_rng(0).integers(0, 9, (from_height, 7), dtype=np.uint8)
    wanted = slabs(height, rows=slab)[skip:]
    first = wanted[0].rows.start * from_height // height if wanted else 0
    pieces = (Rows(p.rows, coarse[p.rows]) for p in slabs(from_height, rows=piece) if p.rows.stop > first)
    rows = ((2 * np.arange(height) + 1) * from_height) // (2 * height)
    columns = ((2 * np.arange(10) + 1) * 7) // 20
    expected = coarse[rows][:, columns]
    for part, mask, _ in to_level0(pieces, wanted, shape=(height, 10), from_shape=coarse.shape):
        np.testing.assert_array_equal(mask, expected[part.rows])


def test_cores_share_the_image_evenly_and_are_no_larger_than_asked_for() -> None:
    for n in range(1, 60):
        (core,) = balanced_core((n,), core=16, stride=4)
        assert core <= 16
        assert core % 4 == 0
        assert -(-n // core) == -(-n // 16)  # no more windows than with the largest core
        assert core * -(-n // 16) - n < 4 * -(-n // 16)  # less than a stride too many in each
    assert balanced_core((384, 5000, 9), core=1024, stride=8) == (384, 1000, 16)


def test_a_taper_that_does_not_fit_is_refused() -> None:
    plan = WindowPlan(shape=(30, 30), core=(8, 8), halo=(2, 2))
    with pytest.raises(ValueError, match="taper 3 needs a halo"):
        Windowed(BitsPredictor(), plan, taper=3)


def test_a_network_of_an_eighth_of_the_resolution_is_enlarged_to_the_input() -> None:
    """ESPNet-C's scores, up-sampled by 8 with pixel centres (align_corners=False)."""
    from wsiseg.models.espnet import build_espnet

    torch.manual_seed(0)
    network = build_espnet(classes=4, variant="C", p=1, q=1).eval()
    card = card_of(4, stride=8)
    card = card.model_copy(update={"windows": card.windows.model_copy(update={"output_scale": 8})})
    image = random_image((64, 48))
    scores = NetworkPredictor(card, network, device=torch.device("cpu"))(image[None]).scores
    with torch.inference_mode():
        small = network(torch.from_numpy(image[None]).float())
        large = torch.nn.functional.interpolate(small, size=(64, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(scores, large)
