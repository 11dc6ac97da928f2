"""A Prefect server on PostgreSQL, two of its workers and a Dask cluster give the masks of one process."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from benchmarks.server_away import ENDS, Job, wait_for_state
from tests.conftest import REPOSITORY
from tests.servers import Process, Server, free_port, kill

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]

POSTGRES = str(REPOSITORY / "flows" / "cluster" / "postgres.sh")


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The URL of an own PostgreSQL."""
    folder = tempfile.mkdtemp(prefix="wsiseg-postgres-")  # its user cannot look into pytest's folders
    try:
        made = subprocess.run(
            [POSTGRES, "start", folder, str(free_port())], capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stderr
        yield made.stdout.strip()
    finally:
        subprocess.run([POSTGRES, "stop", folder], check=True)
        shutil.rmtree(folder)


@dataclass(frozen=True)
class Cluster:
    """A job for a server on PostgreSQL with two workers, and two workers of a Dask cluster."""

    job: Job
    dask: str
    dask_workers: list[Process]

    def done_once(self, *runs: str, **more: object) -> Counter[str]:
        """What was said of cases while runs complete that share a folder of results; all masks are right."""
        log = self.job.server.log
        begun = log.stat().st_size
        for run in runs:
            self.job.begin(run, out=self.job.work / runs[0], **more)
        return self.finished(begun, *runs)

    def finished(self, begun: int, *runs: str) -> Counter[str]:
        """The same of runs that were begun when the log was so long."""
        job = self.job
        states = [wait_for_state(job.server, run, *ENDS, limit_s=300) for run in runs]
        assert states == ["Completed"] * len(runs), job.server.said()
        assert job.is_as_undisturbed(runs[0])
        said = job.server.log.read_bytes()[begun:].decode()
        return Counter(re.findall(r"case-\d+: segmented", said))

    @property
    def each_once(self) -> dict[str, int]:
        """What is said of a batch of which no case was done twice."""
        return {f"case-{number:02}: segmented": 1 for number in range(self.job.cases)}


def add_dask_worker(server: Server, dask: str, folder: Path) -> Process:
    """A worker of one thread."""
    options = ("--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard", "--local-directory", str(folder))
    return server.start("dask", "worker", dask, *options)


@pytest.fixture(scope="module")
def cluster(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    work = tmp_path_factory.mktemp("cluster")
    server = Server(work, PREFECT_SERVER_DATABASE_CONNECTION_URL=database)
    port = free_port()
    dask = f"tcp://127.0.0.1:{port}"
    try:
        server.start("dask", "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
        dask_workers = [add_dask_worker(server, dask, work / "dask") for _ in range(2)]
        server.begin()
        server.deploy(workers=2)
        job = Job(server, work, cases=6, size=4)
        job.prepare()
        yield Cluster(job, dask, dask_workers)
    finally:
        processes = server.family()
        server.stop()
        _, left = psutil.wait_procs(processes, timeout=10)
        assert left == []


def test_two_workers_share_a_folder_and_no_case_is_done_twice(cluster: Cluster) -> None:
    assert cluster.done_once("first", "second") == cluster.each_once


def test_two_workers_do_a_part_each(cluster: Cluster) -> None:
    begun = cluster.job.server.log.stat().st_size
    for part in ("1/2", "2/2"):
        run = "halves" if part == "1/2" else "other"
        cluster.job.begin(run, out=cluster.job.work / "halves", part=part)
    assert cluster.finished(begun, "halves", "other") == cluster.each_once


def test_the_workers_of_a_dask_cluster_give_the_same_masks(cluster: Cluster) -> None:
    assert cluster.done_once("dask", dask=cluster.dask) == cluster.each_once


def test_a_case_of_a_dask_worker_that_was_killed_is_continued_by_the_other(cluster: Cluster) -> None:
    job, begun = cluster.job, cluster.job.server.log.stat().st_size
    job.begin("killed", out=job.work / "killed", dask=cluster.dask)
    store, worker = in_the_middle(job.work / "killed", cluster.dask_workers)
    kill(worker)
    done = {path: path.stat().st_mtime_ns for path in store.glob("ledger/slab-*")}
    assert 1 <= len(done) < SLABS
    assert cluster.finished(begun, "killed") == cluster.each_once
    assert {path: path.stat().st_mtime_ns for path in done} == done


SLABS = 6
"""Of a case."""


def in_the_middle(out: Path, workers: list[Process]) -> tuple[Path, Process]:
    """The store of a case that has only its first slabs, and the worker whose process has it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in out.glob(".claims/*/*.json"):
            store = out / f"{path.parent.name}.ome.zarr"
            if not 1 <= len(list(store.glob("ledger/slab-*"))) <= 3:
                continue
            with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
                above = {p.pid for p in psutil.Process(json.loads(path.read_bytes())["process"]).parents()}
                return store, next(w for w in workers if w.pid in above)
        time.sleep(0.01)
    raise AssertionError("no case is in the middle")
