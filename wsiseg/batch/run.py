"""The loop over the cases of a batch: whatever happens to one of them, the others are finished."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from wsiseg.batch.discovery import Case
from wsiseg.batch.outcome import Failure, forget_failure, write_failure
from wsiseg.batch.workers import Answer, Job, Worker, job_of
from wsiseg.claims import LEASE_S, Watch
from wsiseg.errors import IncompleteStore, NoRoom, StoreError
from wsiseg.files import RESERVE, free_bytes, shown, write_whole, writing
from wsiseg.names import SUFFIX
from wsiseg.objects import ObjectPath
from wsiseg.plan import StorePlan, plan_of
from wsiseg.progress import Progress, no_progress
from wsiseg.smaller import tried

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Of a case, where another attempt may help."""
PAUSE_S = 2.0
"""Before another attempt, and between two looks at cases that others hold."""
NOT_OURS = ("CaseHeld", "ClaimLost")
LESS_HELPS = ("KilledForMemory", "MemoryRanOut")
OF_MEMORY = (*LESS_HELPS, "OutOfMemory")
MOST = {"WorkerDied": ATTEMPTS, "KilledForMemory": 9, "MemoryRanOut": 9, "OutOfMemory": 2}
"""Attempts by kind of a failure: where memory ran out each has a smaller plan, until none is left, and
a process of its own: what is left of an attempt may be in the way of the next."""


class Runner(Protocol):
    """Works on one case: a process of this machine, or whatever else takes jobs."""

    def run(self, job: Job, *, limit_s: float | None = None) -> Answer: ...

    def stop(self) -> None: ...


@dataclass(frozen=True)
class Batch:
    """Cases with the settings that they share."""

    cases: Sequence[Case]
    out: Path
    options: dict[str, Any] = field(default_factory=dict)
    jobs: int = 1
    limit_s: float | None = None
    lease_s: float = LEASE_S
    overwrite: bool = False


def run_batch(
    batch: Batch,
    *,
    told: Callable[[], None] = lambda: None,
    progress: Progress = no_progress,
    runner: Callable[[], Runner] = Worker,
) -> None:
    """Segment every case that can be; failures are written beside the results.

    `told` is called after each case. Raises NoRoom where nothing more can be written: what is finished
    stays, and the same batch goes on later.
    """
    queue = _Queue(batch)
    with ThreadPoolExecutor(batch.jobs, thread_name_prefix="case") as threads:
        runners = [runner() for _ in range(batch.jobs)]
        try:
            working = [threads.submit(_work, batch, queue, one) for one in runners]
            for _ in progress(queue.finished(), total=len(batch.cases), what="cases"):
                told()
        finally:
            queue.stop()
            for one in runners:
                one.stop()
        for thread in working:
            thread.result()
    if queue.reason is not None:
        raise queue.reason


def _work(batch: Batch, queue: _Queue, runner: Runner) -> None:
    """One thread: case after case until there are none."""
    for case, epoch in queue:
        try:
            queue.done(
                case, attempts(batch, case, epoch, runner=runner, watch=queue.watch, stopped=queue.is_stopped)
            )
        except StoreError as err:
            queue.stop(err if isinstance(err, NoRoom) else NoRoom(str(err)))


def finish(batch: Batch, case: Case, *, runner: Runner, watch: Watch) -> Answer:
    """One case worked on by this thread alone, or waited for while another process holds it.

    Raises NoRoom where nothing more can be written.
    """
    while True:
        epoch = watch.free_after(batch.out / case.folder, case.own_name)
        if epoch is not None:
            answer = attempts(batch, case, epoch, runner=runner, watch=watch)
            if answer.kind not in NOT_OURS:
                return answer
        time.sleep(PAUSE_S)


