"""Which executor a case gets and why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import card_of
from tests.executors import (
    CPU,
    choose,
)
from wsiseg.config import SegmentConfig
from wsiseg.errors import ModelError, UsageError
from wsiseg.execute.streaming import Streaming
from wsiseg.execute.windowed import Windowed
from wsiseg.execution import (
    MAX_BAND,
    MIN_BAND,
    make_executor,
    window_plan,
)
from wsiseg.models.card import ModelCard, NetworkSpec
from wsiseg.models.registry import load_network
from wsiseg.models.zoo import load_card
from wsiseg.predict import NetworkPredictor

pytestmark = pytest.mark.usefixtures("fixed_memory")


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return load_card("demo-breast8")


def test_the_shipped_model_is_streamed_unless_told_otherwise(card: ModelCard) -> None:
    chosen = choose(card)
    assert chosen["executor"] == "streaming"
    assert chosen.keys() == {"executor", "band"}
    assert choose(card, exact=True) == choose(card, executor="streaming") == chosen
    assert choose(card, executor="windowed") == {
        "executor": "windowed", "core": [1000, 1000], "halo": [16, 16], "window": [1032, 1032],
        "taper": 0, "batch": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"), [("core", 400), ("halo", 64), ("halo", 0), ("taper", 8), ("batch", 3)]
)
def test_a_setting_of_windows_means_windows_and_says_so(card: ModelCard, option: str, value: int) -> None:
    asked: dict[str, Any] = {option: value}
    chosen = choose(card, **asked)
    assert chosen["executor"] == "windowed"
    assert chosen[option] in (value, [value, value])
    assert re.match(rf"{option} belongs? to windows", chosen["reason"])
    assert "reason" not in choose(card, executor="windowed", **asked)
    with pytest.raises(UsageError, match=rf"^{option} {value} belongs to windows; use --executor windowed$"):
        choose(card, executor="streaming", **asked)


def test_several_settings_of_windows_are_all_named(card: ModelCard) -> None:
    assert choose(card, taper=8, core=512)["reason"] == "taper and core belong to windows"


def test_memory_that_windows_do_not_heed_is_said(card: ModelCard, caplog: pytest.LogCaptureFixture) -> None:
    chosen = choose(card, executor="windowed", memory=700)
    assert chosen == choose(card, executor="windowed")
    assert [r.message for r in caplog.records] == ["--memory 700 is ignored: it belongs to streaming"]


def test_a_network_that_cannot_be_streamed_gets_windows_and_its_layer_is_named(pooled: Path) -> None:
    card = load_card(pooled)
    chosen = choose(card)
    assert chosen["executor"] == "windowed"
    reason = "model pooled cannot be streamed: layer 'context' (AdaptiveAvgPool2d) sees more than a fixed"
    assert chosen["reason"].startswith(reason)
    with pytest.raises(ModelError, match=rf"^{re.escape(reason)}.*; use --executor windowed$"):
        choose(card, executor="streaming")
    assert "reason" not in choose(card, executor="windowed")


@pytest.mark.parametrize(
    ("network", "windows", "made"),
    [
        ({"classes": 8, "variant": "C"}, {}, (8, 3750, 2500)),
        ({"classes": 9}, {}, (9, 30000, 20000)),
        ({"classes": 8}, {"output_scale": 8}, (8, 240000, 160000)),
    ],
)
def test_a_network_whose_scores_do_not_fit_the_card_is_not_streamed(
    card: ModelCard, network: dict[str, Any], windows: dict[str, Any], made: tuple[int, ...]
) -> None:
    """Scores of another size, or of another number of classes."""
    changed = card.model_copy(
        update={
            "network": NetworkSpec(name="espnet", arguments=network),
            "windows": card.windows.model_copy(update=windows),
        }
    )
    message = f"its output for an image of (30000, 20000) pixels is {made}, not a score per class and pixel"
    with pytest.raises(ModelError, match=re.escape(message)):
        choose(changed, executor="streaming")
    assert message in choose(changed)["reason"]


def test_what_a_begun_store_recorded_is_taken_over(card: ModelCard) -> None:
    before = {"executor": "streaming", "band": 40, "device": "cpu", "model_grid": [1, 2]}
    recorded = {"executor": "streaming", "band": 40}
    assert choose(card, before=before) == recorded
    assert choose(card, before=before, memory=1) == recorded
    assert choose(card, before=before, memory=100_000, executor="streaming") == recorded
    assert choose(card, before=before, executor="windowed")["executor"] == "windowed"
    windows = choose(card, taper=8)
    assert choose(card, before=windows, taper=8, memory=1) == windows
    fallen_back = choose(card, memory=601)
    assert fallen_back["executor"] == "windowed"
    assert choose(card, before=fallen_back) == fallen_back  # though there is memory now


def test_a_band_suits_the_width_within_limits(card: ModelCard) -> None:
    for width in (1100, 3000, 20000, 300_000):
        band = choose(card, (30000, width), memory=100_000)["band"]
        assert band % 8 == 0
        assert MIN_BAND <= band <= MAX_BAND
    wide, narrow = (choose(card, (30000, w), memory=100_000)["band"] for w in (20000, 1100))
    assert narrow > wide


def test_less_memory_means_a_lower_band_down_to_one_stride(card: ModelCard) -> None:
    with pytest.raises(UsageError) as refused:
        choose(card, executor="streaming", memory=700)
    found = re.search(
        r"rows of 20000 pixels need (\d+) MB of memory, and 700 MB are allowed", str(refused.value)
    )
    assert found
    assert str(refused.value).startswith("model demo-breast8 cannot be streamed: ")
    least = int(found[1])
    bands = [choose(card, memory=least + mb)["band"] for mb in (100_000, 300, 100, 50, 0)]
    assert bands == sorted(bands, reverse=True)
    assert len(set(bands)) >= 4
    assert all(band % 8 == 0 for band in bands)
    assert choose(card, executor="streaming", memory=least) == {"executor": "streaming", "band": 8}
    with pytest.raises(UsageError, match=f"need {least} MB .* {least - 2} MB are allowed"):
        choose(card, executor="streaming", memory=least - 2)
    assert choose(card, memory=least - 2)["executor"] == "windowed"
    assert f"need {least} MB of memory, and {least - 2} MB" in choose(card, memory=least - 2)["reason"]


def test_without_a_request_half_of_the_free_memory_may_be_taken(
    card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for free in (2300, 2500, 2900):
        monkeypatch.setattr("wsiseg.execution.free_memory_bytes", lambda device, mb=free: mb * 10**6)
        assert choose(card) == choose(card, memory=free // 2)
    monkeypatch.setattr("wsiseg.execution.free_memory_bytes", lambda device: 10**9)
    assert "and 500 MB are allowed" in choose(card)["reason"]


def test_a_small_image_is_one_piece(card: ModelCard) -> None:
    """No larger than a window that would be computed in one go anyway."""
    assert choose(card, (300, 520))["band"] == 304
    assert choose(card, (1024, 1019))["band"] == 1024
    assert choose(card, (1025, 300))["band"] < 1025
    assert choose(card, (20, 5000))["band"] == 24  # never higher than the image


def test_a_volume_gets_a_band_too(card: ModelCard) -> None:
    volume = card_of(8, axes="zyx", stride=8)
    spec = NetworkSpec(name="espnet", arguments={"classes": 8, "ndim": 3, "p": 1, "q": 1})
    volume = volume.model_copy(update={"network": spec})
    assert choose(volume, (200, 600, 500))["band"] == 200
    assert choose(volume, (2000, 300, 200), memory=30_000)["band"] in range(8, MAX_BAND + 1, 8)


def test_windows_have_the_halo_that_was_asked_for_measured_or_exact(card: ModelCard) -> None:
    unmeasured = card.model_copy(update={"windows": card.windows.model_copy(update={"halo": None})})
    table: list[tuple[ModelCard, dict[str, Any], int]] = [
        (card, {}, 16), (card, {"halo": 0}, 0), (card, {"exact": True}, 784), (unmeasured, {}, 784),
        (card, {"exact": True, "halo": 800}, 800), (unmeasured, {"halo": 32}, 32),
    ]  # fmt: skip
    for given, options, halo in table:
        plan = window_plan(given, SegmentConfig(**options), (3000, 900))
        assert plan.halo == (halo, halo)
        assert plan.core == (1000, 904)
    with pytest.raises(UsageError, match="--exact needs a halo of 784 pixels, 16 was asked for"):
        window_plan(card, SegmentConfig(exact=True, halo=16), (3000, 900))


def test_the_plan_decides_what_is_made(card: ModelCard) -> None:
    predictor = NetworkPredictor(card, load_network("demo-breast8"), device=CPU)
    config = SegmentConfig(taper=8)
    streaming = make_executor({"executor": "streaming", "band": 16}, predictor, config, (40, 24))
    assert isinstance(streaming, Streaming)
    windowed = make_executor(choose(card, (40, 24), taper=8), predictor, config, (40, 24))
    assert isinstance(windowed, Windowed)
