"""An original checkpoint becomes safetensors and a card."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

from wsiseg.classes import anonymous_classes
from wsiseg.errors import ModelError
from wsiseg.files import writing
from wsiseg.models.card import ModelCard, NetworkSpec, WindowSpec, write_card
from wsiseg.models.graph import NetworkGraph
from wsiseg.models.originals import recognise
from wsiseg.models.registry import build_network
from wsiseg.models.weights import fill, read_checkpoint, save_weights


def import_checkpoint(checkpoint: Path, card: Path) -> ModelCard:
    """Write the card at `card` (.json) and the weights beside it. Raises ModelError.

    Nothing in the checkpoint is executed. What it does not hold (class names, spacing, training
    data) is left open on the card, and says so.
    """
    if card.suffix != ".json":
        raise ModelError(f"a card is a .json file, got {card}")
    recognised = recognise(read_checkpoint(checkpoint), name=str(checkpoint))
    network = build_network(recognised.network, **recognised.arguments)
    fill(network, recognised.state, name=str(checkpoint))
    weights = card.with_suffix(".safetensors")
    with writing(card):
        card.parent.mkdir(parents=True, exist_ok=True)
        sha256 = save_weights(network.eval(), weights)
    made = ModelCard(
        name=card.stem,
        network=NetworkSpec(name=recognised.network, arguments=recognised.arguments),
        weights=weights.name,
        sha256=sha256,
        channels=recognised.arguments["channels"],
        classes=anonymous_classes(recognised.arguments["classes"]),
        background=None,
        spacing=None,
        preprocessing=recognised.preprocessing,
        windows=window_spec(network),
        training_data=f"not stated in the checkpoint {checkpoint.name}",
        licence="that of the checkpoint",
        intended_use="to be filled in by whoever imported the checkpoint",
        limits=(
            "class names and pixel size are not in the checkpoint: edit this card before use",
            "preprocessing is that of the original code; the checkpoint itself does not say",
        ),
    )
    with writing(card):
        write_card(made, card)
    return made


def window_spec(network: nn.Module) -> WindowSpec:
    """What the network's graph says about windows; the default halo is left to be measured."""
    network = copy.deepcopy(network).eval()  # norms are local in evaluation only
    graph = NetworkGraph(network)
    scale = graph.output_scale
    if scale > 1:
        # Scores are enlarged to the input's grid, which takes in their neighbours too.
        graph = NetworkGraph(network, enlarge=scale)
    reach = graph.reach(axis=0)
    return WindowSpec(
        output_stride=graph.output_stride,
        output_scale=scale,
        receptive_field=(reach.before, reach.after),
        exact_halo=graph.exact_halo(axis=0),
    )
