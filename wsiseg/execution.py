"""Which executor a case gets, and with which settings: what can change a float is decided here, once."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch

from wsiseg.config import SegmentConfig
from wsiseg.errors import ModelError, UsageError
from wsiseg.execute.base import Executor
from wsiseg.execute.decision import Confidence
from wsiseg.execute.schedule import Schedule, make_schedule, memory_bytes
from wsiseg.execute.streaming import Streaming, padded, streaming_settings
from wsiseg.execute.windowed import Windowed, balanced_core, window_settings
from wsiseg.graph.network import NetworkGraph
from wsiseg.memory import free_memory_bytes, ran_out
from wsiseg.models.card import ModelCard, WindowSpec, check_size
from wsiseg.models.foreign import in_short
from wsiseg.models.registry import NETWORKS, structure
from wsiseg.predict import NetworkPredictor, understood
from wsiseg.windows import AtBorders, WindowPlan, check_taper, plan_of_patches

logger = logging.getLogger(__name__)

WINDOW_SETTINGS = ("taper", "core", "halo", "batch", "views")
"""Settings that only windows have."""
MEMORY_SHARE = 0.5
"""Of the free memory, where the user names none."""
PROCESS_BYTES, COLUMN_BYTES = 600_000_000, {1: 10_000, 2: 10_000, 3: 4_000}
"""The program itself, and per column the rows that are decoded ahead and wait to be written, as measured."""
UNMEASURED_HALO = 32
"""Of volumes, unless --exact asks for more: 3D-ESPNet's windows would have 15 times the voxels."""
BAND_PX = 1 << 19
"""Pixels of a band at which a forward pass is fastest on a CPU."""
VOLUME_BAND_PX = 1 << 20
"""The same for volumes, whose features near the input are few."""
MIN_BAND, MAX_BAND = 128, 512
"""Rows of a band where memory allows: below, the work per call shows; beyond, nothing is gained."""


def window_plan(card: ModelCard, config: SegmentConfig, shape: tuple[int, ...]) -> WindowPlan:
    """Windows on the model's grid of `shape`. Raises UsageError where they do not suit the network."""
    if by_patches(card, config):
        assert card.windows.sides is not None
        return plan_of_patches(shape, sides=card.windows.sides)
    windows, halo = card.windows, _halo(card, config)
    side = config.core or windows.core
    try:
        if windows.size is None:
            core = balanced_core(shape, core=side, stride=windows.output_stride)
        else:  # small images are padded: the network knows no other size
            check_size(windows.size, core=side, halo=halo)
            core = (side,) * len(shape)
        plan = WindowPlan(
            shape=shape,
            core=core,
            halo=(halo,) * len(shape),
            stride=windows.output_stride,
            at_borders=at_borders(windows),
        )
        check_taper(plan, taper_of(card, config))
        _check_scores(card, config, plan)
    except ValueError as err:
        raise UsageError(str(err)) from None
    return plan


def by_patches(card: ModelCard, config: SegmentConfig) -> bool:
    """True where windows are like the patches that the network has learned from."""
    return card.windows.sides is not None and not (config.core or config.halo or config.exact)


def at_borders(windows: WindowSpec) -> AtBorders:
    """Where the windows of a network lie at the borders of an image."""
    if windows.output_region is not None:  # what lies at a window's own border gets no score
        return "beyond"
    return "smaller" if windows.size is None else "inside"


def _halo(card: ModelCard, config: SegmentConfig) -> int:
    windows = card.windows
    if config.exact:
        if windows.exact_halo is None:
            raise UsageError(f"--exact: model {card.name} sees its whole window, so no halo makes it exact")
        if config.halo is not None and config.halo < windows.exact_halo:
            raise UsageError(
                f"--exact needs a halo of {windows.exact_halo} pixels, {config.halo} was asked for"
            )
        return config.halo or windows.exact_halo
    if config.halo is not None:
        return config.halo
    if windows.halo is not None:
        return windows.halo
    # Not measured: only the exact one is known to be enough.
    assert windows.exact_halo is not None  # the card was checked
    return min(windows.exact_halo, UNMEASURED_HALO) if card.axes == "zyx" else windows.exact_halo


def taper_of(card: ModelCard, config: SegmentConfig) -> int:
    """Half-width of the cross-fade: what was asked for, or the model's own."""
    if config.taper is None and card.windows.sides is not None and by_patches(card, config):
        return min(card.windows.sides) // 4
    return card.windows.taper if config.taper is None else config.taper


def _check_scores(card: ModelCard, config: SegmentConfig, plan: WindowPlan) -> None:
    """Raises ValueError where a window's own pixels get no scores."""
    if card.windows.output_region is None:
        return
    first, count = card.windows.output_region
    taper = taper_of(card, config)
    for core, halo in zip(plan.core, plan.halo, strict=True):
        if halo - taper < first or halo + core + taper > first + count:
            raise ValueError(
                f"model {card.name} scores pixels {first} to {first + count - 1} of a window; core {core}, "
                f"halo {halo} and taper {taper} need others"
            )


