"""The loop over a batch: one case's trouble is its own, and what is finished stays finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import wsiseg
from tests.cases import write_tiff
from tests.conftest import random_image
from tests.images import rgb_last
from tests.test_cli import Ran
from wsiseg.batch import run
from wsiseg.batch.discovery import Case
from wsiseg.batch.outcome import Failure, failure_path, read_outcome
from wsiseg.batch.run import Batch, largest_first, run_batch
from wsiseg.batch.segment import segment_folder
from wsiseg.batch.serve import may_pass
from wsiseg.batch.workers import Answer, Job, Worker
from wsiseg.claims import take
from wsiseg.errors import NoRoom, UnreadableSource
from wsiseg.files import RESERVE


class Scripted:
    """A worker whose answers are made up."""

    def __init__(self, answer: Callable[[Job], Answer]) -> None:
        self.answer = answer
        self.jobs: list[Job] = []

    def run(self, job: Job, *, limit_s: float | None = None) -> Answer:
        self.jobs.append(job)
        return self.answer(job)

    def stop(self) -> None: ...


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PAUSE_S", 0.01)


def batch_of(out: Path, *names: str, **more: Any) -> Batch:
    return Batch([Case(name, Path(f"{name}.svs")) for name in names], out, **more)


def ran(batch: Batch, answer: Callable[[Job], Answer]) -> list[Job]:
    """The jobs that were given out."""
    worker = Scripted(answer)
    run_batch(batch, runner=lambda: worker)
    return worker.jobs


def test_a_case_that_fails_leaves_its_reason_and_the_others_their_results(tmp_path: Path) -> None:
    def answer(job: Job) -> Answer:
        return Answer("failed", "b is broken", "UnreadableSource") if job.case == "b" else Answer("segmented")

    jobs = ran(batch_of(tmp_path, "a", "x/b", "c"), answer)
    assert [(job.case, Path(job.out)) for job in jobs] == [
        ("a", tmp_path), ("b", tmp_path / "x"), ("c", tmp_path),
    ]  # fmt: skip
    assert read_outcome(tmp_path, "x/b") == Failure(
        case="x/b", input="x/b.svs", error="b is broken", kind="UnreadableSource"
    )
    # Mended, it leaves no trace.
    ran(batch_of(tmp_path, "x/b"), lambda _: Answer("segmented"))
    assert not failure_path(tmp_path, "x/b").exists()


@pytest.mark.parametrize(
    ("failed", "attempts"),
    [
        (Answer("failed", "broken", "UnreadableSource"), 1),
        (Answer("failed", "read error", "UnreadableSource", may_pass=True), 3),
        (Answer("failed", "memory ran out", "OutOfMemory"), 2),
        (Answer("failed", "killed", "WorkerDied"), 3),
        (Answer("failed", "too long", "TimeLimit"), 1),
    ],
)
def test_only_what_may_pass_is_tried_again(tmp_path: Path, failed: Answer, attempts: int) -> None:
    assert len(ran(batch_of(tmp_path, "a"), lambda _: failed)) == attempts
    found = read_outcome(tmp_path, "a")
    assert isinstance(found, Failure)
    assert (found.error, found.kind, found.attempts) == (failed.error, failed.kind, attempts)


def test_several_workers_begin_with_the_largest_files(tmp_path: Path) -> None:
    for name, size in {"a": 10, "b": 300, "c": 300, "d": 50}.items():
        (tmp_path / f"{name}.svs").write_bytes(bytes(size))
    (tmp_path / "series").mkdir()
    names = ("a.svs", "b.svs", "c.svs", "d.svs", "series", "gone.svs")
    cases = [Case(name, tmp_path / name) for name in names]
    order = ["series", "gone.svs", "b.svs", "c.svs", "d.svs", "a.svs"]
    assert [case.name for case in largest_first(cases)] == order
    jobs: list[str] = []

    def answer(job: Job) -> Answer:
        jobs.append(Path(job.input).name)
        time.sleep(0.1)
        return Answer("segmented")

    run_batch(Batch(cases, tmp_path / "out", jobs=2), runner=lambda: Scripted(answer))
    pairs = [set(jobs[n : n + 2]) for n in range(0, 6, 2)]
    assert pairs == [set(order[n : n + 2]) for n in range(0, 6, 2)]
    alone = ran(Batch(cases, tmp_path / "alone"), lambda _: Answer("segmented"))
    assert [Path(job.input).name for job in alone] == list(names)


def test_what_passes_is_no_failure_and_is_overwritten_once(tmp_path: Path) -> None:
    answers = iter([Answer("failed", "killed", "WorkerDied"), Answer("segmented")])
    jobs = ran(batch_of(tmp_path, "a", overwrite=True), lambda _: next(answers))
    assert [job.overwrite for job in jobs] == [True, False]
    assert read_outcome(tmp_path, "a") is None


def test_a_case_that_another_holds_is_looked_at_again_until_it_is_free(tmp_path: Path) -> None:
    claim = take(tmp_path, "b", after=0)
    order = []

    def answer(job: Job) -> Answer:
        order.append((job.case, job.free_after))
        if job.case == "c":
            claim.release()
        return Answer("already complete" if job.case == "b" else "segmented")

    ran(batch_of(tmp_path, "a", "b", "c"), answer)
    assert order == [("a", 0), ("c", 0), ("b", 0)]


def test_a_case_that_was_lost_to_another_on_the_way_is_not_failed(tmp_path: Path) -> None:
    answers = iter([
        Answer("failed", "taken over", "ClaimLost"),
        Answer("failed", "in work", "CaseHeld"),
        Answer("already complete"),
    ])  # fmt: skip
    assert len(ran(batch_of(tmp_path, "a"), lambda _: next(answers))) == 3
    assert read_outcome(tmp_path, "a") is None


def test_a_full_disk_stops_the_batch_and_blames_no_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Answer("failed", "the disk is full; make room", "NoRoom")

    def refuse(*_: Any) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(run, "write_whole", refuse)
    worker = Scripted(lambda job: Answer("segmented") if job.case == "a" else full)
    with pytest.raises(NoRoom, match="the disk is full; make room"):
        run_batch(batch_of(tmp_path, "a", "b", "c"), runner=lambda: worker)
    assert [job.case for job in worker.jobs] == ["a", "b"]
    assert read_outcome(tmp_path, "b") is None
    monkeypatch.undo()
    monkeypatch.setattr(run, "PAUSE_S", 0.01)
    few = SimpleNamespace(free=RESERVE - 1)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: few)
        with pytest.raises(NoRoom, match="the disk is full"):
            run_batch(batch_of(tmp_path, "b"), runner=lambda: Scripted(lambda _: full))
    # Where there is room for others it was the case's own trouble.
    assert [job.case for job in ran(batch_of(tmp_path, "b", "c"), lambda _: full)] == ["b", "c"]
    assert isinstance(read_outcome(tmp_path, "b"), Failure)


def test_as_many_cases_are_in_work_as_jobs_and_each_once(tmp_path: Path) -> None:
    at_once, most, seen, lock = [0], [0], [], threading.Lock()

    def answer(job: Job) -> Answer:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
            seen.append(job.case)
        time.sleep(0.02)
        with lock:
            at_once[0] -= 1
        return Answer("segmented")

    told = []
    batch = batch_of(tmp_path, *map(str, range(12)), jobs=3)
    run_batch(batch, runner=lambda: Scripted(answer), told=lambda: told.append(1))
    assert sorted(map(int, seen)) == list(range(12))
    assert most == [3]
    assert len(told) == 12


def test_what_an_error_came_of_decides_whether_it_may_pass() -> None:
    def failed(number: int) -> UnreadableSource:
        try:
            try:
                raise OSError(number, "said by the disk")
            except OSError as err:
                raise UnreadableSource("cannot be read") from err
        except UnreadableSource as err:
            return err

    assert may_pass(failed(5))
    assert may_pass(failed(116))
    assert not may_pass(failed(2))
    assert not may_pass(UnreadableSource("broken"))


# The process of a worker


def slide(path: Path, *, seed: int = 0, shape: tuple[int, int] = (96, 160)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_tiff(path, rgb_last(random_image(shape, seed=seed)))


OPTIONS: dict[str, Any] = {"core": 64, "halo": 16, "slab": 32, "chunk": 32, "tissue_filter": False}


@pytest.mark.slow
def test_a_worker_takes_one_case_after_another_and_starts_again_when_it_died(tmp_path: Path) -> None:
    path = slide(tmp_path / "in" / "a.tiff")
    worker = Worker()
    job = Job("a", str(path), str(tmp_path / "out"), OPTIONS | {"image": "none"})
    try:
        assert worker.run(job) == Answer("segmented")
        process = worker._process
        assert process is not None
        assert worker.run(job) == Answer("already complete")
        assert worker._process is process
        missing = worker.run(Job("b", str(tmp_path / "b.tiff"), str(tmp_path / "out"), {}))
        assert (missing.status, missing.kind) == ("failed", "UnreadableSource")
        process.kill()
        process.wait()
        assert worker.run(job) == Answer("already complete")
        slow = worker.run(job, limit_s=1e-3)
        assert (slow.status, slow.kind) == ("failed", "TimeLimit")
        assert "longer than its limit of 0.001 s" in slow.error
        assert worker._process is None
        threading.Timer(0.5, lambda: worker._process and worker._process.kill()).start()
        died = worker.run(Job("c", str(path), str(tmp_path / "out"), OPTIONS))
        assert died.kind == "WorkerDied"
        assert "signal 9" in died.error
    finally:
        worker.stop()


def test_a_worker_that_is_stopped_while_a_thread_waits_for_it_answers_that_thread() -> None:
    for _ in range(20):  # what was closed under its hands left it waiting for ever, most times
        worker = Worker()
        worker._process = subprocess.Popen(["cat", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        reading, writing = os.pipe()
        worker._process.stdout = os.fdopen(reading, "rb")
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(worker.run, Job("a", "", "", {}))
            time.sleep(0.005)
            closing = threading.Timer(0.02, os.close, [writing])  # the process takes a while to go
            closing.start()
            worker.stop()
            assert answer.result(timeout=10).kind == "WorkerDied"
            assert worker._process is None
            closing.join()


@pytest.mark.slow
def test_a_worker_ends_with_who_started_it(tmp_path: Path) -> None:
    code = (
        "import sys; from wsiseg.batch.workers import Worker, Job\n"
        "w = Worker(); w._started(); print(w._process.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            break
        state = Path(f"/proc/{worker}/stat").read_text(encoding="utf-8").split(")")[1].split()[0]
        if state == "Z":
            break
        time.sleep(0.1)
    else:
        os.kill(worker, signal.SIGKILL)
        pytest.fail("the worker goes on without anybody who wants its results")


@pytest.mark.slow
def test_a_folder_is_segmented_as_its_slides_are_one_by_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "small.yaml"
    settings.write_text(json.dumps(OPTIONS))
    for number in range(3):
        slide(tmp_path / "in" / f"s {number}.tiff", seed=number)
    (tmp_path / "in" / "broken.svs").write_text("text")
    command = ("segment", tmp_path / "in", "--out", tmp_path / "out", "--config", settings, "--jobs", "2")
    first = Ran(capfd, *command)
    assert first.status == 1
    assert "3 of 4 cases are finished, 1 failed, 0 are not finished" in first.out
    assert "failed: broken: " in first.out
    summary = (tmp_path / "out" / "summary.json").read_bytes()
    stores = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if "ome.zarr" in str(p)}
    again = Ran(capfd, *command, "--json")
    assert again.status == 1
    assert json.loads(again.out)["finished"] == 3
    assert (tmp_path / "out" / "summary.json").read_bytes() == summary
    assert stores == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if "ome.zarr" in str(p)}
    assert not (tmp_path / "out" / ".claims").exists()
    for number in range(3):
        report = wsiseg.segment(
            tmp_path / "in" / f"s {number}.tiff", tmp_path / "alone", **OPTIONS, image="none"
        )
        batch = wsiseg.open_store(tmp_path / "out" / f"s {number}.ome.zarr")
        alone = wsiseg.open_store(report.store)
        assert np.array_equal(batch.mask()[:], alone.mask()[:])


@pytest.mark.slow
def test_two_batches_on_one_folder_do_each_case_once(tmp_path: Path) -> None:
    for number in range(4):
        slide(tmp_path / "in" / f"{number}.tiff", seed=number)
    code = (
        "import sys, json; from wsiseg.batch.segment import segment_folder\n"
        "segment_folder([sys.argv[1]], sys.argv[2], **json.loads(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "in"), str(tmp_path / "out"), json.dumps(OPTIONS)]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=200) for process in both] == [0, 0]
    summary = segment_folder([tmp_path / "in"], tmp_path / "out", **OPTIONS)
    assert (summary.finished, summary.failed) == (4, 0)
    for number in range(4):
        store = wsiseg.open_store(tmp_path / "out" / f"{number}.ome.zarr")
        assert store.verify() == []
