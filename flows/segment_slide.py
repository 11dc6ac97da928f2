"""Flow `segment-slide`: one slide in, a full-resolution mask out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

import wsiseg
from flows.common import artifact_key, artifact_progress, attempt, gpu_slot, iou_table, link
from wsiseg.config import make_config


@task(cache_policy=NO_CACHE)
def segment_case(slide: str, options: dict[str, Any]) -> dict[str, Any]:
    """Segment one case; the ledger in its store is the cache, so a retry continues."""
    file = options.get("config")
    settings = make_config({"device": options.get("device")}, file=Path(file) if file else None)
    with gpu_slot(settings.device):
        report = wsiseg.segment(slide, progress=artifact_progress, **options)
    if report.scores is not None:
        iou_table(report.scores, key=artifact_key("iou", report.case))
    files = "\n".join(f"- {link(path)}" for path in (report.overlay, report.store))
    attempt(lambda: create_markdown_artifact(files, key=artifact_key("files", report.case)))
    return report.model_dump(mode="json")


@flow(name="segment-slide", validate_parameters=True)
def segment_slide(
    slide: str,
    out: str = "results",
    model: str | None = None,
    annotations: str | None = None,
    class_names: str | None = None,
    annotation_overlap: Literal["later", "smaller"] | None = None,
    unannotated: Literal["ignore", "background"] | None = None,
    annotation_units: Literal["pixels", "micrometres"] | None = None,
    annotation_frame: Literal["level0", "bounds"] | None = None,
    region: str | None = None,
    device: str | None = None,
    mpp: float | None = None,
    executor: Literal["auto", "streaming", "windowed"] | None = None,
    backend: Literal["auto", "torch", "openvino", "onnxruntime"] | None = None,
    precision: Literal["float32", "bfloat16", "float16"] | None = None,
    memory: int | None = None,
    taper: int | None = None,
    exact: bool | None = None,
    image: Literal["full", "model", "none"] | None = None,
    confidence: bool | None = None,
    structure: bool | None = None,
    tissue_filter: bool | None = None,
    allow_upsampling: bool | None = None,
    trust_code: bool | None = None,
    keep_identifiers: bool | None = None,
    config: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Segment a slide into OUT and return the report.

    Parameters are the options of `wsiseg segment`; what is left open is as in the config file, or as
    the program has it.
    """
    options = dict(locals())
    return segment_case(options.pop("slide"), options)
