"""Flow `evaluate`: scores of a mask against truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

import wsiseg
from flows.common import artifact_key, iou_table


@task(cache_policy=NO_CACHE)
def score_case(prediction: str, truth: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Score one prediction and publish the table."""
    scores = wsiseg.evaluate(prediction, truth, **options)
    iou_table(scores, key=artifact_key("iou", Path(prediction).name.removesuffix(".ome.zarr")))
    return scores.model_dump(mode="json")


@flow(name="evaluate", validate_parameters=True)
def evaluate(
    prediction: str,
    truth: str | None = None,
    corrected: str | None = None,
    out: str | None = None,
    model: str | None = None,
    input: str | None = None,
    class_names: str | None = None,
    annotation_overlap: Literal["later", "smaller"] | None = None,
    unannotated: Literal["ignore", "background"] | None = None,
    annotation_units: Literal["pixels", "micrometres"] | None = None,
    annotation_frame: Literal["level0", "bounds"] | None = None,
) -> dict[str, Any]:
    """Per-class IoU, Dice and more of PREDICTION against TRUTH; written to OUT as JSON if given.

    Parameters are the options of `wsiseg evaluate`.
    """
    options = dict(locals())
    return score_case(options.pop("prediction"), options.pop("truth"), options)
