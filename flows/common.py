"""What the flows share: artifacts, which must never stop a segmentation."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

from wsiseg.metrics import Scores

logger = logging.getLogger(__name__)
T = TypeVar("T")

_API_ERRORS = (PrefectException, httpx.HTTPError, OSError)
_UPDATE_SECONDS = 10.0


def attempt(call: Callable[[], Any]) -> Any:
    """The result of an API call, or None where the API is not there: the run goes on without it."""
    try:
        return call()
    except _API_ERRORS as err:
        logger.warning("the Prefect API did not take an artifact: %s", err)
        return None


def artifact_key(kind: str, case: str) -> str:
    """A key that Prefect accepts: lower-case letters, digits and dashes only."""
    return f"{kind}-" + re.sub(r"[^a-z0-9]+", "-", case.lower()).strip("-")


def artifact_progress(items: Iterator[T], *, total: int, what: str) -> Iterator[T]:
    """Shows progress as an artifact, updated a few times a case: each update is one API call."""
    key = artifact_key("progress", what)
    artifact: UUID | None = attempt(lambda: create_progress_artifact(0.0, key=key, description=what))
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        due = done == total or time.monotonic() - last > _UPDATE_SECONDS
        if artifact is not None and due:
            update = partial(update_progress_artifact, artifact, 100.0 * done / total)
            if attempt(update) is None:
                artifact = None  # a dead API must not stall every slab
            last = time.monotonic()


def iou_table(scores: Scores, *, key: str) -> None:
    """The per-class scores as a table artifact."""

    def shown(value: float | None) -> str:
        return "absent" if value is None else f"{value:.4f}"

    rows = [
        {"class": c.name, "IoU": shown(c.iou), "Dice": shown(c.dice), "precision": shown(c.precision),
         "recall": shown(c.recall), "truth pixels": c.truth_pixels}
        for c in scores.classes
    ]  # fmt: skip
    rows.append({"class": "mean over classes present", "IoU": shown(scores.mean_iou)})
    attempt(lambda: create_table_artifact(table=rows, key=key, description="IoU per class"))
