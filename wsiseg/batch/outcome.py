"""What came of a case: its report, or why there is none; one small file beside the result either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wsiseg.bounded import LARGEST_RECORD, read_bounded
from wsiseg.files import to_json, write_whole, writing
from wsiseg.report import Report

FAILURE = "failure.json"
Kind = Literal["failed", "held", "no room"]


class Failure(BaseModel):
    """Why a case has no result."""

    model_config = ConfigDict(frozen=True)

    case: str
    input: str
    error: str
    kind: str = Field(description="name of the error's class")
    attempts: int = 1
    tried: tuple[str, ...] = Field((), description="how the case was begun, in order, where it was")


def failure_path(out: Path, case: str) -> Path:
    """Where the failure of a case is written."""
    return out / f"{case}.{FAILURE}"


def write_failure(out: Path, failure: Failure) -> None:
    """Keep a failure beside where the result would be. Raises StoreError."""
    path = failure_path(out, failure.case)
    with writing(path):
        write_whole(path, to_json(failure.model_dump(mode="json")))


def forget_failure(out: Path, case: str) -> None:
    """Remove the failure of a case that has a result now. Raises StoreError."""
    path = failure_path(out, case)
    with writing(path):
        path.unlink(missing_ok=True)


def read_outcome(out: Path, case: str) -> Report | Failure | None:
    """The report of a finished case, its failure, or None where neither is there or whole."""
    for path, kind in ((out / f"{case}.report.json", Report), (failure_path(out, case), Failure)):
        try:
            return kind.model_validate_json(read_bounded(path, most=LARGEST_RECORD))
        except (OSError, ValueError):
            continue
    return None


def as_row(found: Report | Failure) -> dict[str, Any]:
    """An outcome as plain values."""
    return found.model_dump(mode="json")
