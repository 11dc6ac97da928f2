"""The task of `segment-folder`: one case. A module of its own, by whose name Dask's workers find it."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.common import gpu_slot
from wsiseg.batch.discovery import Case
from wsiseg.batch.run import Batch, finish
from wsiseg.batch.workers import Answer, Worker
from wsiseg.claims import Watch

_own = threading.local()


@task(cache_policy=NO_CACHE, task_run_name="{name}")
def segment_one(name: str, case: Case, batch: Batch) -> dict[str, Any]:
    """Segment one case of a batch; the ledger in its store is the cache, so that a retry continues."""
    answer = work_on(case, batch)
    get_run_logger().info("%s: %s", name, answer.status)
    return {"case": name, **asdict(answer)}


def work_on(case: Case, batch: Batch) -> Answer:
    """The case by this thread's own process. Not part of the task, all of which Dask sends to its workers."""
    if not hasattr(_own, "worker"):
        _own.worker, _own.watch = Worker(), Watch(lease_s=batch.lease_s)
    with gpu_slot(batch.options["device"]):
        return finish(batch, case, runner=_own.worker, watch=_own.watch)
