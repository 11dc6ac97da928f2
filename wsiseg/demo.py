"""The whole job on what is shipped: a real slide, an annotated crop and an annotated volume with scores."""

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
VOLUME = "hippocampus_149"  # one of those that the shipped weights never saw
CROP_MPP = 0.5  # assumed, as on the card: the crop does not state it


def run_demo(
    out: Path, *, segment: Callable[..., Any] = segment, progress: Progress = no_progress
) -> tuple[Report, Report, Report]:
    """Segment the sample slide, a crop with the weights that left its patient out, and a volume."""
    slide = segment(SLIDE, out, progress=progress)
    crop = segment(
        SAMPLES / "ynet-breast8" / "images" / f"{CROP}.png",
        out,
        "demo-breast8-without-2204",
        annotations=SAMPLES / "ynet-breast8" / "masks" / f"{CROP}.png",
        mpp=CROP_MPP,
        progress=progress,
    )
    volume = segment(
        SAMPLES / "msd-hippocampus" / "images" / f"{VOLUME}.nii.gz",
        out,
        annotations=SAMPLES / "msd-hippocampus" / "labels" / f"{VOLUME}.nii.gz",
        progress=progress,
    )
    return slide, crop, volume
