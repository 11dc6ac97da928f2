"""Where memory runs out a case is begun again with less, and its mask is that of a run begun so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import wsiseg
from benchmarks.slide import make_slide
from tests.cases import SMALL, Interrupted, mask_of, stop_after
from tests.conftest import REPOSITORY
from tests.executors import BAND, PLAIN, TALL, memory_for_band, tall_slide
from tests.test_batch import Scripted
from wsiseg import pipeline, store
from wsiseg.batch import run
from wsiseg.batch.discovery import Case
from wsiseg.batch.outcome import Failure, read_outcome
from wsiseg.batch.run import Batch, run_batch
from wsiseg.batch.serve import work_on
from wsiseg.batch.workers import Answer, Job, Worker
from wsiseg.config import SegmentConfig
from wsiseg.errors import ConfigMismatch, OutOfMemory
from wsiseg.files import remove_tree
from wsiseg.memory import ran_out
from wsiseg.plan import plan_of
from wsiseg.predict import NetworkPredictor, Outputs
from wsiseg.prepare import Request
from wsiseg.report import Report
from wsiseg.smaller import in_words, left, remark, smaller, tried

WINDOWS: dict[str, Any] = SMALL | {"model": "breast-tissue3", "executor": "windowed", "image": "none"}
STREAMED = {"executor": "streaming", "band": 512, "device_name": "cuda:0"}
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"


def after(execution: dict[str, Any], *, executor: str = "auto", device: str = "auto") -> Any:
    return smaller(execution, stride=8, executor=executor, device=device)


def test_each_plan_needs_less_than_the_one_before_down_to_windows_on_the_cpu() -> None:
    words, execution = [in_words(STREAMED)], after(STREAMED)
    while execution is not None and "executor" in execution:
        words.append(in_words(execution))
        last, execution = execution, after(execution)
    assert words == [
        "bands of 512 rows on cuda:0", "bands of 128 rows on cuda:0", "bands of 32 rows on cuda:0",
        "bands of 8 rows on cuda:0", "windows in batches of 1 on cuda:0",
    ]  # fmt: skip
    assert last["reason"] == "memory ran out in the smallest bands"
    assert execution == {"device_name": "cpu"}  # everything else is chosen anew


@pytest.mark.parametrize(
    ("execution", "asked", "expected"),
    [
        ({"executor": "windowed", "batch": 4096}, {}, {"executor": "windowed", "batch": 1024}),
        ({"executor": "windowed", "batch": 3}, {}, {"executor": "windowed", "batch": 1}),
        ({"executor": "windowed", "batch": 1, "device_name": "cpu"}, {}, None),
        ({"executor": "streaming", "band": 100}, {}, {"executor": "streaming", "band": 24}),
        # What the user has asked for is kept.
        ({"executor": "streaming", "band": 8, "device_name": "cpu"}, {"executor": "streaming"}, None),
        ({"executor": "windowed", "batch": 1, "device_name": "cuda"}, {"device": "cuda"}, None),
        ({"executor": "streaming", "band": 8, "device_name": "cuda"}, {"executor": "streaming"},
         {"device_name": "cpu"}),
    ],
)  # fmt: skip
def test_what_comes_next_follows_from_the_plan_and_what_was_asked_for(
    execution: dict[str, Any], asked: dict[str, str], expected: Any
) -> None:
    assert after(execution, **asked) == expected


def test_what_was_tried_is_said_in_words() -> None:
    second = {"executor": "windowed", "batch": 1, "device_name": "cpu",
              "attempts": [left(STREAMED, why="full")]}  # fmt: skip
    assert tried(second) == ["bands of 512 rows on cuda:0", "windows in batches of 1 on cpu"]
    assert remark(second) == (
        "memory ran out with bands of 512 rows on cuda:0 (full): "
        "the mask was computed in windows in batches of 1 on cpu"
    )


def test_a_lack_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 50)
    assert ran_out(found.value)
    with pytest.raises(MemoryError) as numpys:
        np.empty(1 << 50, np.uint8)
    assert ran_out(numpys.value)
    assert ran_out(torch.OutOfMemoryError(FULL))
    assert ran_out(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert ran_out(RuntimeError("could not create a primitive"))
    assert ran_out(RuntimeError("can't start new thread"))
    assert not ran_out(RuntimeError("shapes cannot be multiplied"))
    assert not ran_out(ValueError("out of memory"))


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """A network that takes batches up to a size; larger ones only a few times. Returns batches run."""

    def limited(most: int, *, lucky: int = 0) -> list[int]:
        original, seen, luck = NetworkPredictor.__call__, list[int](), [lucky]

        def call(self: NetworkPredictor, images: NDArray[np.uint8]) -> Outputs:
            if len(images) > most:
                luck[0] -= 1
                if luck[0] < 0:
                    raise torch.OutOfMemoryError(FULL)
            seen.append(len(images))
            return original(self, images)

        monkeypatch.setattr(NetworkPredictor, "__call__", call)
        return seen

    return limited


def test_windows_go_on_in_smaller_batches_and_nothing_of_the_larger_ones_is_kept(
    slide: Path, tmp_path: Path, fits: Callable[..., list[int]]
) -> None:
    alone = wsiseg.segment(slide, tmp_path / "alone", **WINDOWS, batch=1)
    seen = fits(2, lucky=2)  # the first two slabs are written under the first plan
    made = wsiseg.segment(slide, tmp_path / "out", **WINDOWS, batch=8)
    assert seen.count(8) == 2
    assert made.execution["batch"] == 2
    (attempt,) = made.execution["attempts"]
    assert attempt == {"executor": "windowed", "batch": 8, "device_name": "cpu", "why": FULL}
    assert [r for r in made.remarks if r.startswith("memory")] == [
        f"memory ran out with windows in batches of 8 on cpu ({FULL}): "
        "the mask was computed in windows in batches of 2 on cpu"
    ]
    np.testing.assert_array_equal(mask_of(made), mask_of(alone))
    opened = wsiseg.open_store(made.store)
    assert opened.verify() == []
    assert {entry["plan"] for entry in opened.entries()} == {opened.plan.identity}
    assert made.work.computed_pixels == alone.work.computed_pixels  # all of it under the second plan
    again = wsiseg.segment(slide, tmp_path / "out", **WINDOWS, batch=8)
    assert again.status == "already complete"


def test_a_run_that_is_resumed_keeps_the_plan_that_worked(
    slide: Path, tmp_path: Path, fits: Callable[..., list[int]]
) -> None:
    seen = fits(2)
    with pytest.raises(Interrupted):
        wsiseg.segment(slide, tmp_path, progress=stop_after(2), **WINDOWS, batch=8)
    begun = plan_of(tmp_path / "scene.ome.zarr")
    made = wsiseg.segment(slide, tmp_path, **WINDOWS, batch=8)
    assert begun is not None
    assert made.execution == begun.execution
    assert set(seen) == {2}
    with pytest.raises(ConfigMismatch, match="batch was 8 and is now 4"):
        wsiseg.segment(slide, tmp_path, **WINDOWS, batch=4)


def test_streaming_goes_on_in_lower_bands_then_in_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tall_slide(tmp_path)
    memory = memory_for_band(TALL, band=BAND)
    original = NetworkPredictor.inputs

    def inputs(self: NetworkPredictor, pixels: Any) -> Any:
        if pixels.shape[2] > lowest:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return original(self, pixels)

    lowest = 16
    monkeypatch.setattr(NetworkPredictor, "inputs", inputs)
    made = wsiseg.segment(path, tmp_path / "bands", **PLAIN, memory=memory)
    monkeypatch.undo()
    assert (made.execution["executor"], made.execution["band"]) == ("streaming", BAND // 4)
    alone = wsiseg.segment(path, tmp_path / "alone", **PLAIN, memory=memory_for_band(TALL, band=BAND // 4))
    assert "attempts" not in alone.execution
    np.testing.assert_array_equal(mask_of(made), mask_of(alone))
    lowest = 0
    monkeypatch.setattr(NetworkPredictor, "inputs", inputs)
    with pytest.raises(OutOfMemory) as refused:
        wsiseg.segment(path, tmp_path / "none", **PLAIN, memory=memory)
    assert str(refused.value) == (
        "memory ran out with bands of 64 rows on cpu, then bands of 16 rows on cpu, then bands of 8 rows on "
        "cpu, then windows in batches of 1 on cpu, and nothing smaller is left to try (DefaultCPUAllocator: "
        "can't allocate memory: you tried to allocate 9 bytes); end other programs and run the same "
        "command again, or use a machine with more memory"
    )


def test_other_errors_of_a_network_are_no_lack_of_memory(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*_: Any) -> Outputs:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(NetworkPredictor, "__call__", call)
    with pytest.raises(RuntimeError, match="a mistake"):
        wsiseg.segment(slide, tmp_path, **WINDOWS)


@pytest.mark.parametrize(
    ("place", "said"),
    [("open_job", "while .*scene.tif was opened"), ("make_report", "while the result of scene was finished")],
)
def test_a_lack_of_memory_that_no_plan_can_help_is_one_sentence(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, said: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(pipeline, place, full)
    with pytest.raises(OutOfMemory, match=f"memory ran out {said}; end other programs"):
        wsiseg.segment(slide, tmp_path, **WINDOWS)
    monkeypatch.setattr(pipeline, place, broken)
    with pytest.raises(RuntimeError, match="a mistake"):
        wsiseg.segment(slide, tmp_path / "other", **WINDOWS)


@pytest.mark.slow
def test_what_a_kill_leaves_of_a_discarded_store_is_begun_anew(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(slide, tmp_path, SegmentConfig(**_config()), model="breast-tissue3")
    expected = mask_of(pipeline.segment_case(Request(slide, tmp_path / "x", request.config, request.model)))
    budget = 0

    def counted(folder: Path) -> None:
        nonlocal budget
        budget -= 1
        if budget < 0:
            raise Interrupted
        remove_tree(folder)

    for count in range(2):  # of folders that are gone when it is killed
        with pytest.raises(Interrupted):
            pipeline.segment_case(request, progress=stop_after(2))
        budget = count
        with monkeypatch.context() as patch:
            patch.setattr(store, "remove_tree", counted)
            with pytest.raises(Interrupted):
                pipeline.segment_case(request, left=["killed"])
        assert (tmp_path / "scene.ome.zarr").exists()
        np.testing.assert_array_equal(mask_of(pipeline.segment_case(request)), expected)
        remove_tree(tmp_path / "scene.ome.zarr")


def _config() -> dict[str, Any]:
    return {name: value for name, value in WINDOWS.items() if name != "model"} | {"batch": 4}


# In a batch


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PAUSE_S", 0.01)


@pytest.mark.usefixtures("no_pause")
def test_a_case_whose_process_was_killed_for_memory_is_given_out_with_less(
    slide: Path, tmp_path: Path, fits: Callable[..., list[int]]
) -> None:
    options = SegmentConfig(**_config()).model_dump(mode="json") | {"model": "breast-tissue3"}
    batch = Batch([Case("scene", slide)], tmp_path, options)
    killed = Answer("failed", "its process was killed", "KilledForMemory")
    jobs: list[Job] = []

    def answer(job: Job) -> Answer:
        """Killed in its first slab, then before a plan was written, then not at all."""
        jobs.append(job)
        if len(jobs) == 1:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(store.CaseStore, "write", lambda *_, **__: (_ for _ in ()).throw(Interrupted))
                with pytest.raises(Interrupted):
                    work_on(job)
        return work_on(job) if len(jobs) == 3 else killed

    seen = fits(4)
    run_batch(batch, runner=lambda: Scripted(answer))
    assert [job.left for job in jobs] == [(), (killed.error,), (killed.error,) * 2]
    found = read_outcome(tmp_path, "scene")
    assert isinstance(found, Failure)
    assert (found.kind, found.attempts) == ("OutOfMemory", 3)
    assert found.tried == ("windows in batches of 4 on cpu",)
    assert set(seen) == {4}
    run_batch(batch, runner=lambda: Scripted(work_on))  # nothing is killed now
    assert isinstance(read_outcome(tmp_path, "scene"), Report)


@pytest.mark.usefixtures("no_pause")
def test_a_case_whose_memory_ran_out_is_begun_again_in_a_process_of_its_own(
    slide: Path, tmp_path: Path, fits: Callable[..., list[int]]
) -> None:
    options = SegmentConfig(**_config()).model_dump(mode="json") | {"model": "breast-tissue3"}
    events: list[Any] = []

    class Recorded(Scripted):
        def stop(self) -> None:
            events.append("stopped")

    def answer(job: Job) -> Answer:
        made = work_on(Job(**json.loads(json.dumps(asdict(job)))))
        events.append((job.left, made.kind))
        return made

    seen = fits(1, lucky=1)
    run_batch(Batch([Case("scene", slide)], tmp_path, options), runner=lambda: Recorded(answer))
    assert events == [((), "MemoryRanOut"), "stopped", ((FULL,), ""), "stopped"]
    found = read_outcome(tmp_path, "scene")
    assert isinstance(found, Report)
    assert [(one["batch"], one["why"]) for one in found.execution["attempts"]] == [(4, FULL)]
    assert seen.count(4) == 1


@pytest.mark.usefixtures("no_pause")
def test_a_case_that_is_killed_again_and_again_is_given_up(tmp_path: Path) -> None:
    worker = Scripted(lambda _: Answer("failed", "its process was killed", "KilledForMemory"))
    (tmp_path / "a.ome.zarr" / "ledger").mkdir(parents=True)
    (tmp_path / "a.ome.zarr" / "ledger" / "plan.json").write_text("damaged")
    run_batch(Batch([Case("a", Path("a.svs"))], tmp_path), runner=lambda: worker)
    assert [len(job.left) for job in worker.jobs] == list(range(9))
    found = read_outcome(tmp_path, "a")
    assert isinstance(found, Failure)
    assert (found.attempts, found.tried) == (9, ())


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [(5, 5, "WorkerDied"), (5, 6, "KilledForMemory"), (None, None, "KilledForMemory")],
)
def test_the_machines_own_count_tells_who_was_killed_for_memory(
    monkeypatch: pytest.MonkeyPatch, before: int | None, after: int | None, kind: str
) -> None:
    counts = iter([before, after])
    monkeypatch.setattr("wsiseg.batch.workers.processes_killed", lambda: next(counts))
    code = "import os, signal; input(); os.kill(os.getpid(), signal.SIGKILL)"
    worker = Worker()
    worker._process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    answer = worker.run(Job("a", "a.svs", "out", {}))
    assert (answer.status, answer.kind) == ("failed", kind)
    assert "signal 9" in answer.error


@pytest.mark.parametrize(("limit", "kind"), [("--as=64000000000", "KilledForMemory"), ("", "WorkerDied")])
@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
def test_a_crash_is_a_lack_of_memory_where_a_process_may_take_only_so_much(
    limit: str, kind: str, number: int
) -> None:
    code = f"""
