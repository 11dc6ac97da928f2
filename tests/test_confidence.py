"""How sure a network is: the probability of the chosen class, from the scores that chose it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from tests.conftest import BitsPredictor, array_source, card_of, random_image
from tests.test_mask_resampling import LINEAR
from tests.test_streaming import (
    CLASSES,
    Watched,
    espnet,
    everything,
    near,
    pieces_of,
    predictor_of,
    scores_of,
)
from wsiseg.classes import VOID
from wsiseg.execute.base import Executor, OnLevel0, Rows, to_level0
from wsiseg.execute.decision import Confidence, Decision, boxes
from wsiseg.execute.streaming import Streaming
from wsiseg.execute.windowed import Windowed
from wsiseg.predict import Outputs
from wsiseg.sources.cached import CachedSource
from wsiseg.windows import WindowPlan, slabs

Bytes = NDArray[np.uint8]
LOGITS = Confidence(1.0)


def expected(scores: Any, *, temperature: float | None = 1.0) -> Bytes:
    """By the formula, from scores (K, *grid)."""
    values = np.asarray(scores, np.float64)
    if temperature is not None:
        powers = np.exp(values / temperature - (values / temperature).max(axis=0))
        values = powers / powers.sum(axis=0)
    return np.asarray(np.maximum(np.rint(255 * values.max(axis=0)), 1), np.uint8)


def made_of(confidence: Confidence, *scores: float) -> int:
    """Of one pixel with a score for each class."""
    return int(confidence(torch.tensor(scores).view(-1, 1))[0])


def test_probabilities_are_softmax_by_the_temperature_or_what_the_card_says_they_are() -> None:
    two, three, five = np.log([2.0, 3.0, 5.0])
    assert made_of(LOGITS, two, three, five) == round(255 * 0.5)
    assert made_of(LOGITS, *(np.array([two, three, five]) + 700)) == round(255 * 0.5)
    roots = np.sqrt([2.0, 3.0, 5.0])
    assert made_of(Confidence(2.0), two, three, five) == round(255 * roots[2] / roots.sum())
    assert made_of(Confidence(0.5), two, three, five) == round(255 * 25 / 38)
    assert made_of(LOGITS, *np.log([0.125, 0.625, 0.25])) == round(255 * 0.625)  # log-probabilities
    assert made_of(Confidence(None), 0.125, 0.625, 0.25) == round(255 * 0.625)
    assert made_of(LOGITS, 3.0) == made_of(Confidence(None), 1.0) == 255
    assert made_of(LOGITS, *[0.0] * 1000) == made_of(Confidence(None), 0.0, 1e-4) == 1
    card = card_of(3)
    assert Confidence.of(card.model_copy(update={"temperature": 1.7})) == Confidence(1.7)
    assert Confidence.of(card.model_copy(update={"scores": "log-probabilities"})) == LOGITS
    both = {"scores": "probabilities", "temperature": 1.7}
    assert Confidence.of(card.model_copy(update=both)) == Confidence(None)


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    classes=st.integers(1, 6),
    piece=st.integers(1, 60),
    temperature=st.sampled_from([None, 0.3, 1.0, 2.5]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_pieces_of_any_size_make_what_the_formula_says(
    shape: tuple[int, ...], classes: int, piece: int, temperature: float | None, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 3, (classes, *shape)).astype(np.float32)
    if temperature is None:
        scores = np.abs(scores) / np.abs(scores).sum(axis=0)
    seen = np.zeros(shape, int)
    for box in boxes(shape, pixels=piece):
        seen[box] += 1
        assert seen[box].size <= max(piece, shape[-1] if len(shape) > 1 else piece)
    np.testing.assert_array_equal(seen, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsiseg.execute.decision.PIECE", {"cpu": piece})
        found = Confidence(temperature)(torch.from_numpy(scores)).numpy()
    np.testing.assert_array_equal(found, expected(scores, temperature=temperature))


# Executors


def joined(executor: Executor, image: Bytes, *, first_row: int = 0, **how: Any) -> dict[str, Bytes]:
    """Mask and confidence of the rows from `first_row` on."""
    with Watched(image, valid=how.get("valid")) as source:
        pieces = list(
            pieces_of(executor, source, first_row=first_row, wanted=how.get("wanted", everything))  # type: ignore[arg-type]
        )
    assert all(p.confidence is not None and p.confidence.shape == p.mask.shape for p in pieces)
    drop = first_row - pieces[0].rows.start
    return {
        "mask": np.concatenate([p.mask for p in pieces])[drop:],
        "confidence": np.concatenate([p.confidence for p in pieces if p.confidence is not None])[drop:],
    }


@pytest.mark.parametrize("band", [8, 64, 616])
def test_streaming_gives_the_confidence_of_one_pass(band: int) -> None:
    predictor, image = espnet(), random_image((609, 37), seed=3)
    made = joined(Streaming(predictor, (609, 37), band=band, confidence=Confidence(1.5)), image)
    by_formula = expected(scores_of(predictor, image), temperature=1.5)
    assert len(np.unique(by_formula)) > 50  # the comparison means something
    # Sums of other orders move a float by its last digit, and a byte where it is a tie.
    assert np.abs(made["confidence"].astype(int) - by_formula).max() <= 1
    assert (made["confidence"] == by_formula).mean() > 0.999
    with Watched(image) as source:
        plain = list(pieces_of(Streaming(predictor, (609, 37), band=band), source))
    assert all(p.confidence is None for p in plain)
    np.testing.assert_array_equal(made["mask"], np.concatenate([p.mask for p in plain]))


def test_streaming_from_any_row_and_of_some_rows_gives_the_same_bytes() -> None:
    predictor, image = espnet(), random_image((1600, 16), seed=4)
    executor = Streaming(predictor, (1600, 16), band=32, confidence=LOGITS)
    whole = joined(executor, image)["confidence"]
    for row in (1, 700, 1599):
        np.testing.assert_array_equal(joined(executor, image, first_row=row)["confidence"], whole[row:])
    spot = slice(1500, 1520)
    part = joined(executor, image, wanted=near(spot))["confidence"]
    np.testing.assert_array_equal(part[spot], whole[spot])
    assert not part[:480].any()  # no network has seen these rows


def test_streaming_and_windows_agree_where_neither_sees_the_border() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 3, padding=1))
    predictor, image = predictor_of(network), random_image((75, 61), seed=6)
    plan = WindowPlan(shape=(75, 61), core=(16, 24), halo=(8, 8))
    sure = Confidence(0.2)
    first = joined(Streaming(predictor, (75, 61), band=8, confidence=sure), image)["confidence"]
    second = joined(Windowed(predictor, plan, confidence=sure), image)["confidence"]
    assert len(np.unique(first)) > 100
    inside = (slice(2, -2), slice(2, -2))
    assert np.abs(first.astype(int) - second)[inside].max() <= 1
    assert (first == second)[inside].mean() > 0.999


class Bits(BitsPredictor):
    """Scores that are 0, or as high as the bits above the lowest two say."""

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        height = torch.from_numpy((images[:, :1] >> 2).astype(np.float32) / 16)
        return Outputs(super().__call__(images).scores * height)


@pytest.mark.parametrize(("taper", "batch"), [(0, 1), (0, 3), (2, 2)])
def test_windows_give_the_confidence_of_one_window_in_three_dimensions(taper: int, batch: int) -> None:
    shape = (23, 17, 11)
    image = random_image(shape)
    plan = WindowPlan(shape=shape, core=(8, 5, 6), halo=(3, 2, 4))
    executor = Windowed(Bits(), plan, taper=taper, batch=batch, confidence=Confidence(0.7))
    low = functional.one_hot(torch.from_numpy(image[0] & 3).long(), 4).movedim(-1, 0).numpy()
    by_formula = expected(low * (image[0] >> 2) / 16, temperature=0.7)
    found = joined(executor, image)["confidence"].astype(int)
    np.testing.assert_allclose(found, by_formula, atol=1 if taper else 0)  # weights sum to 1 but for rounding
    np.testing.assert_array_equal(joined(executor, image, first_row=9)["confidence"], found[9:])
    nothing = joined(executor, image, wanted=lambda region: region[0].start < 8 - taper)["confidence"]
    np.testing.assert_array_equal(nothing[: 8 - taper], found[: 8 - taper])
    if not taper:
        assert not nothing[8:].any()


def test_what_is_decided_is_handed_on_by_name() -> None:
    scores = torch.randn(3, 4, 5)
    made = Decision(scores=True, confidence=LOGITS).of(scores)
    blank = Decision(scores=True, confidence=LOGITS).blank((4, 5), num_classes=3)
    assert {name: (tuple(v.shape), v.numpy().dtype) for name, v in made.items()} == {
        name: (v.shape, v.dtype) for name, v in blank.items()
    }
    assert not any(v.any() for v in blank.values())
    assert list(Decision().of(scores)) == list(Decision().blank((4, 5), num_classes=3)) == ["mask"]


# Level 0


def enlarged(scores: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Scores after linear interpolation, by torch."""
    made = functional.interpolate(
        torch.from_numpy(scores)[None], size=shape, mode=LINEAR[len(shape)], align_corners=False
    )
    return np.asarray(made[0])


