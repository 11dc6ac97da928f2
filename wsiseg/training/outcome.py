"""What a training leaves: weights, their card, the run file and the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from wsiseg.files import to_json, write_whole, writing
from wsiseg.models.card import ModelCard, WindowSpec, write_card
from wsiseg.models.importing import window_spec
from wsiseg.models.weights import save_weights
from wsiseg.training.run import Run, write_run

NOT_YET = "0" * 64


def draft_card(run: Run, network: nn.Module) -> ModelCard:
    """The card of a run before it has weights: what inference needs to know."""
    return ModelCard(
        name=run.name,
        network=run.network,
        weights=f"{run.name}.safetensors",
        sha256=NOT_YET,
        axes=run.axes,
        channels=run.channels,
        modalities=run.data.modalities,
        classes=run.mask_classes,
        diagnoses=run.diagnoses,
        background=run.background,
        spacing=run.spacing,
        preprocessing=run.preprocessing,
        mask_resampling=run.mask_resampling,
        windows=_windows(run, network),
        training_data=run.card.training_data,
        licence=run.card.licence,
        intended_use=run.card.intended_use,
        limits=run.card.limits,
    )


def _windows(run: Run, network: nn.Module) -> WindowSpec:
    """What the network's graph says; one that sees its whole window gets windows like its patches.

    Norms over a window, and features pooled over it, are other ones where it is larger or partly empty.
    """
    spec = window_spec(network, ndim=len(run.axes))
    if spec.receptive_field is not None or hasattr(network, "input_size"):
        return spec
    return spec.model_copy(update={"sides": run.patch, "size": None})


def write_model(
    run: Run, network: nn.Module, draft: ModelCard, *, name: str, quality: dict[str, Any]
) -> Path:
    """Weights and card of a trained network, with its run file and result; returns the card's path."""
    weights = run.out / f"{name}.safetensors"
    path = run.out / f"{name}.json"
    with writing(run.out):
        sha256 = save_weights(network, weights)
        card = draft.model_copy(
            update={"name": name, "weights": weights.name, "sha256": sha256, "quality": quality}
        )
        write_card(card, path)
        write_run(run, run.out / f"{name}.run.yaml")
        write_whole(run.out / f"{name}.result.json", to_json({"sha256": sha256, **quality}))
    return path
