"""`wsiseg segment`: one case, some cases, or a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

import wsiseg
from wsiseg import display
from wsiseg.bars import show_progress
from wsiseg.cli.common import COMMAND_ERRORS, print_json
from wsiseg.errors import UsageError, WsisegError
from wsiseg.objects import to_path

if TYPE_CHECKING:
    from wsiseg.batch.summary import Summary


def is_batch(inputs: Sequence[str]) -> bool:
    """True where an input stands for cases that have to be found: a folder, a pattern, a manifest."""
    from wsiseg.batch.discovery import is_case

    return any(
        (path.is_dir() and not is_case(path))
        or (path.suffix.lower() == ".csv" and path.is_file())
        or (not path.exists() and any(sign in str(path) for sign in "*?["))
        for path in map(to_path, inputs)
    )


def segment_each(inputs: Sequence[str], out: str, model: str | None, *, json: bool, **options: Any) -> bool:
    """Segment inputs one after the other in this process; True where one failed."""
    from wsiseg.names import case_name

    names = [case_name(to_path(p)) for p in inputs]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise UsageError(f"two inputs have the case name {twice!r}; their results would be the same files")
    if options["annotations"] is not None and len(inputs) > 1:
        raise UsageError("--annotations belongs to one slide; segment slides with annotations one by one")
    cases, failures = [], []
    for path in inputs:
        try:
            report = wsiseg.segment(path, out, model, progress=show_progress, **options)
        except COMMAND_ERRORS:
            raise
        except WsisegError as err:
            failures.append({"input": str(path), "error": str(err), "kind": type(err).__name__})
            typer.echo(f"error: {err}", err=True)
        else:
            cases.append(report)
            if not json:
                display.print_report(report)
    if json:
        print_json({"cases": [c.model_dump(mode="json") for c in cases], "failures": failures})
    return bool(failures)


def segment_batch(inputs: Sequence[str], out: str, model: str | None, *, json: bool, **options: Any) -> bool:
    """Segment the cases of folders, patterns and manifests; True where one is not finished."""
    from wsiseg.batch.segment import segment_folder

    given = {name: value for name, value in options.items() if value is not None}
    summary = segment_folder(inputs, out, model=model, progress=show_progress, **given)
    if json:
        print_json(summary.model_dump(mode="json"))
    else:
        print_summary(summary, to_path(out))
    return summary.finished < len(summary.cases)


def print_summary(summary: Summary, out: Path) -> None:
    """What a batch came to: failures with their reasons, agreement with truth, and where to look."""
    console = display.new_console()
    for row in summary.cases:
        if row.status == "failed":
            console.print(f"failed: {row.case}: {row.error}")
    console.print(
        f"{summary.finished} of {len(summary.cases)} cases are finished, {summary.failed} failed, "
        f"{summary.not_finished} are not finished"
    )
    for found in summary.agreement:
        table = Table(f"IoU, {found.model}", "pooled", "mean of cases", "mean of patients")
        for name in found.pooled:
            figures = (part[name] for part in (found.pooled, found.per_case, found.per_patient))
            table.add_row(name, *map(str, figures))
        console.print(table)
        console.print(
            f"{found.cases} cases of {found.patients} patients with truth; in brackets the 95 % interval of "
            "a bootstrap over patients"
        )
    console.print(
        f"table   {out / 'summary.csv'}\nsummary {out / 'summary.json'}\npage    {out / 'index.html'}"
    )
