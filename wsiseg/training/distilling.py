"""Learning from what another network says, beside the annotations.

Source: Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from wsiseg.errors import ManifestError
from wsiseg.models.card import ModelCard
from wsiseg.models.layers import LINEAR
from wsiseg.models.registry import load_network
from wsiseg.models.zoo import load_card
from wsiseg.predict import understood
from wsiseg.training.losses import Objective, Parts, outputs_of
from wsiseg.training.patches import Batch
from wsiseg.training.run import Run

NAME = "distillation"


def soft_loss(scores: Tensor, taught: Tensor, *, temperature: float) -> Tensor:
    """T^2 KL(softmax(taught / T) || softmax(scores / T)), the mean over pixels, of scores (B, K, *axes).

    T^2 keeps the size of the gradients when the temperature changes (section 2 of the source).
    """
    said = functional.log_softmax(scores / temperature, dim=1)
    wanted = functional.log_softmax(taught / temperature, dim=1)
    each = functional.kl_div(said, wanted, reduction="none", log_target=True).sum(dim=1)
    return each.mean() * temperature**2


def check_teacher(run: Run) -> ModelCard | None:
    """The card of a run's teacher. Raises ModelError where it is not there, ManifestError if unsuited."""
    if run.distil is None:
        return None
    card = load_card(run.distil.teacher)
    if card.axes != run.axes or len(card.classes) != len(run.mask_classes):
        raise ManifestError(
            f"distil.teacher {card.name} has {len(card.classes)} classes on axes {card.axes}, the run "
            f"{len(run.mask_classes)} on {run.axes}"
        )
    if card.preprocessing != run.preprocessing:
        raise ManifestError(
            f"distil.teacher {card.name} was trained with another preprocessing than this run's: give the "
            "run the teacher's"
        )
    if card.scores == "probabilities":
        raise ManifestError(f"distil.teacher {card.name} gives probabilities, which no temperature softens")
    return card


class Distilled:
    """The losses of a run and that on what its teacher says; called as an Objective is."""

    def __init__(self, run: Run, objective: Objective, *, device: torch.device) -> None:
        assert run.distil is not None
        self._run, self._objective = run, objective
        self._card = load_card(run.distil.teacher)
        self._teacher = load_network(run.distil.teacher).to(device)

    def __call__(self, network: Any, made: Any, batch: Batch) -> Parts:
        distil = self._run.distil
        assert distil is not None
        parts = self._objective(network, made, batch)
        scores = outputs_of(made, ndim=len(self._run.axes))[0].float()
        with torch.inference_mode():
            taught = understood(self._card, self._teacher(batch.inputs), batch.inputs).scores.float()
        taught = taught.clone()  # what was made in inference mode takes no part in gradients
        if scores.shape != taught.shape:
            mode = LINEAR[len(self._run.axes)]
            scores = functional.interpolate(scores, taught.shape[2:], mode=mode, align_corners=False)
        loss = soft_loss(scores, taught, temperature=distil.temperature)
        return {**parts, NAME: loss * distil.weight}
