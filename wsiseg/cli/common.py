"""What the commands share."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from wsiseg.bounded import parse_json, shown
from wsiseg.errors import ManifestError, ModelError, UsageError

COMMAND_ERRORS = (UsageError, ModelError, ManifestError)
"""What makes the command itself wrong, whatever the inputs hold."""

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def print_json(data: Any) -> None:
    """One object on stdout."""
    typer.echo(json.dumps(data, indent=1, ensure_ascii=False))


def json_object(text: str | None) -> dict[str, Any]:
    """The object that an option holds. Raises UsageError."""
    try:
        found = parse_json((text or "{}").encode("utf-8", "surrogateescape"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"--arguments must be one JSON object, got {shown(text)}")
    return found