def choose_execution(
    card: ModelCard,
    config: SegmentConfig,
    shape: tuple[int, ...],
    *,
    device: torch.device,
    before: dict[str, Any],
) -> dict[str, Any]:
    """The executor and its settings, for the store's plan; `before` is what a begun store recorded.

    Raises UsageError and ModelError where what was asked for cannot be.
    """
    if "executor" in before and config.executor in ("auto", before["executor"]):
        if before["executor"] == "streaming":
            return {key: before[key] for key in ("executor", "band")}
        return _windows(card, config, shape, reason=before.get("reason")) | {"batch": before["batch"]}
    own = [name for name in WINDOW_SETTINGS if getattr(config, name) != _default(name)]
    if config.executor == "windowed":
        if config.memory is not None:
            logger.warning("--memory %s is ignored: it belongs to streaming", config.memory)
        return _windows(card, config, shape, reason=None)
    if own and config.executor == "streaming":
        raise UsageError(f"{own[0]} {getattr(config, own[0])} belongs to windows; use --executor windowed")
    if own:
        belong = "belongs" if len(own) == 1 else "belong"
        return _windows(card, config, shape, reason=f"{' and '.join(own)} {belong} to windows")
    try:
        return streaming_settings(band=pick_band(card, config, shape, device=device))
    except (ModelError, NotEnoughMemory) as err:
        if config.executor == "streaming":
            kind = UsageError if isinstance(err, NotEnoughMemory) else ModelError
            raise kind(f"model {card.name} cannot be streamed: {err}; use --executor windowed") from None
        return _windows(card, config, shape, reason=f"model {card.name} cannot be streamed: {err}")


class NotEnoughMemory(Exception):
    """No band fits into the memory; the text says how much the smallest needs."""


def _default(name: str) -> Any:
    return SegmentConfig.model_fields[name].default


def _windows(
    card: ModelCard, config: SegmentConfig, shape: tuple[int, ...], *, reason: str | None
) -> dict[str, Any]:
    settings = window_settings(
        window_plan(card, config, shape), taper=taper_of(card, config), batch=config.batch
    )
    return settings if reason is None else {**settings, "reason": reason}


def pick_band(card: ModelCard, config: SegmentConfig, shape: tuple[int, ...], *, device: torch.device) -> int:
    """Rows of a band: the fastest that fits into the memory; the whole image where that is a window.

    Raises ModelError where the network cannot be streamed, NotEnoughMemory.
    """
    network = structure(card, trust_code=config.trust_code)
    graph = NetworkGraph(network, enlarge=card.windows.output_scale, ndim=len(shape))
    whole = padded(shape, stride=graph.output_stride)
    schedule = make_schedule(graph, whole, channels=card.channels)
    _check_output(schedule, card, whole)
    if all(n <= card.windows.core for n in shape):
        return whole[0]
    on_gpu = device.type == "cuda"
    budget = config.memory * 10**6 if config.memory else int(free_memory_bytes(device) * MEMORY_SHARE)
    columns = math.prod(whole[1:])
    room = budget - (0 if on_gpu else PROCESS_BYTES + COLUMN_BYTES[len(shape)] * columns)
    fastest = MAX_BAND if on_gpu else BAND_PX // columns
    stride = graph.output_stride
    band = stride
    # A row of a volume is a whole slice: few of them are work enough.
    fewest = MIN_BAND if len(shape) == 2 else min(MIN_BAND, VOLUME_BAND_PX // columns) // 2 + 1
    while band < min(max(fastest // 2 + 1, fewest), MAX_BAND):
        band *= 2
    while band > stride and memory_bytes(schedule, band=band) > room:
        band = max(stride, band // 2 // stride * stride)
    least = memory_bytes(schedule, band=band)
    if least > room:
        needed = (least + budget - room) // 10**6 + 1
        row = " x ".join(map(str, shape[1:]))
        raise NotEnoughMemory(
            f"rows of {row} pixels need {needed} MB of memory, and {budget // 10**6} MB are allowed"
        )
    return min(band, whole[0])


def _check_output(schedule: Schedule, card: ModelCard, shape: tuple[int, ...]) -> None:
    made = schedule.shapes[schedule.graph.outputs[0]]
    if made != (len(card.classes), *shape):
        raise ModelError(
            f"its output for an image of {shape} pixels is {made}, not a score per class and pixel"
        )


def try_execution(execution: dict[str, Any], predictor: NetworkPredictor) -> None:
    """Run one batch of empty windows, before anything is written. Raises ModelError.

    What streams was followed layer by layer, and needs no trial.
    """
    card, sides = predictor.card, execution.get("window", ())
    shape = (execution["batch"], card.channels, *sides) if sides else ()
    if not sides or _fits_without_numbers(card, shape):
        return
    images = np.zeros(shape, np.uint8)
    try:
        predictor(images)
    except ModelError:
        raise
    except Exception as err:  # what others' networks raise is theirs to choose
        if ran_out(err):
            raise
        size = " x ".join(map(str, sides))
        raise ModelError(
            f"model {predictor.card.name} cannot be run on {execution['batch']} window(s) of {size} "
            f"pixels: {in_short(err)}"
        ) from None


def _fits_without_numbers(card: ModelCard, shape: tuple[int, ...]) -> bool:
    """True where the shapes alone show that a network of this program takes windows; False: not known."""
    if card.network.name not in NETWORKS:
        return False
    inputs = torch.empty(shape, device="meta")
    try:
        understood(card, structure(card)(inputs), inputs)
    except Exception:  # noqa: BLE001 - the trial with numbers says what is wrong, if anything is
        return False
    return True


def make_executor(
    execution: dict[str, Any],
    predictor: NetworkPredictor,
    config: SegmentConfig,
    shape: tuple[int, ...],
    *,
    scores: bool = False,
    confidence: Confidence | None = None,
) -> Executor:
    """The executor that a plan describes, on the model's grid of `shape`.

    With `scores` or `confidence` it hands these on, too.
    """
    kept: dict[str, Any] = {"scores": scores, "confidence": confidence}
    if execution["executor"] == "streaming":
        return Streaming(predictor, shape, band=execution["band"], **kept)
    plan = window_plan(predictor.card, config, shape)
    taper = taper_of(predictor.card, config)
    return Windowed(predictor, plan, taper=taper, batch=execution["batch"], **kept)
