"""The summary of a batch and its page: what stands there is what is on disk."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsiseg.batch import summary
from wsiseg.batch.discovery import Case
from wsiseg.batch.outcome import Failure, read_outcome, write_failure
from wsiseg.batch.page import as_page
from wsiseg.batch.summary import Overview, Row, agreement, as_csv, iou, write_summary


def row(case: str, patient: str | None, confusion: Any, **more: Any) -> Row:
    shares = {"glass": 0.5, "stroma": 0.5}
    return Row(
        case=case, status="finished", input=f"{case}.svs", patient=patient, model="m", shares=shares,
        confusion=confusion, **more,
    )  # fmt: skip


A, B, C = ((6, 2), (1, 11)), ((3, 0), (3, 4)), ((10, 0), (0, 0))


def test_agreement_is_that_of_all_pixels_of_cases_and_of_patients() -> None:
    (found,) = agreement([row("a", "p", A), row("b", "p", B), row("c", "q", C)])
    assert (found.model, found.cases, found.patients) == ("m", 3, 2)
    pooled = iou(np.sum([A, B, C], axis=0))
    assert found.pooled["glass"].value == pytest.approx(pooled[0], abs=1e-6)
    assert found.pooled["mean"].value == pytest.approx(pooled.mean(), abs=1e-6)
    # Nobody has stroma in c: it counts in no mean.
    assert found.per_case["stroma"].value == pytest.approx((11 / 14 + 4 / 7) / 2, abs=1e-6)
    assert found.per_case["glass"].value == pytest.approx((6 / 9 + 3 / 6 + 1) / 3, abs=1e-6)
    together = iou(np.sum([A, B], axis=0))
    assert found.per_patient["glass"].value == pytest.approx((together[0] + 1) / 2, abs=1e-6)
    assert found.per_patient["stroma"].value == pytest.approx(together[1], abs=1e-6)
    # Of two patients a draw has the one, the other or both; the interval spans what these give.
    glass = found.per_patient["glass"]
    assert glass.low == pytest.approx(together[0], abs=1e-6)
    assert glass.high == 1.0
    assert str(glass) == f"{glass.value:.3f} [{glass.low:.3f}, 1.000]"


def test_intervals_are_those_of_drawing_patients_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 50, (12, 2, 2))
    patients = [f"p{n % 5}" for n in range(12)]
    rows = [
        row(str(n), p, tuple(map(tuple, c))) for n, (p, c) in enumerate(zip(patients, counts, strict=True))
    ]
    monkeypatch.setattr(summary, "ROUNDS", 4000)
    (found,) = agreement(rows)
    names = sorted(set(patients))
    drawn = []
    for _ in range(4000):
        picked = [i for name in rng.choice(names, 5) for i, p in enumerate(patients) if p == name]
        drawn.append(iou(counts[picked].sum(axis=0).astype(float))[1])
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert found.pooled["stroma"].low == pytest.approx(low, abs=0.01)
    assert found.pooled["stroma"].high == pytest.approx(high, abs=0.01)


def test_cases_of_several_models_are_not_mixed_and_an_absent_class_is_said() -> None:
    one, other = agreement([row("a", None, C), row("b", None, A).model_copy(update={"model": "z"})])
    assert (one.model, other.model) == ("m", "z")
    assert str(one.pooled["stroma"]) == "absent"
    assert one.pooled["mean"].value == 1.0
    assert list(agreement([Row(case="a", status="failed", input="a", error="broken")])) == []


def test_the_table_has_a_line_a_case_and_no_formulas(tmp_path: Path) -> None:
    rows = [
        row("a", "=1+1", A, iou={"glass": 0.25, "stroma": None}, mask_shape=(3, 4)),
        Row(case="-b", status="failed", input="@b", error="=cmd()", kind="SourceError"),
    ]
    table = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [line["case"] for line in table] == ["a", "'-b"]
    assert (table[0]["patient"], table[0]["mask_shape"]) == ("'=1+1", "3 x 4")
    assert (table[0]["share stroma"], table[0]["IoU glass"], table[0]["IoU stroma"]) == ("0.5", "0.25", "")
    assert (table[1]["error"], table[1]["input"], table[1]["share stroma"]) == ("'=cmd()", "'@b", "")
    assert "confusion" not in table[0]


def test_only_what_changed_is_read_again_and_others_work_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [Case(name, Path(f"{name}.svs")) for name in ("a", "b")]
    overview = Overview(cases, tmp_path, others=3)
    reads = []

    def reading(out: Path, case: str) -> Any:
        reads.append(case)
        return read_outcome(out, case)

    monkeypatch.setattr(summary, "read_outcome", reading)
    first = overview.summary()
    assert (first.finished, first.failed, first.not_finished, first.other_files) == (0, 0, 2, 3)
    write_failure(tmp_path, Failure(case="b", input="b.svs", error="broken", kind="SourceError"))
    assert overview.summary().failed == 1
    assert overview.summary().failed == 1
    assert reads == ["b"]
    (tmp_path / "b.failure.json").write_text("{")  # damaged
    os.utime(tmp_path / "b.failure.json", (1, 1))
    assert overview.summary().not_finished == 2
    write_summary(overview.summary(), tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["cases"][1]["status"] == "not finished"


def test_names_and_reasons_are_no_markup_in_the_page(tmp_path: Path) -> None:
    bad = '<script>alert("x")</script>'
    cases = [Case(bad, Path(f"{bad}.svs"))]
    write_failure(tmp_path, Failure(case="a", input="a", error=bad, kind="SourceError"))
    found = Overview([*cases, Case("a", Path("a"))], tmp_path).summary()
    finished = row(f"x/{bad}'\" onerror=", "p", A, overlay="x/javascript:alert(1) é.png", report="r")
    page = as_page(found.model_copy(update={"cases": (*found.cases, finished)}), title=bad)
    assert page.count("<script>") == 1  # the page's own
    assert "&lt;script&gt;alert" in page
    assert 'src="x/javascript%3Aalert%281%29%20%C3%A9.png"' in page
    assert "http" not in page  # nothing is loaded from elsewhere


@pytest.mark.slow
def test_a_page_of_ten_thousand_cases_is_made_in_seconds_and_stays_small() -> None:
    import time

    rows = tuple(row(f"case {n}", f"p{n % 700}", A, overlay=f"{n}.png") for n in range(10_000))
    begin = time.process_time()
    (found,) = agreement(rows)
    page = as_page(
        summary.Summary(
            finished=10_000, failed=0, not_finished=0, other_files=0, agreement=(found,), cases=rows
        ),
        title="many",
    )
    assert time.process_time() - begin < 10
    assert found.cases == 10_000
    assert len(page) < 12e6
