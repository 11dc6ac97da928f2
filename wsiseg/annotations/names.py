"""What the names in annotations mean: the classes of a model, by their own names or by a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from wsiseg.annotations.marks import Mark
from wsiseg.bounded import LARGEST_SETTINGS, in_short, parse_settings, read_bounded, shown
from wsiseg.classes import VOID, MaskClass, index_of_name
from wsiseg.errors import AnnotationError, UsageError

IGNORE = "ignore"
"""As a class: nothing is said of the pixels of such marks, whatever lies below them."""
LEFT_OUT = -1
"""As a value: the mark is as if it was not drawn."""
COLUMNS = ["annotation", "class"]
MOST_NAMED = 12
"""Unknown names that an error lists."""

Table = Mapping[str, str]
"""Class by name, which is in small letters: that of the model, IGNORE, or nothing for LEFT_OUT."""


def read_table(path: Path) -> Table:
    """A table of names: CSV with the columns annotation and class, or a YAML mapping. Raises UsageError."""
    try:
        text = read_bounded(path, most=LARGEST_SETTINGS).decode("utf-8-sig")
        rows = _csv_rows(text) if path.suffix.lower() == ".csv" else _yaml_rows(text)
    except OSError as err:
        raise UsageError(f"cannot read the class names {path}: {err.strerror}") from None
    except (ValueError, csv.Error) as err:
        raise UsageError(f"{path} is no table of class names: {in_short(err)}") from None
    table: dict[str, str] = {}
    for name, meaning in rows:
        key = name.strip().casefold()
        if table.setdefault(key, meaning.strip()) != meaning.strip():
            raise UsageError(
                f"{path} says of {shown(name)} that it is {shown(table[key])} and {shown(meaning)}; leave one"
            )
    return table


def _csv_rows(text: str) -> list[tuple[str, str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    head = [cell.strip() for cell in next(reader, [])]
    if head != COLUMNS:
        raise ValueError(f"its columns are {shown(','.join(head))}; they must be {','.join(COLUMNS)}")
    rows = []
    for row in reader:
        if len(row) not in (0, 2):
            raise ValueError(f"line {reader.line_num} has {len(row)} cells; it must have {len(COLUMNS)}")
        rows += [(row[0], row[1])] if row else []
    return rows


def _yaml_rows(text: str) -> list[tuple[str, str]]:
    data = parse_settings(text, toml=False)
    if not isinstance(data, dict):
        raise ValueError(f"it must be CSV (.csv), or YAML with a class for each name, found {shown(data)}")
    rows = []
    for name, meaning in data.items():
        if not isinstance(name, str) or not isinstance(meaning, str | None):
            raise ValueError(f"it has {shown(name)}: {shown(meaning)}, which are no names; quote them")
        rows.append((name, meaning or ""))
    return rows


def values_of(
    marks: Sequence[Mark], *, classes: Sequence[MaskClass], table: Path | None, path: Path
) -> list[int]:
    """The mask value of each mark of the file `path`, LEFT_OUT for those that the table leaves out.

    Raises AnnotationError for names that are no classes, all at once, and UsageError for a table that names
    other classes.
    """
    known = {} if table is None else _indices(table, classes=classes)
    values: list[int] = []
    unknown: dict[str, list[Mark]] = {}
    for mark in marks:
        name = (mark.class_name or "").strip()
        value = known.get(name.casefold(), index_of_name(classes, name))
        if value is None:
            unknown.setdefault(name, []).append(mark)
        else:
            values.append(value)
    if unknown:
        raise AnnotationError(_not_known(unknown, total=len(marks), classes=classes, path=path))
    return values


def _indices(path: Path, *, classes: Sequence[MaskClass]) -> dict[str, int]:
    """Mask value by name. Raises UsageError."""
    table = read_table(path)
    special = {"": LEFT_OUT, IGNORE: VOID}
    found = {n: special.get(m.casefold(), index_of_name(classes, m)) for n, m in table.items()}
    wrong = sorted({shown(table[name]) for name, index in found.items() if index is None})
    if wrong:
        raise UsageError(
            f"{path} names the classes {_listed(wrong)}, which the model does not know; {_known(classes)}"
        )
    return {name: index for name, index in found.items() if index is not None}


def _not_known(
    unknown: Mapping[str, Sequence[Mark]], *, total: int, classes: Sequence[MaskClass], path: Path
) -> str:
    names = [
        f"{shown(name) if name else 'no class at all'} ({len(marks)}, first: {marks[0].place})"
        for name, marks in sorted(unknown.items(), key=lambda item: -len(item[1]))
    ]
    return (
        f"{path}: {sum(map(len, unknown.values()))} of {total} marks have what the model does not know: "
        f"{_listed(names)}; {_known(classes)}. Say what others mean in a table (--class-names): lines of "
        f"annotation,class under these two words, {IGNORE} as class for what counts nowhere"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _known(classes: Sequence[MaskClass]) -> str:
    return f"its classes are {', '.join(c.name for c in classes)}"
