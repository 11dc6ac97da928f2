"""A cohort as one CSV table: one row a case. Described in data_manifests/README.md."""

from __future__ import annotations

import csv
import io
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from wsiseg.bounded import LARGEST_TABLE, in_short, read_bounded, shown
from wsiseg.errors import ManifestError
from wsiseg.objects import resolved


class CaseRow(BaseModel):
    """One case. Paths are relative to the root folder and stay inside it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    case: str = Field(pattern=r"^[^/\\\x00-\x1f]+$", description="unique name; names the result")
    path: str = Field(min_length=1, description="image, relative to the root")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="of the image file")
    patient: str = Field(min_length=1, description="splits never divide a patient")
    split: str | None = Field(None, pattern=r"^(train|validation|test)$")
    annotation: str | None = Field(None, description="truth, relative to the root")
    mpp: float | None = Field(None, gt=0, description="µm per pixel where the file does not say it")
    diagnosis: str | None = Field(None, description="what is said of the whole image")
    licence: str = Field(min_length=1, description="SPDX identifier or a short name")

    @field_validator("case")
    @classmethod
    def _names_a_file(cls, value: str) -> str:
        if value in (".", ".."):
            raise ValueError("it must be a name, and this is a folder")
        return value

    @field_validator("sha256", "split", "annotation", "mpp", "diagnosis", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value


class Manifest(BaseModel):
    """The cases of a cohort and the folder that their paths are relative to."""

    model_config = ConfigDict(frozen=True)

    root: Path
    cases: tuple[CaseRow, ...]

    @cached_property
    def _resolved_root(self) -> Path:
        return self.root.resolve()

    def resolve(self, relative: str) -> Path:
        """Absolute path of a manifest entry. Raises ManifestError if it leaves the root."""
        root = self._resolved_root
        try:
            # Unlike `resolve` this takes a link to itself: that is one case that fails, not the manifest.
            path = resolved(root / relative)
        except ValueError as err:
            raise ManifestError(f"path {relative!r} cannot be a path: {err}") from None
        if not path.is_relative_to(root):
            raise ManifestError(f"path {relative!r} leaves the manifest's root folder {self.root}")
        return path


def read_manifest(path: Path, *, root: Path | None = None) -> Manifest:
    """The manifest in a CSV file; its paths are relative to `root` (default: the file's folder).

    Raises ManifestError with the line and column of the first mistake.
    """
    columns, rows = _read_table(path)
    known = list(CaseRow.model_fields)
    for number, column in enumerate(columns, start=1):
        if column not in known:
            raise ManifestError(
                f"{path}, line 1, column {number}: unknown column {shown(column)}; "
                f"known are {', '.join(known)}"
            )
        if column in columns[: number - 1]:
            raise ManifestError(f"{path}, line 1, column {number}: {column!r} occurs twice")
    cases = [_case(row, columns, place=f"{path}, line {line}") for line, row in rows]
    seen: set[str] = set()
    for (line, _), case in zip(rows, cases, strict=True):
        if case.case in seen:
            raise ManifestError(f"{path}, line {line}, column 'case': {case.case!r} occurs twice")
        seen.add(case.case)
    if not cases:
        raise ManifestError(f"{path} has no cases")
    manifest = Manifest(root=root or path.parent, cases=tuple(cases))
    for (line, _), case in zip(rows, cases, strict=True):
        for column in ("path", "annotation"):
            relative = getattr(case, column)
            try:
                if relative is not None:
                    manifest.resolve(relative)
            except ManifestError as err:
                raise ManifestError(f"{path}, line {line}, column {column!r}: {err}") from None
    return manifest


def _read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names, and each row with the number of its line. Raises ManifestError."""
    try:
        text = read_bounded(path, most=LARGEST_TABLE).decode("utf-8-sig")
    except OSError as err:
        raise ManifestError(f"cannot read the manifest {path}: {err.strerror}") from None
    except ValueError as err:
        raise ManifestError(f"{path} is not a CSV table in UTF-8: {in_short(err)}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = list(reader.fieldnames or [])
        return columns, [(reader.line_num, row) for row in reader]
    except csv.Error as err:
        line = reader.line_num + 1
        raise ManifestError(f"{path}, line {line}: is not a CSV table in UTF-8: {err}") from None


def _case(row: dict[str, str], columns: list[str], *, place: str) -> CaseRow:
    # csv puts surplus fields under None and gives None for missing ones.
    if None in row or None in row.values():
        raise ManifestError(f"{place}: the row must have {len(columns)} fields, like the header")
    try:
        return CaseRow.model_validate({k: v.strip() for k, v in row.items()})
    except ValidationError as err:
        first = err.errors()[0]
        column = str(first["loc"][0])
        value = row.get(column)
        raise ManifestError(f"{place}, column {column!r}: {first['msg']}, got {shown(value)}") from None
