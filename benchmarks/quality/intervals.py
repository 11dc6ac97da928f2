"""Intervals of figures over images, and what they say of a claim.

A figure is a function of the values of some images, (N, ...). Images are drawn with replacement, those of
one patient together; the interval lies between the 2.5th and the 97.5th percentile of what the figure
then is (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Figure = Callable[[Values], float]
Verdict = Literal["confirmed", "refuted", "undecided"]

ROUNDS = 2000
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Interval:
    """A figure of all images with its 95 % interval.

    `undefined` is the share of draws in which the figure did not exist, because a class was in none of the
    images that were drawn; the interval is over the others.
    """

    value: float
    low: float
    high: float
    undefined: float = 0.0


def mean_over_seeds(values: Values) -> Values:
    """Values (N, ...) of images from those of each seed (S, N, ...); NaN of a seed does not count."""
    counted = ~np.isnan(values)
    counts = counted.sum(axis=0)
    total = np.where(counted, values, 0.0).sum(axis=0)
    return np.asarray(np.where(counts > 0, total / np.maximum(counts, 1), np.nan))


def draws(patients: Sequence[str], *, rounds: int, seed: int) -> list[NDArray[np.intp]]:
    """Places of the images in each round: as many patients as there are, with all of their images."""
    names = sorted(set(patients))
    members = [np.flatnonzero(np.array(patients) == name) for name in names]
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(names), size=(rounds, len(names)))
    return [np.concatenate([members[i] for i in row]) for row in chosen]


def bootstrap(
    values: Values, figure: Figure, *, patients: Sequence[str], rounds: int = ROUNDS, seed: int = 0
) -> Interval:
    """The figure of some images (N, ...), one patient's name each."""
    found = [figure(values[drawn]) for drawn in draws(patients, rounds=rounds, seed=seed)]
    return _interval(figure(values), np.array(found))


def paired(
    one: Values,
    other: Values,
    figure: Figure,
    *,
    patients: Sequence[str],
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Interval:
    """The figure of `one` minus that of `other` on the same images, which are drawn for both together.

    Raises ValueError where they are not of the same images.
    """
    if one.shape != other.shape:
        raise ValueError(f"values of {one.shape} and of {other.shape} are not of the same images")
    found = [figure(one[drawn]) - figure(other[drawn]) for drawn in draws(patients, rounds=rounds, seed=seed)]
    return _interval(figure(one) - figure(other), np.array(found))


def verdict(interval: Interval, *, more_than: float) -> Verdict:
    """Whether a figure is above a bound, as far as its interval says."""
    if interval.low > more_than:
        return "confirmed"
    if interval.high < more_than:
        return "refuted"
    return "undecided"


def _interval(value: float, found: Values) -> Interval:
    known = found[~np.isnan(found)]
    if not known.size or np.isnan(value):
        return Interval(value, np.nan, np.nan, undefined=1.0)
    low, high = (float(np.percentile(known, share)) for share in PERCENTILES)
    return Interval(value, low, high, undefined=1 - known.size / found.size)
