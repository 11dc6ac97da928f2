"""What the commands share."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from wsiseg.bounded import parse_json, shown
from wsiseg.errors import ManifestError, ModelError, UsageError

COMMAND_ERRORS = (UsageError, ModelError, ManifestError)
"""What makes the command itself wrong, whatever the inputs hold."""

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


class Overlap(StrEnum):
    """Which of two marks counts."""

    later = "later"
    smaller = "smaller"


class Unannotated(StrEnum):
    """What lies in no mark."""

    ignore = "ignore"
    background = "background"


class Units(StrEnum):
    """Of the corners of marks."""

    pixels = "pixels"
    micrometres = "micrometres"


class FrameName(StrEnum):
    """Where (0, 0) of polygons lies."""

    level0 = "level0"
    bounds = "bounds"


ClassNames = Annotated[
    str | None, typer.Option(metavar="TABLE", help="CSV or YAML: what names in annotations mean.")
]
AnnotationOverlap = Annotated[
    Overlap | None, typer.Option(help="Where drawn marks overlap: the later or the smaller one counts.")
]
UnannotatedArea = Annotated[
    Unannotated | None, typer.Option(help="What lies in no drawn mark: ignored, or background.")
]
AnnotationUnits = Annotated[
    Units | None, typer.Option(help="Of drawn marks: level-0 pixels, or micrometres.")
]
AnnotationFrame = Annotated[
    FrameName | None, typer.Option(help="Of drawn marks: (0, 0) is level 0's, or that of the slide's bounds.")
]


def given(**options: str | None) -> dict[str, Any]:
    """Options that were given, as plain values."""
    return {
        name: value.value if isinstance(value, StrEnum) else value
        for name, value in options.items()
        if value is not None
    }


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
