"""Class weights, and the losses on the outputs of a network; VOID counts in none of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wsiseg.classes import VOID
from wsiseg.errors import ManifestError
from wsiseg.resample import nearest
from wsiseg.training.patches import Batch
from wsiseg.training.run import Run
from wsiseg.training.sections import Loss

Weights = Tensor | None
Parts = dict[str, Tensor]
"""The losses of a step by name, weighted: what is minimised is their sum."""


def class_weights(counts: NDArray[np.int64], *, c: float = 1.10) -> NDArray[np.float32]:
    """Weights 1 / ln(c + f), f the share of a class among all labelled pixels.

    Source: Paszke et al., ENet, 2016, section 5.2; c = 1.10 as in ESPNet.
    """
    return np.asarray(1.0 / np.log(c + counts / max(1, counts.sum())), np.float32)


def weighted_cross_entropy(scores: Tensor, truth: Tensor, weights: Weights = None) -> Tensor:
    """Mean of w * -log softmax over labelled pixels, divided by the sum of their weights.

    `scores` (B, K, *axes), `truth` (B, *axes) int64 with VOID for not labelled.
    """
    if not (truth != VOID).any():
        return scores.sum() * 0.0  # a mean over nothing is no number
    return functional.cross_entropy(scores, truth, weight=weights, ignore_index=VOID)


@cache
def _monai() -> Any:
    # It takes seconds to import, and not every training needs it.
    return importlib.import_module("monai.losses")


def dice(scores: Tensor, truth: Tensor, *, background: int | None) -> Tensor:
    """Soft Dice loss of labelled pixels, the mean over classes but the background.

    A class's overlap is that of the whole batch, so that a patch without it does not count as a miss.
    MONAI's own masks leave pixels that are not labelled in class 0, and it leaves out class 0 only: so
    probabilities and truth are masked, and chosen, before they get there.
    """
    counted = (truth != VOID)[:, None]
    wanted = [k for k in range(scores.shape[1]) if k != background]
    probs = (scores.softmax(dim=1) * counted)[:, wanted]
    marks = torch.stack([truth == k for k in wanted], dim=1).to(probs)  # (B, wanted, *axes)
    found: Tensor = _monai().DiceLoss(batch=True)(probs, marks)
    return found


def focal(scores: Tensor, truth: Tensor, weights: Weights = None, *, gamma: float) -> Tensor:
    """Focal loss, the mean over labelled pixels of w (1 - p)^gamma * -log p.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017; MONAI's mean is over classes
    too, of which all but one are 0.
    """
    counted = (truth != VOID)[:, None]
    loss = _monai().FocalLoss(
        to_onehot_y=True, use_softmax=True, gamma=gamma, weight=weights, reduction="none"
    )
    each: Tensor = loss(scores, truth.where(counted[:, 0], torch.zeros_like(truth))[:, None])
    return (each * counted).sum() / counted.sum().clamp(min=1)


def outputs_of(made: Any, *, ndim: int) -> list[Tensor]:
    """What a network puts out, as a list: MONAI stacks the masks of deep supervision on an axis."""
    if isinstance(made, Tensor):
        return list(made.unbind(1)) if made.ndim == ndim + 3 else [made]
    return list(made)


def on_grid_of(scores: Tensor, truth: Tensor, *, network: Any) -> Tensor:
    """The truth (B, *axes) of the pixels that scores (B, K, *axes) are of.

    Of a network that scores part of its window that part, of a coarser one the pixel at each centre.
    """
    if hasattr(network, "output_offset"):
        inner = zip(network.output_offset, network.output_size, strict=True)
        truth = truth[(slice(None), *(slice(a, a + n) for a, n in inner))]
    for axis, (n, m) in enumerate(zip(scores.shape[2:], truth.shape[1:], strict=True), start=1):
        if n != m:
            places = torch.from_numpy(nearest(slice(0, n), size=n, from_size=m)).to(truth.device)
            truth = truth.index_select(axis, places)
    return truth


class Objective:
    """The losses of a run on what a network says of a batch."""

    def __init__(self, run: Run, counts: NDArray[np.int64], *, device: torch.device) -> None:
        self._run = run
        self._weights = [self._class_weights(loss, counts, device) for loss in run.losses]

    @staticmethod
    def _class_weights(loss: Loss, counts: NDArray[np.int64], device: torch.device) -> Weights:
        if loss.class_weights == "equal":
            return None
        if loss.class_weights == "inverse-log":
            return torch.from_numpy(class_weights(counts, c=loss.c)).to(device)
        return torch.tensor(loss.class_weights, dtype=torch.float32, device=device)

    def __call__(self, network: Any, made: Any, batch: Batch) -> Parts:
        outputs = outputs_of(made, ndim=len(self._run.axes))
        parts: Parts = {}
        for number, (loss, weights) in enumerate(zip(self._run.losses, self._weights, strict=True)):
            name = f"{loss.kind} {loss.output}" + (f" ({number})" if _twice(self._run.losses, loss) else "")
            if loss.output == "diagnosis":
                value = functional.cross_entropy(outputs[1].float(), batch.targets["diagnosis"])
            else:
                scores = outputs[loss.output].float()
                value = self._value(
                    loss, scores, on_grid_of(scores, batch.targets["truth"], network=network), weights
                )
            parts[name] = value * loss.weight
        return parts

    def _value(self, loss: Loss, scores: Tensor, truth: Tensor, weights: Weights) -> Tensor:
        kinds: dict[str, Callable[[], Tensor]] = {
            "cross-entropy": lambda: weighted_cross_entropy(scores, truth, weights),
            "dice": lambda: dice(scores, truth, background=self._run.background),
            "dice-cross-entropy": lambda: (
                dice(scores, truth, background=self._run.background)
                + weighted_cross_entropy(scores, truth, weights)
            ),
            "focal": lambda: focal(scores, truth, weights, gamma=loss.gamma),
        }
        return kinds[loss.kind]()


def _twice(losses: Sequence[Loss], loss: Loss) -> bool:
    return sum((other.kind, other.output) == (loss.kind, loss.output) for other in losses) > 1


def check_outputs(run: Run, network: Any, made: Any) -> None:
    """Raises ManifestError where a network does not put out what the run's losses are on."""
    outputs = outputs_of(made, ndim=len(run.axes))
    classes = len(run.mask_classes)
    for loss in run.losses:
        index = 1 if loss.output == "diagnosis" else loss.output
        if index >= len(outputs):
            raise ManifestError(
                f"a loss is on output {loss.output}, but the network {run.network.name} has {len(outputs)} "
                "outputs, counted from 0"
            )
        found = tuple(outputs[index].shape[1:])
        if loss.output == "diagnosis":
            if found != (len(run.diagnoses),):
                raise ManifestError(
                    f"the network puts out {found} for a diagnosis, the run names {len(run.diagnoses)}: "
                    f"give it the argument diagnoses: {len(run.diagnoses)}"
                )
        elif len(found) != 1 + len(run.axes) or found[0] != classes:
            raise ManifestError(
                f"the network puts out {found[0]} scores a pixel on {len(found) - 1} axes, the run has "
                f"{classes} classes on {len(run.axes)}"
            )
