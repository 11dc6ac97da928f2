"""Figures of a benchmark: what is made of the values of its held-out cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.quality import intervals
from benchmarks.quality.intervals import Interval, Values
from benchmarks.quality.recipes import Benchmark
from benchmarks.quality.results import CaseValues, Result
from benchmarks.quality.scoring import CROPS, HELD_OUT

TRAINING_SITES = ("A7", "A8", "AC")
"""Hospitals, as in the names of the patients, from which the breast patches come that are trained on."""
OTHER_SITES = "other sites"
DICE, HD95, ERROR = 0, 1, 3
"""Columns of the values of a volume."""


@dataclass(frozen=True)
class Figure:
    """A figure by name: of which cases, and what is made of their values."""

    name: str
    of: intervals.Figure
    part: str = HELD_OUT
    percent: bool = False

    def has(self, case: CaseValues) -> bool:
        """True for a case that the figure is of."""
        if self.part == OTHER_SITES:
            return case.part == HELD_OUT and site_of(case) not in TRAINING_SITES
        return case.part == self.part


def site_of(case: CaseValues) -> str:
    """The hospital in the name of a patient of TCGA."""
    return case.patient.split("-")[1]


def figures_of(benchmark: Benchmark) -> list[Figure]:
    """Every figure of a benchmark, the main one first."""
    if benchmark.kind == "pixels":
        return _of_pixels(benchmark)
    if benchmark.kind == "dots":
        return _of_dots(benchmark)
    return _of_volumes(benchmark)


def _of_pixels(benchmark: Benchmark) -> list[Figure]:
    names = benchmark.class_names
    every = [k for k, name in enumerate(names) if name != "none"]
    common = [k for k in every if names[k] != benchmark.apart]
    return [
        Figure(f"mean IoU without {benchmark.apart}", partial(mean_iou, classes=common)),
        Figure("mean IoU", partial(mean_iou, classes=every)),
        *(Figure(f"IoU {names[k]}", partial(mean_iou, classes=[k])) for k in every),
    ]


def _of_dots(benchmark: Benchmark) -> list[Figure]:
    names = benchmark.class_names[1:]
    balanced = partial(mean_recall, classes=range(len(names)))
    return [
        Figure("balanced accuracy", balanced),
        *(Figure(f"accuracy {name}", partial(mean_recall, classes=[k])) for k, name in enumerate(names)),
        Figure("balanced accuracy, other sites", balanced, part=OTHER_SITES),
        Figure("balanced accuracy, crops of another lab", partial(mean_recall, classes=(1, 2)), part=CROPS),
    ]


def _of_volumes(benchmark: Benchmark) -> list[Figure]:
    found = [Figure("mean Dice", partial(mean_of, column=DICE))]
    for k, name in enumerate(benchmark.class_names[1:]):
        found += [
            Figure(f"Dice {name}", partial(mean_of, column=DICE, structure=k)),
            Figure(f"HD95 {name}, mm", partial(mean_of, column=HD95, structure=k)),
            Figure(f"volume error {name}", partial(mean_of, column=ERROR, structure=k), percent=True),
        ]
    return found


def mean_iou(values: Values, *, classes: Sequence[int]) -> float:
    """Mean IoU of classes in the sum of confusions (N, K, K); NaN where one has no truth."""
    counts = values.sum(axis=0)
    hits, truth, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    found = [hits[k] / (truth[k] + predicted[k] - hits[k]) if truth[k] else np.nan for k in classes]
    return float(np.mean(found))


def mean_recall(values: Values, *, classes: Sequence[int]) -> float:
    """Mean share of each class that was found, in the sum of confusions (N, K, K); NaN where one has none."""
    counts = values.sum(axis=0)
    truth = counts.sum(axis=1)
    return float(np.mean([counts[k, k] / truth[k] if truth[k] else np.nan for k in classes]))


def mean_of(values: Values, *, column: int, structure: int | None = None) -> float:
    """Mean size of a column of volumes (N, structures, columns), where it is defined."""
    chosen = np.abs(values[:, :, column] if structure is None else values[:, structure, column])
    known = chosen[~np.isnan(chosen)]
    return float(known.mean()) if known.size else np.nan


@dataclass(frozen=True)
class Found:
    """A figure of an entry: its interval over cases, seeds averaged in each, and its value for each seed."""

    interval: Interval
    by_seed: list[float]


def measure_figure(results: Sequence[Result], figure: Figure) -> Found:
    """A figure of the results of an entry, one for each seed."""
    values, patients = values_of(results, figure)
    interval = intervals.bootstrap(values, figure.of, patients=patients)
    return Found(interval, [figure.of(values_of([result], figure)[0]) for result in results])


def difference(one: Sequence[Result], other: Sequence[Result], figure: Figure) -> Found:
    """A figure of one entry minus that of another on the same cases, and for each seed that both have.

    Raises ValueError where they were scored on different cases.
    """
    (a, patients), (b, others) = values_of(one, figure), values_of(other, figure)
    if patients != others:
        raise ValueError(f"{one[0].entry} and {other[0].entry} were scored on different cases")
    interval = intervals.paired(a, b, figure.of, patients=patients)
    pairs = [(x, y) for x in one for y in other if x.seed == y.seed]
    each = [figure.of(values_of([x], figure)[0]) - figure.of(values_of([y], figure)[0]) for x, y in pairs]
    return Found(interval, each)


def values_of(results: Sequence[Result], figure: Figure) -> tuple[Values, list[str]]:
    """Values (N, ...) of the cases of a figure, the mean over seeds, and the patient of each.

    Raises ValueError where seeds were scored on different cases.
    """
    chosen = [[case for case in result.cases if figure.has(case)] for result in results]
    if any([c.case for c in cases] != [c.case for c in chosen[0]] for cases in chosen):
        raise ValueError(f"seeds of {results[0].entry} were scored on different cases")
    values = np.array([[case.array for case in cases] for cases in chosen])
    return intervals.mean_over_seeds(values), [case.patient for case in chosen[0]]
