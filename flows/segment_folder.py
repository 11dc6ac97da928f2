"""Flow `segment-folder`: slides and volumes of a folder, a pattern or a manifest, a case a task."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import asdict
from importlib import import_module
from typing import Any, Literal

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.common import artifact_key, attempt
from wsiseg.batch.discovery import Case
from wsiseg.batch.run import Batch, finish
from wsiseg.batch.segment import Folder, open_folder
from wsiseg.batch.summary import Summary
from wsiseg.batch.workers import Worker
from wsiseg.claims import Watch
from wsiseg.errors import CasesFailed

AHEAD = 2
"""Tasks given out per job: a server that is told of thousands at once becomes slow."""
SHOWN = 200
"""Rows of the table that Prefect keeps; all of them are in the folder of the results."""

_own = threading.local()


@task(cache_policy=NO_CACHE, task_run_name="{name}")
def segment_one(name: str, case: Case, batch: Batch) -> dict[str, Any]:
    """Segment one case of a batch; the ledger in its store is the cache, so that a retry continues."""
    if not hasattr(_own, "worker"):
        _own.worker, _own.watch = Worker(), Watch(lease_s=batch.lease_s)
    return {"case": name, **asdict(finish(batch, case, runner=_own.worker, watch=_own.watch))}


@flow(name="segment-cases", validate_parameters=False)
def segment_cases(opened: Folder, jobs: int) -> None:
    """The cases of a batch as tasks, a few of them ahead of those in work."""
    batch = opened.batch
    # What a task is sent is small: the batch without its cases.
    settings = Batch((), batch.out, batch.options, 1, batch.limit_s, batch.lease_s, batch.overwrite)
    waiting: deque[PrefectFuture[dict[str, Any]]] = deque()
    for case in batch.cases:
        if len(waiting) >= AHEAD * jobs:
            waiting.popleft().result(raise_on_failure=True)
            opened.told()
        waiting.append(segment_one.submit(case.name, case, settings))
    for future in waiting:
        future.result(raise_on_failure=True)
        opened.told()


@flow(name="segment-folder", validate_parameters=True)
def segment_folder(
    folder: str,
    out: str = "results",
    model: str | None = None,
    annotations: str | None = None,
    device: str | None = None,
    mpp: float | None = None,
    executor: Literal["auto", "streaming", "windowed"] | None = None,
    memory: int | None = None,
    taper: int | None = None,
    exact: bool | None = None,
    image: Literal["full", "model", "none"] | None = None,
    confidence: bool | None = None,
    tissue_filter: bool | None = None,
    allow_upsampling: bool | None = None,
    trust_code: bool | None = None,
    config: str | None = None,
    jobs: int = 1,
    part: str | None = None,
    overwrite: bool = False,
    dask: str | None = None,
) -> dict[str, Any]:
    """Segment the cases of FOLDER (or of a pattern, or a manifest) into OUT and return the summary.

    Parameters are the options of `wsiseg segment`. JOBS cases are worked on at once by this run; other runs
    on other workers may share the folder. With DASK, the address of a scheduler, its workers have the cases.
    Raises CasesFailed, once all others are finished, where a case has no result.
    """
    options = {
        name: value
        for name, value in locals().items()
        if name not in ("folder", "dask") and value is not None
    }
    opened = open_folder([folder], **options)
    try:
        segment_cases.with_options(task_runner=runner_of(jobs, dask))(opened, jobs)
    finally:
        summary = opened.written()
        publish(summary, opened.batch)
    if part is None and summary.finished < len(summary.cases):
        raise CasesFailed(sentence(summary, opened.batch))
    return summary.model_dump(mode="json", exclude={"cases"})


def runner_of(jobs: int, dask: str | None) -> TaskRunner[Any]:
    """Threads of this process, or the workers of a Dask cluster."""
    if dask is None:
        return ThreadPoolTaskRunner(max_workers=jobs)
    found: TaskRunner[Any] = import_module("prefect_dask").DaskTaskRunner(
        address=dask
    )  # only who has a cluster
    return found


def publish(summary: Summary, batch: Batch) -> None:
    """The batch as artifacts: a table of its cases, and where page and pictures are."""
    shown = [
        *(r for r in summary.cases if r.status != "finished"),
        *(r for r in summary.cases if r.status == "finished"),
    ]
    rows = [
        {"case": r.case, "status": r.status, "reason": r.error, "mean IoU": r.mean_iou, "picture": r.overlay}
        for r in shown[:SHOWN]
    ]
    key = artifact_key("batch", batch.out.resolve().name)
    attempt(lambda: create_table_artifact(table=rows, key=key, description="cases, those that failed first"))
    attempt(lambda: create_markdown_artifact(sentence(summary, batch), key=f"{key}-page"))


def sentence(summary: Summary, batch: Batch) -> str:
    """What a batch came to, and where that stands."""
    return (
        f"{summary.finished} of {len(summary.cases)} cases are finished, {summary.failed} failed, "
        f"{summary.not_finished} are not finished: see {batch.out.resolve() / 'index.html'}"
    )
