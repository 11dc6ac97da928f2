"""A checkpoint or an exported graph becomes a card with its weights beside it."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsiseg.classes import anonymous_classes
from wsiseg.errors import ModelError
from wsiseg.files import write_whole, writing
from wsiseg.graph.network import NetworkGraph
from wsiseg.models.card import (
    ModelCard,
    NetworkSpec,
    Preprocessing,
    WindowSpec,
    check_new_card,
    sha256_of,
    write_card,
)
from wsiseg.models.foreign import EXPORTED, in_short, load_exported
from wsiseg.models.originals import recognise
from wsiseg.models.registry import build_network
from wsiseg.models.weights import fill, read_checkpoint, save_weights

AXES = {2: "yx", 3: "zyx"}
FIXED_STRIDE = 8
"""Of windows for a network that takes one size, where 8 divides it: it knows no grid but its window's."""
CORES = {1: 1024, 2: 1024, 3: 128}
"""Kept part of a window by axes: up to that size an image goes through in one piece."""
WINDOWS: dict[int, dict[str, int]] = {
    2: {"output_stride": 32, "core": 320, "halo": 96, "taper": 32},
    3: {"output_stride": 16, "core": 96, "halo": 16, "taper": 8, "size": 128},
}
"""For a network that sees all of its window and takes any, by axes: sides of 512 and of 128, which are
whole after five halvings."""

ANY_SIDES = {"core": 128, "halo": 8, "taper": 8}
"""For one that says of itself that any sides will do: windows that divide a volume evenly, whose halos
cost little; a wider one costs more and agrees better with one pass."""


@dataclass(frozen=True)
class Imported:
    """A network with its weights, and what is known of how it wants its images."""

    network: nn.Module
    spec: NetworkSpec
    preprocessing: Preprocessing
    channels: int
    ndim: int


def import_checkpoint(
    checkpoint: Path,
    card: Path,
    *,
    network: str | None = None,
    arguments: dict[str, Any] | None = None,
    trust_code: bool = False,
    overwrite: bool = False,
) -> ModelCard:
    """Write the card at `card` (.json) and the weights beside it. Raises ModelError.

    A published checkpoint is recognised by its keys; for another one `network` and `arguments` say
    what it belongs to. An ONNX graph, or one of `torch.export` (whose file the user must trust), is
    taken as it is. What the file does not hold (class names, spacing, training data) is left open on
    the card, and says so.
    """
    check_new_card(card, overwrite=overwrite)
    suffix = checkpoint.suffix.lower()
    if (suffix in EXPORTED and network is not None) or (network is None and arguments):
        raise ModelError(
            "--network, with --arguments, says what a checkpoint belongs to that its keys do not tell"
        )
    if suffix in EXPORTED:
        found = _exported(checkpoint, trust_code=trust_code)
    elif network is not None:
        found = _named(checkpoint, network, arguments or {}, trust_code=trust_code)
    else:
        found = _recognised(checkpoint)
    spec = window_spec(found.network, ndim=found.ndim)
    classes, diagnoses = _try(found, spec, name=str(checkpoint))
    weights = card.with_suffix(suffix if suffix in EXPORTED else ".safetensors")
    with writing(card):
        card.parent.mkdir(parents=True, exist_ok=True)
        if suffix not in EXPORTED:
            sha256 = save_weights(found.network, weights)
        else:
            if weights.resolve() != checkpoint.resolve():
                write_whole(weights, checkpoint.read_bytes())
            sha256 = sha256_of(weights)
    made = ModelCard(
        name=card.stem,
        network=found.spec,
        weights=weights.name,
        sha256=sha256,
        axes=AXES[found.ndim],
        channels=found.channels,
        classes=anonymous_classes(classes),
        diagnoses=tuple(f"diagnosis {i}" for i in range(diagnoses)),
        background=None,
        spacing=None,
        preprocessing=found.preprocessing,
        windows=spec,
        training_data=f"not stated in the checkpoint {checkpoint.name}",
        licence="that of the checkpoint",
        intended_use="to be filled in by whoever imported the checkpoint",
        limits=(
            "class names and pixel size are not in the checkpoint: edit this card before use",
            "preprocessing is that of the original code, or pixels / 255 where there is none known",
        ),
    )
    with writing(card):
        write_card(made, card)
    return made


def _plain(channels: int) -> Preprocessing:
    """Pixels divided by 255."""
    return Preprocessing(mean=(0.0,) * channels, std=(255.0,) * channels)


def _recognised(checkpoint: Path) -> Imported:
    recognised = recognise(read_checkpoint(checkpoint), name=str(checkpoint))
    arguments = recognised.arguments
    network = build_network(recognised.network, **arguments)
    fill(network, recognised.state, name=str(checkpoint), called=recognised.name_in_file)
    channels = arguments["channels"]
    # What the original code does to its three or four channels says nothing of another number.
    known = recognised.preprocessing if len(recognised.preprocessing.mean) == channels else _plain(channels)
    spec = NetworkSpec(name=recognised.network, arguments=arguments)
    return Imported(network.eval(), spec, known, channels=channels, ndim=_axes_of(network))


