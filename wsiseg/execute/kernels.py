"""Passes over pixels that memory limits, each done in one go on a CPU: compiled by numba, kept on disk.

torch runs an element-wise operation at a time, and reads and writes every number anew for each. All arrays
here are float32 with channels next to each other; the work is split over torch's number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Table = NDArray[np.int64]

NUMBA = numba.__version__
ELEMENTS = 4096
"""Numbers that are put together before the pass over them: they stay in the first cache."""
FEWEST = 1 << 14
"""Pixels below which a second thread costs more than it saves."""


def compiled(function: Function) -> Function:
    """A function as machine code. Others may run meanwhile; the order of additions is kept."""
    try:
        made: Any = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # nowhere to keep it: neither beside this file nor in the user's cache folder
        made = numba.njit(nogil=True, error_model="numpy")(function)
    return cast(Function, made)


@compiled
def join(  # noqa: PLR0912 - in functions of their own the loops would be a tenth slower
    out: Floats, sources: tuple[Floats, ...], whole: int, steps: Table, stages: Floats
) -> None:
    """Channels put together from `sources` (P, C_i), then scaled, shifted and bent: `out` (P, C).

    A row of `steps` is (first channel of the result, channels, source, its first channel, first channel of
    what they are added to or -1). The source `whole` has all C channels and is added last (-1: none).
    `stages` (3 or 6, B * C) are scale, shift and slope (PReLU's) of some pixels, once or twice.
    """
    # Slices, whose indices need no check, are what makes the loops use all lanes of the processor.
    pixels, channels = out.shape
    block = stages.shape[1] // channels
    held = np.zeros((block, channels), np.float32)
    summed, flat = held.reshape(held.size), out.reshape(out.size)
    residual = sources[max(whole, 0)].reshape(sources[max(whole, 0)].size)
    scale, shift, slope = stages[0], stages[1], stages[2]
    scale2, shift2, slope2 = stages[-3], stages[-2], stages[-1]
    for top in range(0, pixels, block):
        count = min(block, pixels - top)
        for number in range(len(steps)):
            to, wide, source, first, base = steps[number]
            values, place = (
                sources[source][top : top + count, first : first + wide],
                held[:count, to : to + wide],
            )
            if base < 0:
                for p in range(count):
                    for c in range(wide):
                        place[p, c] = values[p, c]
            else:
                before = held[:count, base : base + wide]
                for p in range(count):
                    for c in range(wide):
                        place[p, c] = before[p, c] + values[p, c]
        here = slice(top * channels, (top + count) * channels)
        made, added = flat[here], residual[here]
        if whole < 0:
            for i in range(made.size):
                value = summed[i] * scale[i] + shift[i]
                made[i] = value if value > 0 else value * slope[i]
        elif len(steps):
            for i in range(made.size):
                value = (summed[i] + added[i]) * scale[i] + shift[i]
                made[i] = value if value > 0 else value * slope[i]
        else:
            for i in range(made.size):
                value = added[i] * scale[i] + shift[i]
                made[i] = value if value > 0 else value * slope[i]
        if len(stages) > 3:
            for i in range(made.size):
                value = made[i] * scale2[i] + shift2[i]
                made[i] = value if value > 0 else value * slope2[i]


@compiled
def highest(scores: Floats, best: Bytes) -> None:
    """The class of the highest score (P, K), the first of equal ones, or of not-a-number: `best` (P,)."""
    # Pixel after pixel would be a branch a score; so all lanes compare, a class of some pixels at a time.
    some = 256
    values, others = np.empty(some, np.float32), np.empty(some, np.float32)
    for top in range(0, scores.shape[0], some):
        part, found = scores[top : top + some], best[top : top + some]
        value, other = values[: found.size], others[: found.size]
        for p in range(found.size):
            value[p] = part[p, 0]
            found[p] = 0
        for k in range(1, part.shape[1]):
            column = part[:, k]
            for p in range(found.size):
                other[p] = column[p]
            for p in range(found.size):
                better = (other[p] > value[p]) | ((other[p] != other[p]) & (value[p] == value[p]))
                value[p] = other[p] if better else value[p]
                found[p] = np.uint8(k) if better else found[p]


@compiled
def look_up(pixels: Bytes, table: Floats, order: Table, out: Floats) -> None:
    """What a table (C, 256) says of channels `order` of pixels (P, C): `out` (P, C)."""
    for c in range(out.shape[1]):
        values, entries, made = pixels[:, order[c]], table[c], out[:, c]
        for p in range(made.size):
            made[p] = entries[values[p]]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="wsiseg-pass")


def in_parts(work: Callable[[slice], None], pixels: int) -> None:
    """Do some work for all of `pixels`, in as many parts as torch has threads."""
    threads = min(torch.get_num_threads(), max(1, pixels // FEWEST))
    if threads == 1:
        work(slice(0, pixels))
        return
    share = -(-pixels // threads)
    parts = [slice(start, min(start + share, pixels)) for start in range(0, pixels, share)]
    others = [_pool(threads - 1).submit(work, part) for part in parts[1:]]
    work(parts[0])
    for other in others:
        other.result()


def by_pixel(values: Tensor) -> NDArray[Any]:
    """Values (B, C, ...) as (pixels, C): a view where channels lie next to each other."""
    pixels: NDArray[Any] = values.movedim(1, -1).reshape(-1, values.shape[1]).numpy()
    return pixels


def repeated(values: Sequence[float] | Floats, *, channels: int) -> Floats:
    """Values per channel, again and again for as many pixels as are worked on at a time."""
    return np.tile(np.asarray(values, np.float32), max(1, ELEMENTS // channels))
