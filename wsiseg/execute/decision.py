"""What is kept of the scores of a pixel: the class, and on request how probable it is, or the scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsiseg.execute import kernels
from wsiseg.geometry import Region
from wsiseg.memory import zeros_apart
from wsiseg.models.card import ModelCard
from wsiseg.reliability import SURE
from wsiseg.windows import slabs

PIECE = {"cpu": 1 << 17, "cuda": 1 << 23}
"""Scores that become probabilities at a time: what a cache holds, or what keeps a GPU busy."""


def boxes(shape: tuple[int, ...], *, pixels: int) -> Iterator[Region]:
    """Regions of at most `pixels` pixels (at least a line) that partition a grid.

    >>> list(boxes((3, 2), pixels=4))
    [(slice(0, 2, None), slice(0, 2, None)), (slice(2, 3, None), slice(0, 2, None))]
    """
    first, *rest = shape
    row = math.prod(rest)
    if row <= pixels or len(shape) == 1:
        for part in slabs(first, rows=max(1, pixels // row)):
            yield part.rows, *(slice(0, n) for n in rest)
    else:
        for number in range(first):
            for box in boxes(tuple(rest), pixels=pixels):
                yield slice(number, number + 1), *box


@dataclass(frozen=True)
class Confidence:
    """255 times the probability of the chosen class, rounded, and at least 1: of a network's opinion.

    Probabilities are softmax(scores / temperature), which calibrates them (Guo et al., On Calibration of
    Modern Neural Networks, 2017, section 4.2); None: the scores are probabilities.
    """

    temperature: float | None

    @classmethod
    def of(cls, card: ModelCard) -> Confidence:
        """By what a card says of the scores of its network."""
        return cls(None if card.scores == "probabilities" else card.temperature)

    def __call__(self, scores: Tensor) -> Tensor:
        """Confidence uint8 (*grid) of scores (K, *grid), on their device and in little memory."""
        made = torch.empty(scores.shape[1:], dtype=torch.uint8, device=scores.device)
        for box in boxes(tuple(made.shape), pixels=max(1, PIECE[scores.device.type] // len(scores))):
            made[box] = (SURE * self._probability(scores[(slice(None), *box)])).round_().clamp_(1, SURE)
        return made

    def _probability(self, scores: Tensor) -> Tensor:
        # In double precision no piece is rounded to another byte than the same pixels in another piece.
        highest = scores.amax(dim=0)
        if self.temperature is None:
            return highest.double()
        return (scores - highest).double().div_(self.temperature).exp_().sum(dim=0).reciprocal_()


def highest(scores: Tensor) -> Tensor:
    """The class of the highest score, uint8 (*grid), of scores (K, *grid), on their device."""
    values = scores.movedim(0, -1)
    compiled = scores.device.type == "cpu" and scores.dtype == torch.float32 and values[:1].is_contiguous()
    if not compiled:
        return scores.max(dim=0).indices.to(torch.uint8)
    # Scores of a whole band lie in one piece; cut to the width of the image, each row does.
    lines = (values[None] if values.is_contiguous() else values).flatten(1, -2).numpy()
    best = np.empty(scores.shape[1:], np.uint8)
    for line, found in zip(lines, best.reshape(lines.shape[:2]), strict=True):
        kernels.in_parts(partial(_highest, line, found), len(found))
    return torch.from_numpy(best)


def _highest(scores: kernels.Floats, best: NDArray[np.uint8], part: slice) -> None:
    kernels.highest(scores[part], best[part])


@dataclass(frozen=True)
class Decision:
    """What an executor hands on of its scores: the mask, and where asked for the scores or the confidence."""

    scores: bool = False
    confidence: Confidence | None = None

    def of(self, scores: Tensor) -> dict[str, Tensor]:
        """By name, from scores (K, *grid), on their device: arrays (*grid), and the scores themselves."""
        made = {"mask": highest(scores)}
        if self.scores:
            made["scores"] = scores.float()
        if self.confidence is not None:
            made["confidence"] = self.confidence(scores)
        return made

    def blank(self, shape: tuple[int, ...], *, num_classes: int) -> dict[str, NDArray[Any]]:
        """The same arrays with zeros, for a grid of which nothing is known."""
        made: dict[str, NDArray[Any]] = {"mask": zeros_apart(shape, np.uint8)}
        if self.scores:
            made["scores"] = zeros_apart((num_classes, *shape), np.float32)
        if self.confidence is not None:
            made["confidence"] = zeros_apart(shape, np.uint8)
        return made
