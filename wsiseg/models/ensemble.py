"""Several cards become one: an ensemble is a model like any other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from wsiseg.errors import ModelError
from wsiseg.files import writing
from wsiseg.models.averaging import Ensemble
from wsiseg.models.card import ModelCard, NetworkSpec, WindowSpec, check_new_card, write_card
from wsiseg.models.foreign import EXPORTED
from wsiseg.models.importing import window_spec
from wsiseg.models.registry import load_network
from wsiseg.models.weights import save_weights
from wsiseg.models.zoo import load_card

SAME = (
    "axes", "channels", "modalities", "classes", "groups", "background", "spacing", "preprocessing",
    "mask_resampling",
)  # fmt: skip
"""What members must have alike, for one card to speak for all of them."""


def combine(models: Sequence[str | Path], card: Path, *, overwrite: bool = False) -> ModelCard:
    """Write the card of an ensemble at `card` (.json), with all weights in one file beside it.

    The mask is the class of the highest mean probability; each member's temperature counts. Raises
    ModelError where the models do not go together.
    """
    check_new_card(card, overwrite=overwrite)
    if len(models) < 2:
        raise ModelError("an ensemble needs two models or more")
    cards = [load_card(model) for model in models]
    _check_alike(cards)
    network = Ensemble([load_network(model) for model in models], temperatures=[c.temperature for c in cards])
    weights = card.with_suffix(".safetensors")
    with writing(card):
        card.parent.mkdir(parents=True, exist_ok=True)
        sha256 = save_weights(network, weights)
    first = cards[0]
    members = [c.network.model_dump(mode="json") for c in cards]
    made = first.model_copy(
        update={
            "name": card.stem,
            "version": "1",
            "network": NetworkSpec(
                name="ensemble",
                arguments={"members": members, "temperatures": [c.temperature for c in cards]},
            ),
            "weights": weights.name,
            "sha256": sha256,
            "windows": _windows(network, cards),
            "scores": "probabilities",
            "temperature": 1.0,
            "training_data": _joined(c.training_data for c in cards),
            "licence": _joined(c.licence for c in cards),
            "quality": {
                "note": "not measured for the ensemble; those of its members are on their cards",
                "members": {c.name: c.sha256 for c in cards},
            },
            "limits": tuple(dict.fromkeys(limit for c in cards for limit in c.limits)),
        }
    )
    with writing(card):
        write_card(made, card)
    return made


def _check_alike(cards: Sequence[ModelCard]) -> None:
    first = cards[0]
    for other in cards:
        if other.network.name in EXPORTED.values():
            raise ModelError(f"model {other.name} is an exported graph, which cannot join an ensemble")
        if other.diagnoses or other.windows.size is not None:
            raise ModelError(f"model {other.name} speaks of whole windows, which an ensemble cannot")
        if other.scores == "probabilities":
            raise ModelError(f"model {other.name} gives probabilities; name its members instead")
        for field in SAME:
            if getattr(other, field) != getattr(first, field):
                raise ModelError(
                    f"models {first.name} and {other.name} differ in {field}: {_short(first, field)} and "
                    f"{_short(other, field)}; an ensemble needs it alike"
                )
        if other.windows.output_scale != first.windows.output_scale:
            raise ModelError(f"models {first.name} and {other.name} put out scores of different sizes")


def _short(card: ModelCard, field: str) -> str:
    text = json.dumps(card.model_dump(mode="json")[field])
    return text if len(text) <= 80 else f"{text[:77]}..."


def _windows(network: Ensemble, cards: Sequence[ModelCard]) -> WindowSpec:
    """What the graph says, with the largest default halo and cross-fade of a member."""
    spec = window_spec(network, ndim=len(cards[0].axes))
    own = [c.windows for c in cards]
    halos = [w.halo for w in own]
    update = {"core": min(w.core for w in own), "taper": max(w.taper for w in own)}
    if None not in halos:
        update["halo"] = max(h for h in halos if h is not None)
    return spec.model_copy(update=update)


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))
