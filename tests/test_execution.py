"""Which executor a case gets and why, and what a run with it reads, repeats and says."""

from __future__ import annotations

import itertools
import json
import math
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import wsiseg
from tests.conftest import card_of
from tests.test_cli import CROP, NAME, Ran, assert_one_sentence
from tests.test_pipeline import CROPS, NAMES, Interrupted, mask_of, stop_after, write_tiff
from wsiseg.config import SegmentConfig
from wsiseg.errors import ConfigMismatch, ModelError, UsageError
from wsiseg.execute.streaming import Streaming
from wsiseg.execute.windowed import Windowed
from wsiseg.execution import (
    MAX_BAND,
    MIN_BAND,
    choose_execution,
    make_executor,
    window_plan,
)
from wsiseg.geometry import Region
from wsiseg.models.card import ModelCard, NetworkSpec, sha256_of, write_card
from wsiseg.models.registry import NETWORKS, load_card, load_network
from wsiseg.predict import NetworkPredictor
from wsiseg.report import Report
from wsiseg.sources import tiff
from wsiseg.sources.base import Pixels
from wsiseg.sources.cached import CachedSource

CPU = torch.device("cpu")
SLIDE_SHAPE = (30000, 20000)
TALL, BAND, SLAB = (2800, 72), 64, 64
PLAIN: dict[str, Any] = {
    "threads": 1, "chunk": 32, "slab": SLAB, "image": "none", "tissue_filter": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _fixed_memory(_few_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test gets must not depend on the machine."""
    torch.set_num_threads(1)
    monkeypatch.setattr("wsiseg.execution.free_memory_bytes", lambda device: 16 * 10**9)


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return load_card("demo-breast8")


def choose(
    card: ModelCard,
    shape: tuple[int, ...] = SLIDE_SHAPE,
    *,
    before: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    return choose_execution(card, SegmentConfig(**options), shape, device=CPU, before=before or {})


class Pooled(nn.Module):
    """Scores that depend on the mean of the whole image."""

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, classes, 1)
        self.context = nn.AdaptiveAvgPool2d(1)
        self.mix = nn.Conv2d(3, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.score(image) + self.mix(self.context(image))
        return scores


@pytest.fixture
def pooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The card of a network that cannot be streamed."""
    monkeypatch.setitem(NETWORKS, "pooled", Pooled)
    torch.manual_seed(0)
    save_file(Pooled(classes=4).state_dict(), tmp_path / "pooled.safetensors")
    card = card_of(4).model_copy(
        update={
            "name": "pooled",
            "network": NetworkSpec(name="pooled", arguments={"classes": 4}),
            "weights": "pooled.safetensors",
            "sha256": sha256_of(tmp_path / "pooled.safetensors"),
            "background": None,
        }
    )
    write_card(card, tmp_path / "pooled.json")
    return tmp_path / "pooled.json"


# Which executor


def test_the_shipped_model_is_streamed_unless_told_otherwise(card: ModelCard) -> None:
    chosen = choose(card)
    assert chosen["executor"] == "streaming"
    assert chosen.keys() == {"executor", "band"}
    assert choose(card, exact=True) == choose(card, executor="streaming") == chosen
    assert choose(card, executor="windowed") == {
        "executor": "windowed", "core": [1024, 1024], "halo": [32, 32], "taper": 0, "batch": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"), [("core", 512), ("halo", 64), ("halo", 0), ("taper", 8), ("batch", 3)]
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


# How high a band is


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
        (card, {}, 32), (card, {"halo": 0}, 0), (card, {"exact": True}, 784), (unmeasured, {}, 784),
        (card, {"exact": True, "halo": 800}, 800), (unmeasured, {"halo": 16}, 16),
    ]  # fmt: skip
    for given, options, halo in table:
        plan = window_plan(given, SegmentConfig(**options), (3000, 900))
        assert plan.halo == (halo, halo)
        assert plan.core == (1024, 904)
    with pytest.raises(UsageError, match="--exact needs a halo of 784 pixels, 16 was asked for"):
        window_plan(card, SegmentConfig(exact=True, halo=16), (3000, 900))


def test_the_plan_decides_what_is_made(card: ModelCard) -> None:
    predictor = NetworkPredictor(card, load_network("demo-breast8"), device=CPU)
    config = SegmentConfig(taper=8)
    streaming = make_executor({"executor": "streaming", "band": 16}, predictor, config, (40, 24))
    assert isinstance(streaming, Streaming)
    windowed = make_executor(choose(card, (40, 24), taper=8), predictor, config, (40, 24))
    assert isinstance(windowed, Windowed)


# Through the program


def tall_slide(folder: Path) -> Path:
    """A narrow slide that is higher than a window: tissue above and below, glass between."""
    scene = np.full((*TALL, 3), 243, np.uint8)
    for number, top in enumerate((0, 190, 380, 2400, 2610)):
        crop = np.asarray(Image.open(CROPS / "images" / f"{NAMES[number % 3]}.png"))
        scene[top : top + 190] = crop[100:290, 100:172]
    return write_tiff(folder / "tall.tif", scene)


def memory_for_band(shape: tuple[int, int], *, band: int) -> int:
    """The least memory, MB, with which the shipped model streams an image in bands that high."""
    card = load_card("demo-breast8")
    return next(mb for mb in range(600, 900) if choose(card, shape, memory=mb).get("band") == band)


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tall_slide(tmp_path_factory.mktemp("tall"))


@pytest.fixture(scope="module")
def memory() -> int:
    return memory_for_band(TALL, band=BAND)


def labels(report: Report) -> dict[str, bytes]:
    """Contents of the files of the mask."""
    folder = report.store / "labels"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Reads:
    """Rows that the executor takes, run by run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, height: int) -> None:
        self.runs: list[list[tuple[int, int]]] = []
        original = CachedSource.read

        def read(cached: CachedSource, region: Region) -> Pixels:
            self.runs[-1].append((region[0].start, min(region[0].stop, height)))
            return original(cached, region)

        monkeypatch.setattr(CachedSource, "read", read)

    def begin(self) -> None:
        self.runs.append([])

    @property
    def twice(self) -> list[int]:
        """Rows that each run but the first reads again."""
        return [before[-1][1] - after[0][0] for before, after in itertools.pairwise(self.runs)]


@pytest.fixture(scope="module")
def whole(tall: Path, memory: int, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The tall slide in bands of 64 rows."""
    return wsiseg.segment(tall, tmp_path_factory.mktemp("whole"), memory=memory, **PLAIN)


def test_streaming_is_recorded_and_repeats_nothing(whole: Report) -> None:
    assert (whole.execution["executor"], whole.execution["band"]) == ("streaming", 64)
    assert whole.execution["model_grid"] == list(TALL)
    assert "core" not in whole.execution
    assert whole.work.model_dump() == {
        "computed_pixels": math.prod(TALL), "repeated_pixels": 0, "repeated_share": 0.0,
    }  # fmt: skip
    assert not any("windows" in remark for remark in whole.remarks)
    assert json.loads(whole.report.read_text())["work"]["repeated_share"] == 0.0


def test_an_interrupted_run_ends_with_the_same_bytes_and_reads_few_rows_again(
    whole: Report,
    tall: Path,
    card: ModelCard,
    memory: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = Reads(monkeypatch, height=TALL[0])
    for count in (1, 0, 16, 3):  # slabs of each run; later runs may have any memory
        reads.begin()
        with pytest.raises(Interrupted):
            wsiseg.segment(tall, tmp_path, memory=memory, progress=stop_after(count), **PLAIN)
        memory = 16_000
    reads.begin()
    report = wsiseg.segment(tall, tmp_path, memory=601, **PLAIN)
    assert report.execution == whole.execution
    assert labels(report) == labels(whole)
    assert card.windows.receptive_field is not None
    field = sum(card.windows.receptive_field) + 1
    assert max(reads.twice) <= field + SLAB + 2 * BAND
    assert min(reads.twice) > 0
    work = report.work
    assert work.computed_pixels - work.repeated_pixels == math.prod(TALL)
    assert 0 < work.repeated_share == work.repeated_pixels / (math.prod(TALL))


def test_a_begun_store_is_not_continued_with_windows(tall: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        wsiseg.segment(tall, tmp_path, progress=stop_after(1), **PLAIN)
    with pytest.raises(ConfigMismatch, match="taper was None and is now 8"):
        wsiseg.segment(tall, tmp_path, taper=8, **PLAIN)
    with pytest.raises(ConfigMismatch, match="was begun with other settings"):
        wsiseg.segment(tall, tmp_path, executor="windowed", **PLAIN)


@pytest.mark.parametrize("image", [pytest.param("none", marks=pytest.mark.slow), "full"])
def test_glass_between_tissue_is_left_out_and_each_tile_is_decoded_once(
    whole: Report,
    tall: Path,
    memory: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    image: str,
) -> None:
    seen: NDArray[np.int64] = np.zeros(TALL, np.int64)
    original = tiff.TiffSource.read

    def counted(source: tiff.TiffSource, region: Region) -> Pixels:
        if threading.current_thread().name.startswith("wsiseg-read"):  # not for tissue mask and picture
            seen[region] += 1
        return original(source, region)

    monkeypatch.setattr(tiff.TiffSource, "read", counted)
    options = PLAIN | {"tissue_filter": True, "image": image, "tissue_margin_um": 8.0}
    report = wsiseg.segment(tall, tmp_path, memory=memory, **options)
    mask = mask_of(report)
    np.testing.assert_array_equal(mask[:560], mask_of(whole)[:560])
    np.testing.assert_array_equal(mask[2420:], mask_of(whole)[2420:])
    assert not mask[620:2350].any()
    assert report.work.computed_pixels < math.prod(TALL)
    assert report.work.repeated_pixels == 0
    assert seen.max() == 1
    assert seen.all() or image == "none"


def test_what_auto_did_instead_is_a_remark(pooled: Path, tmp_path: Path) -> None:
    report = wsiseg.segment(CROP, tmp_path / "a", pooled, mpp=0.5, image="none", threads=1)
    reason = "model pooled cannot be streamed: layer 'context' (AdaptiveAvgPool2d)"
    assert any(r.startswith(f"windows were used instead of one exact pass: {reason}") for r in report.remarks)
    assert report.execution["executor"] == "windowed"
    asked = wsiseg.segment(
        CROP, tmp_path / "b", pooled, mpp=0.5, image="none", threads=1, executor="windowed"
    )
    assert not any("one exact pass" in remark for remark in asked.remarks)
    np.testing.assert_array_equal(mask_of(report), mask_of(asked))


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "one-thread.toml"
    path.write_text('threads = 1\nimage = "none"\n')
    return path


def test_the_command_streams_and_counts_what_windows_repeat(
    tmp_path: Path, settings: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = ("segment", CROP, "--mpp", "0.5", "--json", "--config")
    ran = Ran(capfd, *base, settings, "--out", tmp_path / "a", "--executor", "streaming")
    assert ran.status == 0, ran.err
    case = json.loads(ran.out)["cases"][0]
    assert (case["execution"]["executor"], case["execution"]["band"]) == ("streaming", 384)
    assert case["work"]["repeated_share"] == 0
    small = tmp_path / "small.toml"
    small.write_text(f"{settings.read_text()}core = 128\n")
    ran = Ran(capfd, *base, small, "--out", tmp_path / "b", "--executor", "windowed")
    assert ran.status == 0, ran.err
    case = json.loads(ran.out)["cases"][0]
    assert (case["execution"]["executor"], case["execution"]["core"]) == ("windowed", [128, 128])
    # Three windows a side of 128 pixels; a halo of 32 reaches inwards from each inner border.
    assert case["work"] == {
        "computed_pixels": (384 + 4 * 32) ** 2,
        "repeated_pixels": (384 + 4 * 32) ** 2 - 384**2,
        "repeated_share": ((384 + 4 * 32) ** 2 - 384**2) / 384**2,
    }


def test_streaming_that_cannot_be_is_one_sentence_with_status_2(
    tall: Path, pooled: Path, tmp_path: Path, settings: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = ("--out", tmp_path / "out", "--mpp", "0.5", "--config", settings, "--executor", "streaming")
    ran = Ran(capfd, "segment", CROP, *base, "--taper", "8")
    assert_one_sentence(ran, 2, "taper 8 belongs to windows; use --executor windowed")
    ran = Ran(capfd, "segment", CROP, *base, "--model", pooled)
    assert_one_sentence(ran, 2, "model pooled cannot be streamed", "'context' (AdaptiveAvgPool2d)")
    ran = Ran(capfd, "segment", tall, *base, "--memory", "300")
    assert_one_sentence(ran, 2, "rows of 72 pixels need", "MB of memory, and 300 MB are allowed")
    assert not list((tmp_path / "out").glob("*.ome.zarr"))
    assert not (tmp_path / "out" / f"{NAME}.report.json").exists()
