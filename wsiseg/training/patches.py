"""Training patches cut at random from the cases, straight from their files.

Every patch is drawn from (seed, step, place in the batch) and from nothing else, so that a training that
goes on after a kill sees what it would have seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsiseg.annotations.labels import Indices
from wsiseg.geometry import Region, region_shape
from wsiseg.preprocess import CaseStats, apply
from wsiseg.sources.base import Array
from wsiseg.training.augment.histology import Rgb, vary
from wsiseg.training.augment.volumes import vary_inputs, vary_voxels
from wsiseg.training.cases import Case
from wsiseg.training.place import anywhere, cut, draw_matrix, on_a_pixel
from wsiseg.training.run import Run


@dataclass(frozen=True)
class Batch:
    """Inputs of the network (B, C, *patch) and what it should say of them, by name.

    `truth` (B, *patch) int64 with VOID for not labelled, `diagnosis` (B,) int64.
    """

    inputs: Tensor
    targets: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Batch:
        """On a device."""
        targets = {name: target.to(device, non_blocking=True) for name, target in self.targets.items()}
        return Batch(self.inputs.to(device, memory_format=memory_format), targets)


@dataclass(frozen=True, eq=False)
class PatchSampler:
    """Draws batches of patches of the cases of a run."""

    run: Run
    cases: Sequence[Case]

    def batch(self, step: int) -> Batch:
        """What a step sees."""
        drawn = [self._patch(step, index) for index in range(self.run.patches.batch)]
        targets = {"truth": torch.from_numpy(np.stack([truth for _, truth, _ in drawn])).long()}
        if self.run.diagnoses:
            targets["diagnosis"] = torch.tensor([said for _, _, said in drawn])
        return Batch(torch.stack([inputs for inputs, _, _ in drawn]), targets)

    def _patch(self, step: int, index: int) -> tuple[Tensor, Indices, int]:
        """Input (C, *patch), truth (*patch) and diagnosis of one patch."""
        rng = np.random.default_rng((self.run.seed, step, index))
        if not self.run.patches.mosaic:
            case, values, truth = self.draw(self.run.patch, rng)
            return self.inputs(values, case.stats, rng), truth, case.diagnosis or 0
        made = torch.empty(self.run.channels, *self.run.patch)
        truth = np.empty(self.run.patch, np.uint8)
        whole = tuple(slice(0, n) for n in self.run.patch)
        for place in pieces(whole, self.run.patches.min_piece, rng):
            if rng.random() < self.run.patches.glass_share:
                assert self.run.background is not None  # the run was checked
                stats, values = None, glass(region_shape(place), rng)
                truth[place] = self.run.background
            else:
                case, values, truth[place] = self.draw(region_shape(place), rng)
                stats = case.stats
            made[(slice(None), *place)] = self.inputs(values, stats, rng)
        return made, truth, 0

    def draw(self, size: tuple[int, ...], rng: np.random.Generator) -> tuple[Case, Array, Indices]:
        """Pixels (C, *size) as read, stained or shaded otherwise, and their truth."""
        matrix = draw_matrix(self.run.augmentation, self.run.axes, rng)
        case, index = self.focus(rng)
        if index is None:
            centre = anywhere(case.shape, np.abs(matrix) @ np.array(size), rng)
        else:
            centre = on_a_pixel(case, index, rng)
        values, truth = cut(case, centre, matrix, size)
        how = self.run.augmentation
        if how.histology is not None:
            values = vary(values, how.histology, rng)
        if how.mri is not None:
            values = vary_voxels(values, how.mri, rng)
        return case, values, truth

    def focus(self, rng: np.random.Generator) -> tuple[Case, int | None]:
        """A case, all with one chance, and the class that the patch is centred on, if on any."""
        if rng.random() >= self.run.patches.balanced:
            return self.cases[int(rng.integers(len(self.cases)))], None
        index = int(rng.choice(len(self._shares), p=self._shares))
        return self.cases[int(rng.choice(len(self.cases), p=self._chances[index]))], index

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        """Pixels of every class in every case, (K, cases)."""
        return np.stack([case.census.total for case in self.cases], axis=1)

    @cached_property
    def _shares(self) -> NDArray[np.float64]:
        """How often each class is drawn; one that nobody labelled never."""
        wanted = self.run.patches.class_shares or (1.0,) * len(self._counts)
        return _to_sum_1(np.where(self._counts.any(axis=1), wanted, 0.0))

    @cached_property
    def _chances(self) -> dict[int, NDArray[np.float64]]:
        """How often each case is drawn for a class; one that does not have it never."""
        power = self.run.patches.case_power
        return {
            index: _to_sum_1(np.where(found > 0, found.astype(float) ** power, 0.0))
            for index, found in enumerate(self._counts)
            if found.any()
        }

    def inputs(self, values: Array, stats: CaseStats | None, rng: np.random.Generator) -> Tensor:
        """What the network takes (C, *size), from pixels as read."""
        pixels = torch.from_numpy(np.array(values, order="C"))[None]
        made = apply(pixels, stats, self.run.preprocessing)[0]
        mri = self.run.augmentation.mri
        return made if mri is None else vary_inputs(made, mri, rng)


def _to_sum_1(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values / values.sum())


def pieces(place: Region, smallest: int, rng: np.random.Generator) -> list[Region]:
    """A box cut in two at random, and again, while pieces of at least `smallest` pixels remain."""
    sides = region_shape(place)
    axis = int(np.argmax(sides))
    # A piece that could be cut may stay whole, so that all sizes occur.
    if sides[axis] < 2 * smallest or rng.random() < 0.15:
        return [place]
    at = place[axis].start + int(rng.integers(smallest, sides[axis] - smallest + 1))
    first, second = list(place), list(place)
    first[axis], second[axis] = slice(place[axis].start, at), slice(at, place[axis].stop)
    return [*pieces(tuple(first), smallest, rng), *pieces(tuple(second), smallest, rng)]


def glass(size: tuple[int, ...], rng: np.random.Generator) -> Rgb:
    """A piece (3, *size) of a slide without tissue."""
    color = rng.uniform(222, 255) + rng.uniform(-4, 4, size=(3, 1, 1))
    grain = rng.standard_normal((3, *size), dtype=np.float32) * rng.uniform(0, 4)
    return np.asarray(np.clip(color + grain, 0, 255), np.uint8)


def ahead(sampler: PatchSampler, steps: Iterable[int], *, workers: int) -> Iterator[tuple[int, Batch]]:
    """Steps with their batches, which `workers` threads make ahead; the same batches with any number."""
    if not workers:
        yield from ((step, sampler.batch(step)) for step in steps)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="wsiseg-patches") as pool:
        waiting: deque[tuple[int, Future[Batch]]] = deque()
        try:
            for step in steps:
                waiting.append((step, pool.submit(sampler.batch, step)))
                if len(waiting) > 2 * workers:
                    first, made = waiting.popleft()
                    yield first, made.result()
            for first, made in waiting:
                yield first, made.result()
        finally:
            pool.shutdown(cancel_futures=True)
