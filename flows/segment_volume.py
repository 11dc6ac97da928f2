"""Flow `segment-volume`: one volume in, a mask on its own grid out."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow

from flows.segment_slide import segment_case


@flow(name="segment-volume", validate_parameters=True)
def segment_volume(
    volume: str,
    out: str = "results",
    model: str | None = None,
    annotations: str | None = None,
    device: str | None = None,
    executor: Literal["auto", "streaming", "windowed"] | None = None,
    backend: Literal["auto", "torch", "openvino", "onnxruntime"] | None = None,
    precision: Literal["float32", "bfloat16", "float16"] | None = None,
    memory: int | None = None,
    taper: int | None = None,
    exact: bool | None = None,
    image: Literal["full", "model", "none"] | None = None,
    confidence: bool | None = None,
    tissue_filter: bool | None = None,
    trust_code: bool | None = None,
    keep_identifiers: bool | None = None,
    config: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Segment a volume (a file, a DICOM series, a folder of modalities) into OUT and return the report.

    Parameters are the options of `wsiseg segment`; what is left open is as in the config file, or as
    the program has it.
    """
    options = dict(locals())
    return segment_case(options.pop("volume"), options)
