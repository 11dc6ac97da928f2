"""What a run says about a case: provenance, areas, scores, and where time went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WrapValidator

from wsiseg.classes import VOID, MaskClass
from wsiseg.geometry import Geometry
from wsiseg.metrics import Scores
from wsiseg.models.card import RESEARCH_USE
from wsiseg.objects import to_path
from wsiseg.reliability import SURE, Calibration
from wsiseg.structure import Structure
from wsiseg.volume_scores import VolumeScores


def _placed(value: Any, usual: Callable[[Any], Path]) -> Path:
    return to_path(value) if isinstance(value, str) and value.startswith("s3://") else usual(value)


Place = Annotated[Path, WrapValidator(_placed)]
"""Of a file or object."""


class ClassArea(BaseModel):
    """How much of the mask a class covers: an area on a slide, a volume in a body."""

    model_config = ConfigDict(frozen=True)

    index: int
    name: str
    color: str | None = Field(None, description="in pictures, #rrggbb")
    pixels: int
    area_mm2: float | None = Field(description="None for volumes")
    volume_ml: float | None = Field(None, description="None for slides")
    share: float = Field(description="of all pixels that have a class, 0..1")
    mean_confidence: float | None = Field(
        None, description="probability of the class where a network chose it, 0..1; None if not asked for"
    )


class VoidReport(BaseModel):
    """Pixels without a class (255)."""

    model_config = ConfigDict(frozen=True)

    unreadable_pixels: int
    unreadable_share: float
    places: tuple[tuple[int, ...], ...] = Field(description="y0, y1, x0, x1 in level-0 pixels")
    outside_region_pixels: int


class WorkReport(BaseModel):
    """What went through the network, in pixels of the image at the model's pixel size."""

    model_config = ConfigDict(frozen=True)

    computed_pixels: int
    repeated_pixels: int = Field(description="of these, the ones that had gone through before")
    repeated_share: float = Field(description="repeated per pixel that went through once, 0 for streaming")


class DiagnosisReport(BaseModel):
    """What the network said of the windows that hold tissue."""

    model_config = ConfigDict(frozen=True)

    names: tuple[str, ...]
    windows: int
    mean: tuple[float, ...] = Field(description="of the probabilities of all windows")
    highest: tuple[float, ...] = Field(description="in any window")
    table: Place = Field(description="CSV: one row a window, level-0 pixels")
    picture: Place


class ConfidenceReport(BaseModel):
    """How sure the network was; where it decided nothing (glass, void) there is no confidence."""

    model_config = ConfigDict(frozen=True)

    pixels: int = Field(description="that a network decided, without the background")
    mean: float | None = Field(description="of these pixels, 0..1")
    picture: Place
    nifti: Place | None = Field(None, description="of a volume: the confidence on the input's own grid")
    calibration: Calibration | None = Field(None, description="confidence against the annotations, if given")


class Report(BaseModel):
    """Everything worth knowing about a segmented case. Stored as JSON beside the mask."""

    model_config = ConfigDict(frozen=True)

    case: str
    status: Literal["segmented", "already complete"]
    notice: str = RESEARCH_USE
    store: Place
    overlay: Place
    report: Place
    input: dict[str, Any]
    model: dict[str, Any]
    execution: dict[str, Any]
    work: WorkReport
    settings: dict[str, Any]
    versions: dict[str, str]
    nifti: Place | None = Field(None, description="of a volume: the mask on the input's own grid")
    mask_shape: tuple[int, ...]
    tissue_share: float | None
    classes: tuple[ClassArea, ...]
    void: VoidReport
    confidence: ConfidenceReport | None = None
    diagnosis: DiagnosisReport | None = None
    structure: Structure | None = Field(
        None, description="how the tissue is built, see docs/structure.md; None if not asked for"
    )
    scores: Scores | None = None
    volume_scores: VolumeScores | None = None
    annotations: dict[str, Any] | None = None
    identifiers: dict[str, str] | None = Field(
        None, description="what the file says of patient, specimen and hospital; None if not asked for"
    )
    seconds: dict[str, float]
    bytes: dict[str, int]
    remarks: tuple[str, ...] = ()


class Stopwatch:
    """Seconds per stage; a stage that runs several times adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def rounded(self) -> dict[str, float]:
        """Seconds to the millisecond."""
        return {name: round(value, 3) for name, value in self.seconds.items()}


def mean_confidence(sums: Sequence[int]) -> float | None:
    """Probability 0..1 from [pixels that a network decided, sum of their confidence]; None without pixels."""
    pixels, total = sums
    return total / (SURE * pixels) if pixels else None


def class_areas(
    counts: dict[int, int],
    classes: Sequence[MaskClass],
    *,
    geometry: Geometry,
    sums: Mapping[int, Sequence[int]] | None = None,
) -> tuple[ClassArea, ...]:
    """Area (volume) and share of every class from pixel counts by class index.

    With `sums`, what `mean_confidence` takes, also the mean confidence.
    """
    total = sum(n for value, n in counts.items() if value != VOID)
    flat = geometry.axes == "yx"
    # Slides are in µm and their areas in mm², volumes in mm and theirs in ml.
    size = geometry.pixel_area / (1e6 if flat else 1e3)
    return tuple(
        ClassArea(
            index=c.index,
            name=c.name,
            color="#{:02x}{:02x}{:02x}".format(*c.color),
            pixels=counts.get(c.index, 0),
            area_mm2=round(counts.get(c.index, 0) * size, 6) if flat else None,
            volume_ml=None if flat else round(counts.get(c.index, 0) * size, 6),
            share=counts.get(c.index, 0) / total if total else 0.0,
            mean_confidence=mean_confidence((sums or {}).get(c.index, (0, 0))),
        )
        for c in classes
    )


def versions() -> dict[str, str]:
    """Versions of what takes part in making a mask."""
    names = (
        "wsiseg",
        "torch",
        "numpy",
        "zarr",
        "openslide-python",
        "openslide-bin",
        "tifffile",
        "imagecodecs",
        "pydicom",
        "wsidicom",
        "scikit-image",
    )
    return {name: version(name) for name in names}
