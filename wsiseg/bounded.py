"""Texts that others wrote, read within bounds: what they hold is checked before memory is given to it.

Parsers end in many ways: JSON nested a million deep in a RecursionError, a number of a million digits in
a bare ValueError, YAML's aliases in more memory than there is. Here each is a ValueError of one sentence.
"""

from __future__ import annotations

import gc
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

LARGEST_SETTINGS = 1 << 18
"""Bytes of a settings or run file: they are written by hand, and PyYAML reads about 100 KB a second."""
LARGEST_RECORD = 1 << 26
"""Bytes of a card, a ledger entry or a report: with a place for each of a million slabs they have less."""
LARGEST_TABLE = 1 << 26
"""Bytes of a manifest: rows of half a million cases."""
LARGEST_MARKS = 1 << 29
"""Bytes of a GeoJSON: 100,000 outlines of 250 corners have 500 MB."""
MOST_VALUES = 60_000_000
"""Values and lists in a JSON text: each takes up to 64 bytes of memory, however short it is written."""
SHOWN = 80
"""Letters of a value that an error shows."""


def read_bounded(path: Path, *, most: int) -> bytes:
    """Content of a file of at most `most` bytes. Raises ValueError for a larger one, OSError."""
    with path.open("rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most / 1e6:.1f} MB, which no such file needs")
    return data


def parse_json(text: bytes | str, *, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The value in a JSON text; `hook` gives what stands for an object, from the inmost ones on.

    Raises ValueError, also for NaN, Infinity and what is nested too deep.
    """
    count = _count(text)
    if count > MOST_VALUES:
        raise ValueError(f"it holds about {count} values; at most {MOST_VALUES} are read")
    collecting = gc.isenabled()
    # What is made here has no cycles; looking for them again and again takes most of the time.
    gc.disable()
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        return json.loads(text, parse_constant=_no_number, parse_int=_whole, object_hook=hook)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    finally:
        if collecting:
            gc.enable()


def _count(text: bytes | str) -> int:
    if isinstance(text, str):
        return sum(text.count(sign) for sign in ",[{")
    return sum(text.count(sign) for sign in (b",", b"[", b"{"))


def parse_settings(text: str, *, toml: bool) -> Any:
    """The value in a TOML or YAML text. Raises ValueError."""
    try:
        # Of its own classes with SafeLoader's safety: nothing in a file is run.
        return tomllib.loads(text) if toml else yaml.load(text, Loader=_Plain)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError) as err:
        # The others are what PyYAML ends in where a tag and its value do not belong together.
        raise ValueError(in_short(err) if isinstance(err, yaml.YAMLError) else repr(err)) from None


def in_short(value: object, *, most: int = 300) -> str:
    """A value as text in one line of at most `most` letters."""
    text = " ".join(str(value)[: 20 * most].split())
    return text if len(text) <= most else text[: most - 3] + "..."


def shown(value: object) -> str:
    """A value of a file as errors show it."""
    return in_short(repr(value), most=SHOWN)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _whole(digits: str) -> int:
    # Python itself stops at 4300 digits, and says nothing that a user could use.
    if len(digits) > 400:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


class _Plain(yaml.SafeLoader):
    """YAML without aliases: with a few of them a short text stands for more values than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Raises ComposerError where an alias stands for a value."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not followed; write the value out")
        return super().compose_node(parent, index)
