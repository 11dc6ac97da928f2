"""Flow `evaluate`: scores of a mask against truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

import wsiseg
from flows.common import artifact_key, iou_table


@task(cache_policy=NO_CACHE)
def score_case(prediction: str, truth: str, out: str | None, model: str | None) -> dict[str, Any]:
    """Score one prediction and publish the table."""
    scores = wsiseg.evaluate(prediction, truth, out=out, model=model)
    iou_table(scores, key=artifact_key("iou", Path(prediction).name.removesuffix(".ome.zarr")))
    return scores.model_dump(mode="json")


@flow(name="evaluate", validate_parameters=True)
def evaluate(prediction: str, truth: str, out: str | None = None, model: str | None = None) -> dict[str, Any]:
    """Per-class IoU, Dice and more of PREDICTION against TRUTH; written to OUT as JSON if given."""
    return score_case(prediction, truth, out, model)
