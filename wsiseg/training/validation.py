"""Scores of a network on whole cases, as inference sees them: the same predictor, the same metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsiseg.execute.base import rows_for, to_level0
from wsiseg.execute.windowed import Windowed
from wsiseg.execution import at_borders
from wsiseg.metrics import ConfusionMatrix, Scores, score
from wsiseg.models.card import ModelCard
from wsiseg.predict import NetworkPredictor, Predictor
from wsiseg.sources.cached import CachedSource
from wsiseg.training.cases import Case
from wsiseg.training.run import Run
from wsiseg.windows import WindowPlan, plan_of_patches, slabs

WHOLE_PX = 1 << 22
"""A case of at most so many pixels goes through in one piece, if the network takes any size."""
PIECE_PX = 1 << 22
"""Of a mask, that are compared at a time."""
CORE, HALO = {2: 512, 3: 64}, {2: 64, 3: 32}
"""Windows of larger cases, pixels, by number of axes."""


def windows_of(card: ModelCard, shape: tuple[int, ...], *, one_size: bool) -> WindowPlan:
    """How a case is cut to be scored; a network of one size has only the windows of its card."""
    spec, ndim = card.windows, len(shape)
    if spec.sides is not None:
        return plan_of_patches(shape, sides=spec.sides)
    if one_size:
        return WindowPlan(
            shape=shape,
            core=(spec.core,) * ndim,
            halo=(spec.halo or 0,) * ndim,
            stride=spec.output_stride,
            at_borders=at_borders(spec),
        )
    stride = spec.output_stride
    if math.prod(shape) <= WHOLE_PX:
        return WindowPlan(shape=shape, core=tuple(-(-n // stride) * stride for n in shape), halo=(0,) * ndim)
    core, halo = (-(-n // stride) * stride for n in (CORE[ndim], HALO[ndim]))
    return WindowPlan(
        shape=shape,
        core=(core,) * ndim,
        halo=(halo,) * ndim,
        stride=stride,
        at_borders=at_borders(spec),
    )


def confusion_on(
    network: nn.Module, cases: Sequence[Case], *, card: ModelCard, device: torch.device
) -> list[ConfusionMatrix]:
    """Confusion of a network on each whole case; pixels without a label count nowhere."""
    predictor = NetworkPredictor(card, network.eval(), device=device)
    return [_confusion(predictor, case) for case in cases]


def _confusion(predictor: NetworkPredictor, case: Case) -> ConfusionMatrix:
    count = len(predictor.card.classes)
    pieces = masks(predictor.for_case(case.stats), case, one_size=has_one_size(predictor.network))
    matrices = [ConfusionMatrix.of(truth=truth, prediction=mask, num_classes=count) for truth, mask in pieces]
    return total_of(matrices, num_classes=count)


def has_one_size(network: nn.Module) -> bool:
    """True of a network that takes windows of one size only."""
    return hasattr(network, "input_size")


def masks(
    predictor: Predictor, case: Case, *, one_size: bool = False
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Truth and mask (rows, ...) on the grid of the annotation, piece by piece, as `segment` makes masks.

    Where nothing is labelled near, the mask means nothing.
    """
    card, truth, from_shape = predictor.card, case.given, case.shape
    assert truth is not None
    shape = truth.shape
    by_scores = card.mask_resampling == "scores" and shape != from_shape
    plan = windows_of(card, from_shape, one_size=one_size)
    # Of windows that overlap by a half every pixel has two on each axis, mixed by how near their middles are.
    taper = 0 if card.windows.sides is None else min(plan.halo)
    executor = Windowed(predictor, plan, taper=taper, scores=by_scores)
    with CachedSource(case.source) as source:
        rows = executor.run(source, first_row=0, wanted=case.has_labels)
        pieces = slabs(shape[0], rows=max(1, PIECE_PX // math.prod(shape[1:])))
        made = to_level0(rows, pieces, shape=shape, from_shape=from_shape, scores=by_scores)
        for slab, mask, _ in made:
            yield truth.read((slab.rows, *(slice(0, n) for n in shape[1:]))), mask
            below = slice(min(slab.rows.stop, shape[0] - 1), shape[0])
            needed = rows_for(below, size=shape[0], from_size=from_shape[0], scores=by_scores)
            source.forget(before=executor.first_row_read(needed.start))


def total_of(matrices: Sequence[ConfusionMatrix], *, num_classes: int) -> ConfusionMatrix:
    """All cases as one."""
    total = ConfusionMatrix.empty(num_classes)
    for matrix in matrices:
        total += matrix
    return total


def figure_of(scores: Scores, run: Run) -> float:
    """What counts as better: the mean over classes that are present, without the background."""
    kind = run.validation.score
    rows = [c for c in scores.classes if c.index != run.background and c.truth_pixels]
    found = [c.iou if kind == "mean IoU" else c.dice for c in rows]
    values = [value for value in found if value is not None]
    return float(np.mean(values)) if values else 0.0


def summary(matrices: Sequence[ConfusionMatrix], run: Run) -> dict[str, Any]:
    """Figures for a card: a class without truth pixels has no score worth reporting."""
    classes = run.mask_classes
    scores = score(total_of(matrices, num_classes=len(classes)), classes)
    seen = [c for c in scores.classes if c.truth_pixels]
    figures: dict[str, Any] = {
        "cases": len(matrices),
        "pixels": scores.counted_pixels,
        "IoU of classes in the truth": {c.name: _rounded(c.iou) for c in seen},
        "Dice of classes in the truth": {c.name: _rounded(c.dice) for c in seen},
        "recall of classes in the truth": {c.name: _rounded(c.recall) for c in seen},
        "mean IoU": _mean([c.iou for c in seen]),
        "balanced accuracy": _mean([c.recall for c in seen]),
        "pixel accuracy": round(scores.pixel_accuracy or 0.0, 4),
        "frequency-weighted IoU": round(scores.frequency_weighted_iou or 0.0, 4),
    }
    return figures | (_by_volume(matrices, run) if run.axes == "zyx" else {})


def _by_volume(matrices: Sequence[ConfusionMatrix], run: Run) -> dict[str, Any]:
    """Mean and lowest Dice of each structure over volumes; what neither side has does not count."""
    each = [score(matrix, run.mask_classes).classes for matrix in matrices]
    names = [c.name for c in run.mask_classes if c.index != run.background]
    found = {n: [c.dice for cs in each for c in cs if c.name == n and c.dice is not None] for n in names}
    means = {name: _mean(values) for name, values in found.items() if values}
    return {
        "volumes": len(matrices),
        "Dice, mean over volumes": means,
        "Dice, lowest of a volume": {name: round(min(v), 4) for name, v in found.items() if v},
        "Dice, mean over structures": _mean(list(means.values())),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None
