"""What a training leaves: a table of losses, weights and their card."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from wsiseg.errors import ManifestError
from wsiseg.models.card import ModelCard, write_card
from wsiseg.models.importing import window_spec
from wsiseg.models.weights import save_weights
from wsiseg.training.run import AnyRun

Steps = Callable[[Iterable[int]], Iterable[int]]
"""Wraps the steps of one training, to show progress."""

LOG_EVERY = 20


@contextmanager
def loss_log(path: Path, run: AnyRun) -> Iterator[Callable[[int, float, float], None]]:
    """Takes in step, loss and learning rate; mean losses go to a CSV file every LOG_EVERY steps.

    Raises ManifestError for a loss that is not finite.
    """
    start = time.monotonic()
    losses: list[float] = []
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["step", "loss", "learning_rate", "seconds"])

        def note(step: int, loss: float, rate: float) -> None:
            losses.append(loss)
            if not math.isfinite(loss):
                raise ManifestError(
                    f"the loss is not finite at step {step}; lower learning_rate {run.learning_rate}"
                )
            if step % LOG_EVERY == 0 or step == run.steps:
                seconds = time.monotonic() - start
                table.writerow([step, f"{np.mean(losses):.5f}", f"{rate:.6f}", f"{seconds:.1f}"])
                stream.flush()
                losses.clear()

        yield note


def write_model(run: AnyRun, network: nn.Module, *, name: str, quality: dict[str, Any]) -> Path:
    """Weights and card of a trained network; returns the path of the card."""
    weights = run.out / f"{name}.safetensors"
    sha256 = save_weights(network, weights)
    card = ModelCard(
        name=name,
        network=run.network,
        weights=weights.name,
        sha256=sha256,
        axes=run.axes,
        channels=len(run.preprocessing.mean),
        classes=run.mask_classes,
        background=run.background,
        spacing=run.spacing,
        preprocessing=run.preprocessing,
        windows=window_spec(network, ndim=len(run.axes)),
        training_data=run.training_data,
        licence=run.licence,
        quality=quality,
        intended_use=run.intended_use,
        limits=run.limits,
    )
    path = run.out / f"{name}.json"
    write_card(card, path)
    return path
