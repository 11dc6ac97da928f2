"""What is done is not done again, and never mixed with what other settings would give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import wsiseg
from tests.cases import SMALL, Interrupted, mask_of, stop_after
from wsiseg.errors import (
    ConfigMismatch,
)
from wsiseg.report import Report


def test_a_second_run_computes_nothing(
    slide: Path, segmented: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a finished case must not be computed again")

    monkeypatch.setattr("wsiseg.pipeline.load_predictor", refuse)
    monkeypatch.setattr("wsiseg.pipeline.detect_tissue", refuse)
    before = segmented.report.read_bytes()
    again = wsiseg.segment(slide, segmented.report.parent, **SMALL)
    assert again.status == "already complete"
    assert segmented.report.read_bytes() == before


@pytest.mark.parametrize("taper", [0, pytest.param(8, marks=pytest.mark.slow)])
def test_interrupted_and_resumed_is_byte_identical_and_repeats_only_the_interrupted_slab(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taper: int
) -> None:
    options = SMALL | {"taper": taper, "image": "none"}
    whole = wsiseg.segment(slide, tmp_path / "whole", **options)
    windows: list[int] = []
    from wsiseg.predict import NetworkPredictor, Outputs

    original = NetworkPredictor.__call__

    def counted(self: NetworkPredictor, images: NDArray[np.uint8]) -> Outputs:
        windows.append(1)
        return original(self, images)

    monkeypatch.setattr(NetworkPredictor, "__call__", counted)
    wsiseg.segment(slide, tmp_path / "count", **options)
    uninterrupted = len(windows)
    windows.clear()
    for count in (0, 1, 2, 1):
        with pytest.raises(Interrupted):
            wsiseg.segment(slide, tmp_path / "parts", progress=stop_after(count), **options)
    parts = wsiseg.segment(slide, tmp_path / "parts", **options)
    np.testing.assert_array_equal(mask_of(parts), mask_of(whole))
    files = {
        p.relative_to(whole.store): p.read_bytes() for p in (whole.store / "labels").rglob("*") if p.is_file()
    }
    assert files == {
        p.relative_to(parts.store): p.read_bytes() for p in (parts.store / "labels").rglob("*") if p.is_file()
    }
    # With a taper a slab is made of three rows of windows: its own and those that fade into it.
    per_slab = -(-520 // 64) * (3 if taper else 1)
    assert len(windows) <= uninterrupted + 4 * per_slab


def test_a_store_begun_with_another_model_or_settings_is_refused(
    slide: Path, segmented: Report, tmp_path: Path
) -> None:
    out = segmented.report.parent
    with pytest.raises(ConfigMismatch, match="model was 'breast-tissue3' and is now 'demo-breast8'"):
        wsiseg.segment(slide, out, "demo-breast8", **SMALL)
    with pytest.raises(ConfigMismatch, match="halo was"):
        wsiseg.segment(slide, out, **(SMALL | {"halo": 32}))
    with pytest.raises(Interrupted):
        wsiseg.segment(slide, tmp_path, progress=stop_after(1), **SMALL)
    with pytest.raises(ConfigMismatch, match="model was"):
        wsiseg.segment(slide, tmp_path, "demo-breast8-without-2204", **SMALL)
    with pytest.raises(ConfigMismatch, match="threads was"):
        wsiseg.segment(slide, tmp_path, threads=1 if _threads() > 1 else 2, **SMALL)


def _threads() -> int:
    import os

    return len(os.sched_getaffinity(0))


def test_case_statistics_are_kept_in_the_ledger_and_used_again(slide: Path, tmp_path: Path) -> None:
    from wsiseg.models.zoo import ZOO

    card = json.loads((ZOO / "demo-breast8.json").read_text())
    card["preprocessing"]["statistics"] = "case"
    (tmp_path / "case.json").write_text(json.dumps(card))
    (tmp_path / card["weights"]).write_bytes((ZOO / card["weights"]).read_bytes())
    whole = wsiseg.segment(slide, tmp_path / "a", tmp_path / "case.json", **SMALL)
    with pytest.raises(Interrupted):
        wsiseg.segment(slide, tmp_path / "b", tmp_path / "case.json", progress=stop_after(2), **SMALL)
    stats = json.loads((tmp_path / "b" / "scene.ome.zarr" / "ledger" / "stats.json").read_text())
    assert 100 < stats["mean"][0] < 245
    parts = wsiseg.segment(slide, tmp_path / "b", tmp_path / "case.json", **SMALL)
    np.testing.assert_array_equal(mask_of(parts), mask_of(whole))


def test_overwriting_with_a_model_that_cannot_be_used_leaves_the_result(slide: Path, tmp_path: Path) -> None:
    from wsiseg.errors import ModelError
    from wsiseg.models.zoo import ZOO

    report = wsiseg.segment(slide, tmp_path, **SMALL)
    card = json.loads((ZOO / "demo-breast8.json").read_text()) | {"sha256": "0" * 64}
    (tmp_path / "bad.json").write_text(json.dumps(card))
    (tmp_path / card["weights"]).write_bytes((ZOO / card["weights"]).read_bytes())
    with pytest.raises(ModelError, match="sha256"):
        wsiseg.segment(slide, tmp_path, tmp_path / "bad.json", overwrite=True, **SMALL)
    assert wsiseg.open_store(report.store).verify() == []
    with pytest.raises(Interrupted):
        wsiseg.segment(slide, tmp_path, overwrite=True, progress=stop_after(1), **SMALL)
    assert not report.report.exists()
    assert not report.overlay.exists()


def test_a_damaged_report_is_written_again(slide: Path, tmp_path: Path) -> None:
    report = wsiseg.segment(slide, tmp_path, **SMALL)
    report.report.write_text("{")
    again = wsiseg.segment(slide, tmp_path, **SMALL)
    assert again.status == "already complete"
    assert json.loads(report.report.read_text())["classes"] == report.model_dump(mode="json")["classes"]
