"""Masks that come to the image's own grid by the highest of the resampled scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

import wsiseg
from tests.cases import Interrupted, mask_of, stop_after
from tests.conftest import BitsPredictor, array_source, espnet3d_card, random_image
from tests.test_volumes import PLAIN, write_volume
from wsiseg.classes import VOID
from wsiseg.execute.base import Rows, to_level0
from wsiseg.execute.windowed import Windowed
from wsiseg.preprocess import apply, fit
from wsiseg.sources.cached import CachedSource
from wsiseg.sources.resampled import at_level, choose_level
from wsiseg.windows import WindowPlan, slabs

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def enlarged(scores: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Class of the highest score after linear interpolation, by torch."""
    made = functional.interpolate(
        torch.from_numpy(scores)[None], size=shape, mode=LINEAR[len(shape)], align_corners=False
    )
    return np.asarray(made[0].argmax(0).to(torch.uint8))


def pieces(scores: NDArray[np.float32], mask: NDArray[np.uint8], *, rows: int, first: int) -> Iterator[Rows]:
    for piece in slabs(len(mask), rows=rows):
        if piece.rows.stop > first:
            yield Rows(piece.rows, mask[piece.rows], scores[:, piece.rows])


@given(
    axes=st.integers(1, 3),
    height=st.integers(6, 40),
    from_height=st.integers(3, 40),
    piece=st.integers(1, 9),
    slab=st.integers(1, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_mixed_scores_do_not_depend_on_slabs_and_pieces(
    axes: int, height: int, from_height: int, piece: int, slab: int, seed: int
) -> None:
    rest, from_rest = (7, 5)[: axes - 1], (4, 5)[: axes - 1]
    shape, from_shape = (height, *rest), (from_height, *from_rest)
    scores = np.random.default_rng(seed).normal(size=(3, *from_shape)).astype(np.float32)
    mask = scores.argmax(0).astype(np.uint8)

    def made(rows: int, height_of_slab: int) -> NDArray[np.uint8]:
        given_rows = pieces(scores, mask, rows=rows, first=0)
        wanted = slabs(height, rows=height_of_slab)
        parts = to_level0(given_rows, wanted, shape=shape, from_shape=from_shape, scores=True)
        return np.concatenate([part.mask for part in parts])

    in_one = made(from_height, height)
    np.testing.assert_array_equal(made(piece, slab), in_one)
    if height >= from_height:
        assert (in_one == enlarged(scores, shape)).mean() > 0.99  # but for ties of rounded sums


def test_what_could_not_be_decoded_stays_void_and_nothing_else_is() -> None:
    scores = np.zeros((2, 6, 6), np.float32)
    scores[0, :, :3] = scores[1, :, 3:] = 1
    mask = scores.argmax(0).astype(np.uint8)
    mask[2, 2] = VOID
    ((_, made, _),) = to_level0(
        iter([Rows(slice(0, 6), mask, scores)]), slabs(12, rows=12), shape=(12, 12), from_shape=(6, 6),
        scores=True,
    )  # fmt: skip
    void = np.zeros((12, 12), bool)
    void[4:6, 4:6] = True
    np.testing.assert_array_equal(made == VOID, void)
    np.testing.assert_array_equal(made[~void], np.broadcast_to(np.arange(12) >= 6, (12, 12))[~void])


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 3D-ESPNet with seeded weights whose voxels are larger than those of the volume, on two axes."""
    path = espnet3d_card(tmp_path_factory.mktemp("model"), channels=1, seed=5)
    data = json.loads(path.read_text()) | {"mask_resampling": "scores", "background": 0}
    data["spacing"] = {"value": [1.6, 1.3, 1.0], "unit": "millimeter"}
    data["preprocessing"] |= {"statistics": "case"}
    path.write_text(json.dumps(data))
    return path


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = np.random.default_rng(3).normal(200, 40, (22, 33, 45)).astype(np.float32)
    return write_volume(tmp_path_factory.mktemp("volume") / "v.nii", values)


def one_pass_scores(card: Path, volume: Path) -> NDArray[np.float32]:
    """Scores (K, *model's grid) of one pass over the resampled volume."""
    predictor = wsiseg.load_predictor(card)
    source = wsiseg.open_source(volume)
    assert predictor.card.spacing is not None
    choice = choose_level(source, spacing=predictor.card.spacing.value)
    coarse = at_level(choice, choice.level)
    shape = choice.geometry.shape
    values = torch.from_numpy(coarse.read(choice.geometry.whole).values)[None]
    spec = predictor.card.preprocessing
    pixels = functional.pad(values, [n for size in reversed(shape) for n in (0, -size % 8)])
    with torch.inference_mode():
        scores = predictor.network(apply(pixels, fit(coarse, spec), spec))[0]
    return np.asarray(scores[(slice(None), *(slice(0, n) for n in shape))])


def expected(card: Path, volume: Path) -> NDArray[np.uint8]:
    """These scores, enlarged by torch."""
    return enlarged(one_pass_scores(card, volume), wsiseg.open_source(volume).geometry.shape)


def test_the_mask_is_that_of_the_interpolated_scores(card: Path, volume: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"image": "none", **PLAIN}
    mask = mask_of(wsiseg.segment(volume, tmp_path / "a", card, **options))
    assert (mask == expected(card, volume)).mean() > 0.9999  # but for ties of rounded sums
    with pytest.raises(Interrupted):
        wsiseg.segment(volume, tmp_path / "b", card, progress=stop_after(1), **options)
    np.testing.assert_array_equal(mask_of(wsiseg.segment(volume, tmp_path / "b", card, **options)), mask)


@pytest.mark.parametrize("taper", [0, 2])
def test_scores_of_windows_join_like_their_masks(taper: int) -> None:
    shape = (23, 17, 11)
    source = array_source(random_image(shape))
    plan = WindowPlan(shape=shape, core=(8, 5, 6), halo=(3, 2, 4))
    one = WindowPlan(shape=shape, core=shape, halo=(0, 0, 0))

    def scores(executor: Windowed) -> NDArray[np.float32]:
        with CachedSource(source, readers=1) as cached:
            made = list(executor.run(cached, first_row=0, wanted=lambda region: region[0].start < 14))
        assert all(p.scores is not None for p in made)
        joined = np.concatenate([p.scores for p in made if p.scores is not None], axis=1)
        np.testing.assert_array_equal(joined.argmax(0), np.concatenate([p.mask for p in made]))
        return joined

    whole = scores(Windowed(BitsPredictor(), one, scores=True))
    joined = scores(Windowed(BitsPredictor(), plan, taper=taper, scores=True))
    np.testing.assert_allclose(joined[:, : 16 - taper], whole[:, : 16 - taper], rtol=1e-5)
    assert not joined[:, 16 + taper :].any()  # nothing was wanted there


def test_the_rule_is_part_of_a_models_identity_and_changes_the_mask(
    card: Path, volume: Path, tmp_path: Path
) -> None:
    plain = card.with_name("nearest.json")
    data = json.loads(card.read_text())
    plain.write_text(json.dumps(data | {"mask_resampling": "nearest"}))
    rules = [wsiseg.load_predictor(path).card for path in (card, plain)]
    assert rules[0].identity != rules[1].identity
    masks = [mask_of(wsiseg.segment(volume, tmp_path / path.stem, path, image="none", **PLAIN))
             for path in (card, plain)]  # fmt: skip
    assert (masks[0] != masks[1]).any()
