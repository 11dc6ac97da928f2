"""Flow `segment-folder`: slides and volumes of a folder, a pattern or a manifest, a case a task."""

from __future__ import annotations

from collections import deque
from importlib import import_module
from typing import Any, Literal

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.common import artifact_key, attempt, link
from flows.segment_one import segment_one
from wsiseg.batch.run import Batch
from wsiseg.batch.segment import Folder, open_folder
from wsiseg.batch.summary import Summary
from wsiseg.errors import CasesFailed

AHEAD = 2
"""Tasks given out per job: a server that is told of thousands at once becomes slow."""
SHOWN = 200
"""Rows of the table that Prefect keeps; all of them are in the folder of the results."""


def segment_cases(opened: Folder, runner: TaskRunner[Any], *, jobs: int) -> None:
    """The cases of a batch as tasks, a few of them ahead of those in work.

    No flow run of their own: that would have to ask the server, which may be away by now.
    """
    batch = opened.batch
    # What a task is sent is small: the batch without its cases.
    settings = Batch((), batch.out, batch.options, 1, batch.limit_s, batch.lease_s, batch.overwrite)
    waiting: deque[PrefectFuture[dict[str, Any]]] = deque()
    for case in batch.cases:
        if len(waiting) >= AHEAD * jobs:
            waiting.popleft().result(raise_on_failure=True)
            opened.told()
        waiting.append(runner.submit(segment_one, {"name": case.name, "case": case, "batch": settings}))
    for future in waiting:
        future.result(raise_on_failure=True)
        opened.told()


@flow(name="segment-folder", validate_parameters=True)
def segment_folder(
    folder: str,
    out: str = "results",
    model: str | None = None,
    annotations: str | None = None,
    class_names: str | None = None,
    annotation_overlap: Literal["later", "smaller"] | None = None,
    unannotated: Literal["ignore", "background"] | None = None,
    annotation_units: Literal["pixels", "micrometres"] | None = None,
    annotation_frame: Literal["level0", "bounds"] | None = None,
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
    jobs: int = 1,
    part: str | None = None,
    overwrite: bool = False,
    dask: str | None = None,
) -> dict[str, Any]:
    """Segment the cases of FOLDER (or of a pattern, or a manifest) into OUT and return the summary.

    Parameters are the options of `wsiseg segment`. JOBS cases are worked on at once by this run; other runs
    on other workers may share the folder. With DASK, the address of a scheduler, its workers have the cases,
    one a thread.
    Raises CasesFailed, once all others are finished, where a case has no result.
    """
    options = {
        name: value
        for name, value in locals().items()
        if name not in ("folder", "dask") and value is not None
    }
    opened = open_folder([folder], **options)
    try:
        with runner_of(jobs, dask) as runner:
            segment_cases(opened, runner, jobs=max(jobs, threads_of(runner)))
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
    found: TaskRunner[Any] = import_module("prefect_dask").DaskTaskRunner(address=dask)  # only who has one
    return found


def threads_of(runner: TaskRunner[Any]) -> int:
    """Cases that a Dask cluster works on at once; 0 of other runners."""
    client = getattr(runner, "client", None)
    return sum(client.nthreads().values()) if client else 0


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
    page = [sentence(summary, batch), link(batch.out / "index.html")]
    page += [f"- {link(batch.out / r.overlay)}" for r in shown[:SHOWN] if r.overlay]
    attempt(lambda: create_markdown_artifact("\n\n".join(page), key=f"{key}-page"))


def sentence(summary: Summary, batch: Batch) -> str:
    """What a batch came to, and where that stands."""
    return (
        f"{summary.finished} of {len(summary.cases)} cases are finished, {summary.failed} failed, "
        f"{summary.not_finished} are not finished: see {batch.out.resolve() / 'index.html'}"
    )
