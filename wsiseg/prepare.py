"""From a request to a plan: what is opened, which settings hold, and what the store will record."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.annotations import Labels, open_truth, polygon_region
from wsiseg.annotations.polygons import PolygonLabels
from wsiseg.config import AnnotationRules, SegmentConfig
from wsiseg.copies import Cache
from wsiseg.errors import NoRoom, OutOfMemory, UsageError
from wsiseg.execution import choose_execution
from wsiseg.files import RESERVE, fingerprint, free_bytes, writing
from wsiseg.geometry import Region
from wsiseg.models.card import ModelCard
from wsiseg.models.zoo import DEFAULT_MODELS, load_card
from wsiseg.names import SUFFIX, case_name
from wsiseg.objects import ObjectPath, resolved
from wsiseg.plan import StorePlan
from wsiseg.predict import choose_backend, pick_device
from wsiseg.progress import Progress, no_progress
from wsiseg.smaller import left, smaller, tried
from wsiseg.sources import Source, image_files, open_source
from wsiseg.sources.resampled import LevelChoice, at_level, choose_level
from wsiseg.sources.volume import VolumeSource
from wsiseg.tissue import TissueMask, tissue_mask
from wsiseg.windows import WindowPlan

COARSE_READ_PX = 2048
"""Side of the pieces in which an image is read for its tissue mask or its picture."""
CELL = 4
"""Voxels a side of the grid on which the box round a body is found."""
RGB_SHARE, MASK_SHARE, CONFIDENCE_SHARE, PYRAMID = 0.85, 0.05, 0.7, 4 / 3
"""Bytes on disk per byte of pixels, on the safe side of what real slides gave, and for all levels."""
_NOT_DECISIVE = {
    "readers", "device", "memory", "trust_code", "limit_s", "lease_s", "cache", "cache_gb",
    "keep_identifiers", "structure",
    *AnnotationRules.model_fields,
}  # fmt: skip


SLAB_PX = 1 << 26
"""Of a slab by default, unless a row of chunks has more: a few copies are in memory while it is written."""
CHUNKS = {2: 512, 3: 64}
"""Side of a stored chunk of the mask, by number of axes."""


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    input: Path
    out: Path
    config: SegmentConfig
    model: str | Path | None = None
    annotations: Path | None = None
    region: Path | None = None
    overwrite: bool = False
    name: str | None = None

    @property
    def case(self) -> str:
        """Name of the case: as given, or the input's name without its suffix."""
        return self.name or case_name(self.input)

    @property
    def store(self) -> Path:
        """Folder of the result."""
        return self.out / f"{self.case}{SUFFIX}"


@dataclass(frozen=True)
class Job:
    """A request with everything opened that it names."""

    request: Request
    source: Source
    card: ModelCard
    model: str | Path
    choice: LevelChoice
    region: PolygonLabels | None
    truth: Labels | None
    inputs: dict[str, Any]

    @property
    def config(self) -> SegmentConfig:
        return self.request.config

    @property
    def image_source(self) -> Source | None:
        """The grid that is stored as an image, or None."""
        return {"full": self.source, "model": at_level(self.choice, self.choice.level), "none": None}[
            self.config.image
        ]

    @property
    def background(self) -> int | None:
        """The class that glass, or what is empty round a body, is set to; None: there is no filter."""
        filtered = self.source.geometry.axes == "yx" or self.card.preprocessing.foreground == "nonzero"
        return self.card.background if self.config.tissue_filter and filtered else None


def with_copies(request: Request, stack: ExitStack) -> Request:
    """A request whose inputs are files: copies, until the stack ends, of those in an object store."""
    cache = Cache.of(request.config)
    inputs: dict[str, Any] = {
        name: stack.enter_context(cache.copy(path))
        for name in ("input", "annotations", "region")
        if isinstance(path := getattr(request, name), ObjectPath)
    }
    return replace(request, name=request.case, **inputs) if inputs else request


