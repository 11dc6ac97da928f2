"""The whole job on what is shipped: a real slide, and a real annotated crop with its scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsiseg.pipeline import segment
from wsiseg.progress import Progress, no_progress
from wsiseg.report import Report

SAMPLES = Path(__file__).parent / "samples"
SLIDE = SAMPLES / "CMU-1-Small-Region.svs"
CROP = "2204_1_18400_11800_1.33"
CROP_MPP = 0.5  # assumed, as on the card: the crop does not state it


def run_demo(
    out: Path, *, segment: Callable[..., Any] = segment, progress: Progress = no_progress
) -> tuple[Report, Report]:
    """Segment the sample slide, then a crop with the weights that left its patient out; both reports."""
    slide = segment(SLIDE, out, progress=progress)
    crop = segment(
        SAMPLES / "ynet-breast8" / "images" / f"{CROP}.png",
        out,
        "demo-breast8-without-2204",
        annotations=SAMPLES / "ynet-breast8" / "masks" / f"{CROP}.png",
        mpp=CROP_MPP,
        progress=progress,
    )
    return slide, crop
