"""Progress of long work on stderr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from wsiseg import display
from wsiseg.metrics import Scores

T = TypeVar("T")


def show_progress(items: Iterable[T], *, total: int, what: str) -> Iterator[T]:
    """A progress bar on stderr."""
    what_for = TextColumn("{task.description}", markup=False)  # names of files may look like markup
    columns = (what_for, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(what, total=total)
        for item in items:
            yield item
            del item  # rows of a mask: not to be kept while the next are computed
            bars.advance(task)


class TrainingBars:
    """Steps, losses and scores of a training on stderr."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"), TimeRemainingColumn(),
        )  # fmt: skip
        self._bars = Progress(console=self._console)
        self._task = TaskID(0)

    def steps(self, items: Iterator[T], *, done: int, total: int, what: str) -> Iterator[T]:
        with Progress(*self._columns, console=self._console) as bars:
            self._bars, self._task = bars, bars.add_task(what, total=total, completed=done, loss="-")
            for item in items:
                yield item
                bars.advance(self._task)

    def loss(self, step: int, loss: float) -> None:
        self._bars.update(self._task, loss=f"{loss:.4f}")

    def scored(self, step: int, scores: Scores) -> None:
        self._console.print(f"step {step}: {display.class_scores(scores)}", highlight=False)