def open_job(request: Request) -> Job:
    """Open input, model and region. Raises WsisegError where one of them cannot be used."""
    if resolved(request.store) == resolved(request.input):
        raise UsageError(f"the result would replace its own input {request.input}; choose another --out")
    named = load_card(request.model) if request.model else None
    modalities = named.modalities if named else ()
    source = open_source(request.input, request.config.mpp, modalities=modalities or None)
    model = request.model or DEFAULT_MODELS.get(source.geometry.axes)
    if model is None:
        raise UsageError(
            f"no model is shipped for images with axes {source.geometry.axes}; name one with --model"
        )
    card = named or load_card(model)
    if request.config.structure and source.geometry.axes != "yx":
        raise UsageError(f"{request.input} is a volume; --structure is for slides, leave it out")
    if isinstance(source, VolumeSource):
        source.check()  # what is no number in it is found before anything is written
    if card.axes != source.geometry.axes or card.channels != source.num_channels:
        raise UsageError(
            f"model {card.name} is for {card.channels} channels on axes {card.axes}; "
            f"{request.input} has {source.num_channels} on {source.geometry.axes}"
        )
    choice = choose_level(
        source,
        spacing=card.spacing.value if card.spacing else None,
        allow_upsampling=request.config.allow_upsampling,
    )
    region = None
    if request.region is not None:
        region = polygon_region(request.region, grid=source.geometry.shape, slide=request.input)
    inputs: dict[str, Any] = {
        "input": fingerprint(request.input, files=image_files(request.input)),
        "model": card.name,
        "model_identity": card.identity,
        "region": fingerprint(request.region) if request.region else None,
        "settings": request.config.model_dump(mode="json", exclude=_NOT_DECISIVE),
    }
    if request.config.confidence or request.config.views != "none":
        inputs["temperature"] = card.temperature  # else it decides no byte
    truth = None
    if request.annotations is not None:  # opened now: a mistake in it should not wait for the mask
        truth = open_truth(
            request.annotations,
            geometry=source.geometry,
            classes=card.classes,
            rules=request.config,
            slide=request.input,
            native=source.native if isinstance(source, VolumeSource) else None,
        )
    return Job(request, source, card, model, choice, region, truth, inputs)


def store_plan(job: Job, recorded: StorePlan | None) -> StorePlan:
    """What decides the bytes of the result; what was left open is taken over from a plan begun before."""
    config, geometry = job.config, job.source.geometry
    before = recorded.execution if recorded else {}
    device = pick_device(before.get("device_name", "auto") if config.device == "auto" else config.device)
    threads = config.threads or before.get("threads") or len(os.sched_getaffinity(0))
    model_grid = job.choice.geometry.shape
    chosen = choose_execution(job.card, config, model_grid, device=device, before=before)
    chosen |= {"model_grid": list(model_grid)}
    computed = choose_backend(
        job.model, job.card, config, chosen, device=device, threads=threads, before=before
    )
    ratio = geometry.shape[0] / model_grid[0]
    # About one row of windows: nothing is computed for a slab that is not written with it.
    core = min(config.core or job.card.windows.core, model_grid[0])
    chunk = config.chunk or CHUNKS[len(geometry.shape)]
    most = SLAB_PX // (chunk * math.prod(geometry.shape[1:]))
    rows = config.slab or max(1, min(round(min(core * ratio, 4096) / chunk), most)) * chunk
    if rows % chunk:
        raise UsageError(f"slab {rows} must be a multiple of chunk {chunk}")
    image = job.image_source
    return StorePlan(
        case=job.request.case,
        axes=geometry.axes,
        shape=geometry.shape,
        spacing=geometry.spacing,
        unit=geometry.unit,
        image_shape=image.geometry.shape if image else None,
        image_spacing=image.geometry.spacing if image else None,
        image_channels=job.source.num_channels,
        image_dtype=str(job.source.dtype),
        slab_rows=rows,
        chunk=chunk,
        classes=job.card.classes,
        inputs=job.inputs,
        execution={
            **computed,
            "device_name": str(device),
            "threads": threads if device.type == "cpu" else None,
            **chosen,
            **({"attempts": recorded.attempts} if recorded and recorded.attempts else {}),
        },
    )


def plan_with_less(job: Job, plan: StorePlan, *, why: str) -> StorePlan:
    """What comes after a plan that ran out of memory. Raises OutOfMemory where nothing smaller is left."""
    config, execution = job.config, plan.execution
    less = smaller(
        execution, stride=job.card.windows.output_stride, executor=config.executor, device=config.device
    )
    if less is None:
        raise OutOfMemory(
            f"memory ran out with {', then '.join(tried(execution))}, and nothing smaller is left to try "
            f"({why}); end other programs and run the same command again, or use a machine with more memory"
        )
    attempts = [*plan.attempts, left(execution, why=why)]
    return store_plan(job, plan.model_copy(update={"execution": {**less, "attempts": attempts}}))