import subprocess, sys
from wsiseg.batch.workers import Job, Worker
worker = Worker()
worker._process = subprocess.Popen(
    [sys.executable, "-c", "import os; input(); os.kill(os.getpid(), {int(number)})"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
)
answer = worker.run(Job("a", "a.svs", "out", {{}}))
print(answer.kind, "signal {int(number)}" in answer.error)
"""
    command = [*(["prlimit", limit] if limit else []), sys.executable, "-c", code]
    said = subprocess.check_output(command, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert said.split() == [kind, "True"]


PROBE = """
import resource, torch, wsiseg.pipeline
print(int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize())
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_that_may_take_little_memory_end_with_the_mask_that_others_make(tmp_path: Path) -> None:
    make_slide(tmp_path / "in" / "wide.tif", height=512, width=20_000)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    used = int(subprocess.check_output([sys.executable, "-c", PROBE], env=environment))
    (tmp_path / "c.toml").write_text("threads = 1\nreaders = 1\ntissue_filter = false\nmemory = 4000\n")

    def limited(out: str, megabytes: int) -> Report:
        limit = used + megabytes * 10**6
        subprocess.run(
            ["prlimit", f"--as={limit}", sys.executable, "-m", "wsiseg", "segment", str(tmp_path / "in"),
             "--out", str(tmp_path / out), "--config", str(tmp_path / "c.toml")],
            env=environment, check=True,
        )  # fmt: skip
        found = read_outcome(tmp_path / out, "wide")
        assert isinstance(found, Report)
        return found

    narrow, wide = limited("narrow", 850), limited("wide", 20_000)
    assert "attempts" not in wide.execution
    assert narrow.execution["attempts"][0]["band"] == wide.execution["band"] == 128
    assert narrow.remarks[-1].startswith("memory ran out with bands of 128 rows on cpu (")
    assert np.mean(mask_of(narrow) != mask_of(wide)) < 1e-3
