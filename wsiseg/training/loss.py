"""Class weights and the loss of the ESPNet family, and the loss for volumes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, stack
from torch.nn import functional

from wsiseg.classes import VOID


def class_weights(
    truths: Iterable[NDArray[np.uint8]], *, num_classes: int, c: float = 1.10
) -> NDArray[np.float32]:
    """Weights 1 / ln(c + f), f the share of a class among the labelled pixels of all truths.

    Source: Paszke et al., ENet, 2016, section 5.2; c = 1.10 as in ESPNet.
    """
    counts = np.zeros(num_classes, np.int64)
    for truth in truths:
        counts += np.bincount(truth[truth != VOID].ravel(), minlength=num_classes)
    return np.asarray(1.0 / np.log(c + counts / max(1, counts.sum())), np.float32)


def weighted_cross_entropy(scores: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Mean of w * -log softmax over labelled pixels, divided by the sum of their weights.

    `scores` (B, K, *axes), `truth` (B, *axes) int64 with VOID for not labelled.
    """
    return functional.cross_entropy(scores, truth, weight=weights, ignore_index=VOID)


def dice_cross_entropy(
    scores: Tensor, truth: Tensor, *, background: int | None, smooth: float = 1e-5
) -> Tensor:
    """Soft Dice loss, the mean over classes but the background, plus cross-entropy over labelled pixels.

    `scores` (B, K, *axes), `truth` (B, *axes) int64 with VOID for not labelled. A class's overlap is
    that of the whole batch, so that a patch without it does not count as a miss.
    """
    counted = (truth != VOID)[:, None]
    probs = scores.softmax(dim=1) * counted
    marks = stack([truth == k for k in range(scores.shape[1])], dim=1).to(probs)  # (B, K, *axes)
    others = [d for d in range(scores.ndim) if d != 1]
    overlap = (probs * marks).sum(others)  # (K,)
    dice = (2 * overlap + smooth) / (probs.sum(others) + marks.sum(others) + smooth)
    wanted = [k for k in range(len(dice)) if k != background]
    return (1 - dice[wanted]).mean() + functional.cross_entropy(scores, truth, ignore_index=VOID)