def coarse_plan(choice: LevelChoice) -> WindowPlan:
    """Pieces of a coarse grid, each made from about COARSE_READ_PX pixels a side of the level read."""
    shape, from_shape = choice.geometry.shape, choice.level.geometry.shape
    side = tuple(max(16, COARSE_READ_PX * n // m) for n, m in zip(shape, from_shape, strict=True))
    return WindowPlan(shape=shape, core=side, halo=(0,) * len(shape))


def detect_tissue(job: Job, *, progress: Progress = no_progress) -> TissueMask:
    """Tissue of a slide on its fixed coarse grid, or the box round a body, read piece by piece."""
    if job.source.geometry.axes != "yx":
        return _body(job, progress)
    finest = max(job.source.geometry.spacing)
    spacing = max(job.config.tissue_grid_um, finest)
    choice = choose_level(job.source, spacing=spacing)
    coarse = at_level(choice, choice.level)
    shape = choice.geometry.shape
    rgb = np.empty((3, *shape), np.uint8)
    valid = np.empty(shape, bool)
    plan = coarse_plan(choice)
    for window in progress(plan.windows(), total=len(plan), what=f"{job.request.case} tissue"):
        pixels = coarse.read(window.core)
        rgb[(slice(None), *window.core)] = pixels.values
        valid[window.core] = pixels.valid
    used = max(choice.geometry.spacing)
    return tissue_mask(rgb, valid, spacing_um=used, margin_um=job.config.tissue_margin_um)


def _body(job: Job, progress: Progress) -> TissueMask:
    """The box that holds every voxel which is not 0 in all channels, a cell more on each side."""
    shape = job.source.geometry.shape
    grid = np.zeros([-(-n // CELL) for n in shape], bool)
    sides = tuple(max(CELL, b // CELL * CELL) for b in job.source.block)
    plan = WindowPlan(shape=shape, core=sides, halo=(0,) * len(shape))
    for window in progress(plan.windows(), total=len(plan), what=f"{job.request.case} foreground"):
        found = np.nonzero((job.source.read(window.core).values != 0).any(axis=0))
        if found[0].size:
            box = zip(found, window.core, strict=True)
            cells = (
                ((s.start + int(f.min())) // CELL for f, s in box),
                ((s.start + int(f.max())) // CELL for f, s in zip(found, window.core, strict=True)),
            )
            grid[tuple(slice(a, b + 1) for a, b in zip(*cells, strict=True))] = True
    if grid.any():
        ends = [(int(f.min()), int(f.max())) for f in np.nonzero(grid)]
        grid[tuple(slice(max(0, a - 1), b + 2) for a, b in ends)] = True
    return TissueMask(grid)


def wanted_regions(job: Job, tissue: TissueMask | None) -> Callable[[Region], bool]:
    """Says of a region of the model's grid whether it holds tissue inside the region of interest."""
    shape, l0_shape = job.choice.geometry.shape, job.source.geometry.shape
    roi = job.region

    def wanted(region: Region) -> bool:
        if tissue is not None and not tissue.any_in(region, shape=shape):
            return False
        return roi is None or roi.touches(_on_level0(region, shape, l0_shape))

    return wanted


def _on_level0(region: Region, shape: tuple[int, ...], l0_shape: tuple[int, ...]) -> Region:
    return tuple(
        slice(s.start * m // n, -(-s.stop * m // n)) for s, n, m in zip(region, shape, l0_shape, strict=True)
    )


def estimated_bytes(job: Job) -> int:
    """Size of the result on disk, on the safe side."""
    share = MASK_SHARE + (CONFIDENCE_SHARE if job.config.confidence else 0.0)
    mask = float(np.prod(job.source.geometry.shape)) * share
    image = job.image_source
    bytes_each = job.source.num_channels * job.source.dtype.itemsize
    pixels = bytes_each * float(np.prod(image.geometry.shape)) * RGB_SHARE if image else 0.0
    return int((mask + pixels) * PYRAMID)


def check_space(job: Job, *, left: float | None = None) -> int:
    """The estimated size of a result, or of the share of a begun one that is `left`, with a reserve.

    Raises NoRoom where the disk has no room for it, StoreError.
    """
    needed = int(estimated_bytes(job) * (1.0 if left is None else left)) + RESERVE
    with writing(job.request.out):
        free = free_bytes(job.request.out)
    if needed > free:
        begun = "" if left is None else "the rest of "
        hint = "make room" if begun or job.config.image == "none" else "use --image none or make room"
        raise NoRoom(
            f"{begun}{job.request.store} needs about {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; "
            f"{hint} and run the same command again"
        )
    return needed