def put_together(parts: list[OnLevel0]) -> tuple[Bytes, Bytes]:
    assert all(a.slab.rows.stop == b.slab.rows.start for a, b in itertools.pairwise(parts))
    assert all(part.confidence is not None for part in parts)
    confidence = [part.confidence for part in parts if part.confidence is not None]
    return np.concatenate([part.mask for part in parts]), np.concatenate(confidence)


@given(
    height=st.integers(3, 40),
    from_height=st.integers(2, 40),
    piece=st.integers(1, 9),
    slab=st.integers(1, 20),
    scores=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=80, deadline=None)
def test_the_confidence_comes_to_level_0_like_the_mask_for_any_slab_and_piece(
    height: int, from_height: int, piece: int, slab: int, scores: bool, seed: int
) -> None:
    shape, from_shape = (height, 10), (from_height, 7)
    values = np.random.default_rng(seed).normal(0, 2, (3, *from_shape)).astype(np.float32)
    mask = values.argmax(axis=0).astype(np.uint8)
    rule = Confidence(1.3)
    own = rule(torch.from_numpy(values)).numpy()

    def made(rows: int, height_of_slab: int) -> tuple[Bytes, Bytes]:
        given_rows = (
            Rows(p.rows, mask[p.rows], values[:, p.rows] if scores else None, None if scores else own[p.rows])
            for p in slabs(from_height, rows=rows)
        )
        wanted = slabs(height, rows=height_of_slab)
        return put_together(
            list(
                to_level0(
                    given_rows, wanted, shape=shape, from_shape=from_shape, scores=scores, confidence=rule
                )
            )
        )

    in_one = made(from_height, height)
    for found, whole in zip(made(piece, slab), in_one, strict=True):
        np.testing.assert_array_equal(found, whole)
    if not scores:
        rows = ((2 * np.arange(height) + 1) * from_height) // (2 * height)
        columns = ((2 * np.arange(10) + 1) * 7) // 20
        np.testing.assert_array_equal(in_one[1], own[rows][:, columns])
    elif height >= from_height:
        by_torch = expected(enlarged(values, shape), temperature=1.3)
        assert np.abs(in_one[1].astype(int) - by_torch).max() <= 1