def _named(checkpoint: Path, name: str, arguments: dict[str, Any], *, trust_code: bool) -> Imported:
    network = build_network(name, trust_code=trust_code, **arguments)
    fill(network, read_checkpoint(checkpoint), name=str(checkpoint))
    channels = _channels_of(network)
    spec = NetworkSpec(name=name, arguments=arguments)
    return Imported(network.eval(), spec, _plain(channels), channels=channels, ndim=_axes_of(network))


def _exported(checkpoint: Path, *, trust_code: bool) -> Imported:
    if not checkpoint.is_file():
        raise ModelError(
            f"{checkpoint} is no file" if checkpoint.exists() else f"no such checkpoint: {checkpoint}"
        )
    name = EXPORTED[checkpoint.suffix.lower()]
    network = load_exported(name, checkpoint, trust_code=trust_code)
    if network.ndim not in AXES:
        raise ModelError(f"{checkpoint} takes images of {network.ndim} axes; 2 and 3 are supported")
    channels = network.channels
    spec = NetworkSpec(name=name)
    return Imported(network.eval(), spec, _plain(channels), channels=channels, ndim=network.ndim)


def _axes_of(network: nn.Module) -> int:
    """Spatial axes of a network, told by its convolutions."""
    axes = {m.weight.ndim - 2 for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)}
    if len(axes) != 1:
        raise ModelError(f"the network has convolutions over {sorted(axes)} axes; it must be over 2 or 3")
    return axes.pop()


def _channels_of(network: nn.Module) -> int:
    """Channels of a network's image, told by its first convolution."""
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
    return first.in_channels


def _try(found: Imported, windows: WindowSpec, *, name: str) -> tuple[int, int]:
    """Classes and diagnoses that a network puts out for a window of zeros. Raises ModelError."""
    side = windows.size or max(64, 2 * windows.output_stride)
    try:
        with torch.inference_mode():
            made = found.network(torch.zeros(1, found.channels, *(side,) * found.ndim))
    except Exception as err:  # noqa: BLE001 - what others' networks raise is theirs to choose
        raise ModelError(
            f"{name} cannot be run on a window of {side} pixels a side: {in_short(err)}"
        ) from None
    scores, *others = made if isinstance(made, tuple | list) and made else (made,)
    if not isinstance(scores, torch.Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ModelError(f"{name} puts out {kind}; a score for every class and pixel is needed")
    expected = side // windows.output_scale
    if windows.output_region is not None:
        expected = windows.output_region[1]
    if tuple(scores.shape[2:]) != (expected,) * found.ndim:
        raise ModelError(
            f"{name} makes {tuple(scores.shape[2:])} scores for a window of {side} pixels a side; "
            f"{expected} a side were expected"
        )
    per_window = others[0].shape[1] if others and others[0].ndim == 2 else 0
    return int(scores.shape[1]), int(per_window)


def window_spec(network: nn.Module, *, ndim: int | None = None) -> WindowSpec:
    """What the network's graph says about windows; the default halo is left to be measured.

    A network that takes one size only gets windows of that size, and one that sees more than a fixed
    neighbourhood windows of a fixed size too: both with a cross-fade, and no halo is exact.
    """
    network = copy.deepcopy(network).eval()  # norms are local in evaluation only
    if hasattr(network, "input_size"):
        return _only_size(network)
    ndim = ndim or _axes_of(network)
    try:
        return _exact(network, ndim=ndim)
    except ModelError:
        stride = getattr(network, "window_stride", None)
        sides = WINDOWS[ndim] if stride is None else {"output_stride": stride, **ANY_SIDES}
        return WindowSpec(receptive_field=None, exact_halo=None, **sides)


def _only_size(network: Any) -> WindowSpec:
    """Windows of the one size that a network takes, two thirds of a side kept."""
    if len(set(network.input_size)) != 1:
        raise ModelError(
            f"the network takes windows of {network.input_size} pixels; equal sides are supported"
        )
    size = network.input_size[0]
    region = None
    first, count = 0, size
    if hasattr(network, "output_offset"):
        first, count = region = network.output_offset[0], network.output_size[0]
    stride, taper = math.gcd(size, FIXED_STRIDE), size // 16
    unscored = max(first, size - first - count)
    halo = -(-max(unscored + taper, size // 6) // stride) * stride
    return WindowSpec(
        output_stride=stride, receptive_field=None, exact_halo=None, size=size,
        output_region=region, core=size - 2 * halo, halo=halo, taper=taper,
    )  # fmt: skip


def _exact(network: nn.Module, *, ndim: int) -> WindowSpec:
    graph = NetworkGraph(network, ndim=ndim)
    scale = graph.output_scale
    if scale > 1:
        # Scores are enlarged to the input's grid, which takes in their neighbours too.
        graph = NetworkGraph(network, enlarge=scale, ndim=ndim)
    reach = graph.reach(axis=0)
    return WindowSpec(
        output_stride=graph.output_stride,
        output_scale=scale,
        receptive_field=(reach.before, reach.after),
        exact_halo=graph.exact_halo(axis=0),
        core=CORES[ndim],
    )
