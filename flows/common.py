"""What the flows share: artifacts, which must never stop a segmentation."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectException
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from wsiseg.errors import UsageError
from wsiseg.metrics import Scores
from wsiseg.predict import pick_device

logger = logging.getLogger(__name__)
T = TypeVar("T")

_API_ERRORS = (PrefectException, httpx.HTTPError, OSError)
_UPDATE_SECONDS = 10.0


def attempt(call: Callable[[], Any]) -> Any:
    """The result of an API call, or None where the API is not there: the run goes on without it."""
    try:
        return call()
    except _API_ERRORS as err:
        logger.warning("the Prefect API did not answer, the run goes on: %s", err)
        return None


def attempt_once(call: Callable[[], Any]) -> Any:
    """The same while there is a mask to make, which waits for nobody: Prefect itself tries for minutes."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        return attempt(call)


@contextmanager
def gpu_slot(device: str) -> Iterator[None]:
    """Holds a slot of the limit of the GPU that a device is; nothing on a CPU, or where no API answers.

    The limit is made with one slot where it is not there yet; `prefect gcl update` gives it more.
    """
    name = gpu_name(device)
    with ExitStack() as held:
        if name is not None and attempt_once(lambda: known_limit(name)):
            attempt(lambda: held.enter_context(concurrency(name)))
        try:
            yield
        finally:
            attempt_once(held.close)


def gpu_name(device: str) -> str | None:
    """The limit of a device: a GPU by its machine and its number there; None for what is none."""
    try:
        found = pick_device(device)
    except UsageError:
        return None  # each case says so
    if found.type != "cuda":
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = visible.split(",")[found.index or 0] if visible else found.index or 0
    return artifact_key("gpu", f"{socket.gethostname()}-{number}")


def known_limit(name: str) -> bool:
    """True once the server has the limit."""
    client = get_client(sync_client=True)
    try:
        client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        with suppress(ObjectAlreadyExists):  # by another case this moment
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    return True


def link(path: Path) -> str:
    """A file as a link in Markdown, whatever is in its name."""
    name = re.sub(r"([\\\[\]*_`<])", r"\\\1", path.name)
    return f"[{name}]({path.resolve().as_uri()})"


def artifact_key(kind: str, case: str) -> str:
    """A key that Prefect accepts: lower-case letters, digits and dashes only."""
    return f"{kind}-" + re.sub(r"[^a-z0-9]+", "-", case.lower()).strip("-")


def artifact_progress(items: Iterator[T], *, total: int, what: str) -> Iterator[T]:
    """Shows progress as an artifact, updated a few times a case: each update is one API call."""
    key = artifact_key("progress", what)
    artifact: UUID | None = attempt_once(lambda: create_progress_artifact(0.0, key=key, description=what))
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        due = done == total or time.monotonic() - last > _UPDATE_SECONDS
        if artifact is not None and due:
            update = partial(update_progress_artifact, artifact, 100.0 * done / total)
            if attempt_once(update) is None:
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
