"""What a run with each executor reads, repeats and says."""

from __future__ import annotations

import itertools
import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import wsiseg
from tests.cases import Interrupted, mask_of, stop_after
from tests.executors import (
    BAND,
    PLAIN,
    SLAB,
    TALL,
    memory_for_band,
    tall_slide,
)
from tests.test_cli import CROP, NAME, Ran, assert_one_sentence
from wsiseg.errors import ConfigMismatch
from wsiseg.geometry import Region
from wsiseg.models.zoo import load_card
from wsiseg.report import Report
from wsiseg.sources import tiff
from wsiseg.sources.base import Pixels
from wsiseg.sources.cached import CachedSource

pytestmark = pytest.mark.usefixtures("fixed_memory", "eight_classes")


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
    reach = load_card("demo-breast8").windows.receptive_field
    assert reach is not None
    field = sum(reach) + 1
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
    # Three windows a side of 128 + 2 * 16 pixels, all inside of the crop.
    assert case["work"] == {
        "computed_pixels": (3 * 160) ** 2,
        "repeated_pixels": (3 * 160) ** 2 - 384**2,
        "repeated_share": ((3 * 160) ** 2 - 384**2) / 384**2,
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
