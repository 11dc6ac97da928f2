"""A batch as a table: what became of every case, and how good the masks are over cases and patients."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from wsiseg.batch.discovery import Case
from wsiseg.batch.outcome import Failure, failure_path, read_outcome
from wsiseg.files import shown, to_json, write_whole, writing
from wsiseg.models.card import RESEARCH_USE
from wsiseg.report import Report

TABLE, SUMMARY = "summary.csv", "summary.json"
Floats = NDArray[np.float64]


class Row(BaseModel):
    """What became of a case."""

    model_config = ConfigDict(frozen=True)

    case: str
    status: Literal["finished", "failed", "not finished"]
    input: str
    patient: str | None = None
    error: str = ""
    kind: str = Field("", description="name of the error's class")
    model: str = ""
    mask_shape: tuple[int, ...] = ()
    void_share: float | None = Field(None, description="of pixels that could not be read, 0..1")
    tissue_share: float | None = Field(None, description="of the slide, 0..1")
    confidence: float | None = Field(None, description="mean, 0..1, where it was asked for")
    shares: dict[str, float] = Field({}, description="of the mask, by class, 0..1")
    colors: dict[str, str] = Field({}, description="of the classes, #rrggbb")
    iou: dict[str, float | None] = Field({}, description="by class; None where nobody has the class")
    mean_iou: float | None = None
    mean_dice: float | None = Field(None, description="of a volume, without the background")
    seconds: float | None = None
    report: str = Field("", description="relative to the summary, like `overlay`")
    overlay: str = ""
    confusion: tuple[tuple[int, ...], ...] = Field((), description="rows truth, columns mask", exclude=True)


class Figure(BaseModel):
    """A figure with the 95 % interval of a bootstrap over patients (where not known, over cases)."""

    model_config = ConfigDict(frozen=True)

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.value is None:
            return "absent"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Agreement(BaseModel):
    """How well the masks of one model agree with truth, by class and as a mean over classes."""

    model_config = ConfigDict(frozen=True)

    model: str
    cases: int = Field(description="with truth")
    patients: int
    pooled: dict[str, Figure] = Field(description="IoU of all pixels together")
    per_case: dict[str, Figure] = Field(description="mean over cases of each one's IoU")
    per_patient: dict[str, Figure] = Field(description="mean over patients of the IoU of all their pixels")


class Summary(BaseModel):
    """A batch. Stored as summary.json, its rows as summary.csv."""

    model_config = ConfigDict(frozen=True)

    notice: str = RESEARCH_USE
    finished: int
    failed: int
    not_finished: int
    other_files: int = Field(description="in the folders, that are no images")
    agreement: tuple[Agreement, ...]
    cases: tuple[Row, ...]


class Overview:
    """Keeps the rows of a batch and reads again only what has changed on disk."""

    def __init__(self, cases: Sequence[Case], out: Path, *, others: int = 0) -> None:
        self._cases, self._out, self._others = cases, out, others
        self._known: dict[str, tuple[tuple[Any, ...], Row]] = {}

    def summary(self) -> Summary:
        """The batch as it stands on disk."""
        rows = tuple(self._row(case) for case in self._cases)
        count = {status: sum(row.status == status for row in rows) for status in ("finished", "failed")}
        return Summary(
            **count,
            not_finished=len(rows) - sum(count.values()),
            other_files=self._others,
            agreement=tuple(agreement(rows)),
            cases=rows,
        )

    def _row(self, case: Case) -> Row:
        paths = (self._out / f"{case.name}.report.json", failure_path(self._out, case.name))
        seen = tuple(map(_stamp, paths))
        known = self._known.get(case.name)
        if known is None or known[0] != seen:
            found = read_outcome(self._out, case.name) if any(seen) else None
            self._known[case.name] = known = (seen, row_of(case, found, out=self._out))
        return known[1]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def row_of(case: Case, found: Report | Failure | None, *, out: Path) -> Row:
    """What became of a case."""
    own: dict[str, Any] = {"case": case.name, "input": shown(case.path), "patient": case.patient}
    if found is None:
        return Row(**own, status="not finished")
    if isinstance(found, Failure):
        return Row(**own, status="failed", error=found.error, kind=found.kind)
    scores = found.scores
    pixels = int(np.prod(found.mask_shape, dtype=np.int64))
    return Row(
        **own,
        status="finished",
        model=found.model["name"],
        mask_shape=found.mask_shape,
        void_share=found.void.unreadable_pixels / pixels,
        tissue_share=found.tissue_share,
        confidence=found.confidence.mean if found.confidence else None,
        shares={c.name: c.share for c in found.classes},
        colors={c.name: c.color for c in found.classes if c.color},
        iou={c.name: c.iou for c in scores.classes} if scores else {},
        mean_iou=scores.mean_iou if scores else None,
        mean_dice=found.volume_scores.mean_dice if found.volume_scores else None,
        seconds=round(sum(found.seconds.values()), 1),
        report=f"{case.name}.report.json",
        overlay=f"{case.name}.overlay.png",
        confusion=scores.confusion if scores else (),
    )


def agreement(rows: Sequence[Row]) -> Iterator[Agreement]:
    """Scores of every model over the cases that have truth."""
    for model in sorted({row.model for row in rows if row.confusion}):
        own = [row for row in rows if row.model == model and row.confusion]
        names = [*own[0].shares, "mean"]
        counts = np.array([row.confusion for row in own], np.float64)  # (N, K, K)
        patients = [row.patient or f"case {row.case}" for row in own]
        known, member = np.unique(patients, return_inverse=True)
        drawn = np.random.default_rng(0).multinomial(len(known), np.full(len(known), 1 / len(known)), ROUNDS)
        weights = np.concatenate([np.ones((1, len(known))), drawn])  # (1 + R, P): as they are, then the draws
        of_patients = np.zeros((len(known), *counts.shape[1:]))
        np.add.at(of_patients, member, counts)  # (P, K, K)

        def figures(values: Floats, *, names: list[str] = names) -> dict[str, Figure]:
            """Values (1 + R, K) of all and of every draw, and their mean over classes, by name."""
            every = np.concatenate([values, _mean(values, np.ones((1, values.shape[1])))], axis=1)
            return {name: _figure(every[:, k]) for k, name in enumerate(names)}

        yield Agreement(
            model=model,
            cases=len(own),
            patients=len(known),
            pooled=figures(iou(np.tensordot(weights, of_patients, 1))),
            per_case=figures(_mean(iou(counts).T, weights[:, member]).T),
            per_patient=figures(_mean(iou(of_patients).T, weights).T),
        )


ROUNDS = 1000
"""Of the bootstrap (Efron & Tibshirani 1993, chapter 13): the last digit of an interval is worth no more."""


def iou(counts: Floats) -> Floats:
    """IoU by class (..., K) from confusion counts (..., K, K); NaN where nobody has the class."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(axis=-1) + counts.sum(axis=-2) - hits
    return np.asarray(np.where(union > 0, hits / np.maximum(union, 1), np.nan))