def attempts(
    batch: Batch,
    case: Case,
    epoch: int,
    *,
    runner: Runner,
    watch: Watch,
    stopped: Callable[[], bool] = lambda: False,
) -> Answer:
    """A case that is free after an epoch, worked on until it is finished or nothing more can be hoped for.

    A failure is written beside where the result would be. Raises NoRoom, StoreError.
    """
    out = batch.out / case.folder
    left: tuple[str, ...] = ()
    for attempt in count(1):
        job = job_of(
            case, out=batch.out, options=batch.options, overwrite=batch.overwrite and attempt == 1,
            free_after=epoch, left=left,
        )  # fmt: skip
        answer = runner.run(job, limit_s=batch.limit_s)
        if answer.status != "failed":
            forget_failure(out, case.own_name)
            return answer
        if stopped() or answer.kind in NOT_OURS:
            return answer
        if answer.kind == "NoRoom":
            check_room(batch.out, answer.error)
        logger.warning("%s: %s", case.name, answer.error)
        if attempt >= MOST.get(answer.kind, ATTEMPTS if answer.may_pass else 1):
            break
        if answer.kind in OF_MEMORY:
            runner.stop()
        if answer.kind in LESS_HELPS:
            plan = begun(out, case)
            before = tuple(one["why"] for one in plan.attempts) if plan else ()
            left = (*max(left, before, key=len), answer.error)
        time.sleep(PAUSE_S)
        if stopped():
            return answer
        found = watch.free_after(out, case.own_name)
        if found is None:
            return Answer("failed", f"{case.name} is held", NOT_OURS[0])
        epoch = found
    plan = begun(out, case)
    failure = Failure(
        case=case.name, input=shown(case.path), error=answer.error, kind=answer.kind, attempts=attempt,
        tried=tuple(tried(plan.execution)) if plan else (),
    )  # fmt: skip
    write_failure(batch.out, failure)
    return answer


def begun(out: Path, case: Case) -> StorePlan | None:
    """The plan that a case was last begun with, if it was and can be read."""
    try:
        return plan_of(out / f"{case.own_name}{SUFFIX}")
    except IncompleteStore:
        return None


def check_room(out: Path, said: str) -> None:
    """Raises NoRoom where hardly anything can be written into the folder of the results."""
    probe = out / ".wsiseg-probe"
    try:
        with writing(out):
            if free_bytes(out) < RESERVE:
                raise NoRoom(said)
            write_whole(probe, b"\0" * 4096)
            probe.unlink()
    except StoreError:
        raise NoRoom(said) from None


def largest_first(cases: Sequence[Case]) -> list[Case]:
    """The cases by the bytes of their files: so that none of several workers is left alone with a long one.

    Cases whose size is not known at a glance (folders, object stores, what is not there) come first, in their
    order, as do those of one size.
    """
    return sorted(cases, key=lambda case: -_bytes(case.path))


def _bytes(path: Path) -> float:
    try:
        return math.inf if isinstance(path, ObjectPath) or not path.is_file() else path.stat().st_size
    except OSError:
        return math.inf


class _Queue:
    """Cases that are still to be worked on; those that others hold are looked at again."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._waiting = deque(largest_first(batch.cases) if batch.jobs > 1 else batch.cases)
        self._held: deque[Case] = deque()
        self._left = len(batch.cases)
        self._done: deque[Case] = deque()
        self._changed = threading.Condition()
        self.watch = Watch(lease_s=batch.lease_s)
        self.stopped = False
        self.reason: NoRoom | None = None

    def __iter__(self) -> Iterator[tuple[Case, int]]:
        """Cases that are free, with the epoch of their last claim, as long as there are any."""
        while (found := self._next()) is not None:
            yield found

    def _next(self) -> tuple[Case, int] | None:
        while True:
            with self._changed:
                if self.stopped or not self._left:
                    return None
                case = self._waiting.popleft() if self._waiting else None
                looked = [] if case else list(self._held)
            if case is not None:
                epoch = self.watch.free_after(self._batch.out / case.folder, case.own_name)
                if epoch is not None:
                    return case, epoch
                with self._changed:
                    self._held.append(case)
                continue
            found = next(self._free_again(looked), None)
            if found is not None:
                return found
            time.sleep(PAUSE_S)

    def _free_again(self, held: Sequence[Case]) -> Iterator[tuple[Case, int]]:
        """Of cases that others held, the ones that are free now."""
        for case in held:
            epoch = self.watch.free_after(self._batch.out / case.folder, case.own_name)
            if epoch is None:
                continue
            with self._changed:
                if case in self._held:
                    self._held.remove(case)
                    yield case, epoch

    def done(self, case: Case, answer: Answer) -> None:
        """A case was worked on; one that another took is looked at again later."""
        with self._changed:
            if answer.kind in NOT_OURS and not self.stopped:
                self._held.append(case)
                return
            self._left -= 1
            self._done.append(case)
            self._changed.notify_all()

    def is_stopped(self) -> bool:
        """True once no case is begun any more."""
        return self.stopped

    def stop(self, reason: NoRoom | None = None) -> None:
        """No case is begun any more."""
        with self._changed:
            self.stopped = True
            self.reason = self.reason or reason
            self._changed.notify_all()

    def finished(self) -> Iterator[Case]:
        """Cases as they are finished, failed ones too."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._done or self.stopped or not self._left)
                if not self._done:
                    return
                case = self._done.popleft()
            yield case
