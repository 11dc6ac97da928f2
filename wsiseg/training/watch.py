"""How a training shows how far it is: a parameter of the trainer, not a dependency."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

from wsiseg.metrics import Scores

T = TypeVar("T")


class Watch(Protocol):
    """Is told of every step and every score."""

    def steps(self, items: Iterator[T], *, done: int, total: int, what: str) -> Iterator[T]:
        """Wraps the steps that are left of one training; `done` were taken before."""
        ...

    def loss(self, step: int, loss: float) -> None:
        """The loss of a step."""
        ...

    def scored(self, step: int, scores: Scores) -> None:
        """Scores of the validation cases."""
        ...


class Silent:
    """Shows nothing."""

    def steps(self, items: Iterator[T], *, done: int, total: int, what: str) -> Iterator[T]:
        return items

    def loss(self, step: int, loss: float) -> None: ...

    def scored(self, step: int, scores: Scores) -> None: ...
