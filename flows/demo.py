"""The demonstration through the flows `segment-slide` and `segment-volume`, on Prefect's embedded server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import flow

from flows.segment_slide import segment_slide
from flows.segment_volume import segment_volume
from wsiseg.demo import run_demo
from wsiseg.display import print_demo
from wsiseg.report import Report


def through_flow(slide: Path, out: Path, model: str | None = None, **options: Any) -> Report:
    """A case through the flow; progress is the flow's own."""
    options.pop("progress", None)
    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    parameters: dict[str, Any] = {"out": str(out), "model": model, **given}
    if slide.name.endswith(".nii.gz"):
        return Report.model_validate(segment_volume(volume=str(slide), **parameters))
    return Report.model_validate(segment_slide(slide=str(slide), **parameters))


@flow(name="demo", log_prints=False)
def demo(out: str = "demo") -> None:
    """Segment the shipped slide, score an annotated crop and a volume, and say where to look."""
    print_demo(*run_demo(Path(out), segment=through_flow))


if __name__ == "__main__":
    demo(*sys.argv[1:2])