def test_mixed_probabilities_are_probabilities() -> None:
    values = np.random.default_rng(0).dirichlet([1, 1, 1], (4, 5)).transpose(2, 0, 1).astype(np.float32)
    mask = values.argmax(axis=0).astype(np.uint8)
    mask[1, 2] = VOID
    (made,) = to_level0(
        iter([Rows(slice(0, 4), mask, values)]), slabs(8, rows=8), shape=(8, 10), from_shape=(4, 5),
        scores=True, confidence=Confidence(None),
    )  # fmt: skip
    assert made.confidence is not None
    by_torch = expected(enlarged(values, (8, 10)), temperature=None)
    assert np.abs(made.confidence.astype(int) - by_torch).max() <= 1
    (without,) = to_level0(
        iter([Rows(slice(0, 4), mask, values)]), slabs(8, rows=8), shape=(8, 10), from_shape=(4, 5),
        scores=True,
    )  # fmt: skip
    assert without.confidence is None
    np.testing.assert_array_equal(without.mask, made.mask)


def test_a_taper_fades_scores_and_not_confidences() -> None:
    """Two windows that are both sure, of different classes, make a border that is not."""

    class Sides:
        card = card_of(2, channels=1)
        calls = 0

        def __call__(self, images: NDArray[np.uint8]) -> Outputs:
            left = torch.full((1, *images.shape[2:]), 6.0 if self.calls % 2 == 0 else -6.0)
            self.calls += 1
            return Outputs(torch.cat([left, -left])[None])

    plan = WindowPlan(shape=(4, 16), core=(4, 8), halo=(2, 2))
    source = array_source(random_image((4, 16), channels=1))
    executor = Windowed(Sides(), plan, taper=2, confidence=LOGITS)
    with CachedSource(source, readers=1) as cached:
        (rows,) = executor.run(cached, first_row=0, wanted=everything)
    weights = np.clip((10 - (np.arange(16) + 0.5)) / 4, 0, 1)
    score = 6 * weights - 6 * (1 - weights)
    by_formula = expected(np.stack([score, -score]))
    assert by_formula[0] == by_formula[-1] == 255
    assert by_formula[8] < 250
    np.testing.assert_array_equal(rows.confidence, np.broadcast_to(by_formula, (4, 16)))