def _mean(values: Floats, weights: Floats) -> Floats:
    """Weighted means (M, W) of values (M, N) by weights (W, N) over what is a number; else NaN."""
    counted = ~np.isnan(values)
    total, weight = np.where(counted, values, 0.0) @ weights.T, counted @ weights.T
    return np.asarray(np.where(weight > 0, total / np.maximum(weight, 1), np.nan))


def _figure(values: Floats) -> Figure:
    """A figure (1 + R,): of all, and the interval of those draws in which there is one."""
    value, draws = values[0], values[1:][~np.isnan(values[1:])]
    if np.isnan(value) or not draws.size:
        return Figure(value=None, low=None, high=None)
    low, high = np.percentile(draws, (2.5, 97.5))
    return Figure(value=round(float(value), 6), low=round(float(low), 6), high=round(float(high), 6))


def write_summary(summary: Summary, out: Path) -> None:
    """Write summary.json and summary.csv, each whole. Raises StoreError."""
    with writing(out):
        write_whole(out / SUMMARY, to_json(summary.model_dump(mode="json")))
        write_whole(out / TABLE, as_csv(summary.cases).encode())


def as_csv(rows: Sequence[Row]) -> str:
    """One line a case; classes of all models have a column each."""
    names = list(dict.fromkeys(name for row in rows for name in row.shares))
    scored = list(dict.fromkeys(name for row in rows for name in row.iou))
    plain = [name for name in Row.model_fields if name not in ("shares", "colors", "iou", "confusion")]
    stream = io.StringIO(newline="")
    table = csv.writer(stream)
    table.writerow([*plain, *(f"share {n}" for n in names), *(f"IoU {n}" for n in scored)])
    for row in rows:
        own = row.model_dump(mode="json", include=set(plain))
        own["mask_shape"] = " x ".join(map(str, row.mask_shape))
        cells = [own[name] for name in plain]
        cells += [row.shares.get(name) for name in names] + [row.iou.get(name) for name in scored]
        table.writerow([_safe(cell) for cell in cells])
    return stream.getvalue()


def _safe(cell: Any) -> Any:
    """A cell that no table program takes for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" and cell else cell
