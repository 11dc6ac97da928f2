"""How the core shows how far it is: a parameter that wraps an iterator, not a dependency."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Wraps an iterator to show how far it is."""

    def __call__(self, items: Iterator[T], *, total: int, what: str) -> Iterator[T]: ...


def no_progress(items: Iterator[T], *, total: int, what: str) -> Iterator[T]:
    """Shows nothing."""
    return items
