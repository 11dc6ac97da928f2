"""Processes that work on cases: one that dies, hangs or runs out of memory takes nothing else with it.

A worker is this program started anew, which reads a job a line on its input and writes what came of it,
a line on its output. It ends when its input does, so that none is left when the batch is killed.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsiseg.batch.discovery import VOXELS_STATED, Case


@dataclass(frozen=True)
class Job:
    """A case as a worker is told of it."""

    case: str
    input: str
    out: str
    options: dict[str, Any]
    annotations: str | None = None
    overwrite: bool = False
    free_after: int | None = None
    """The epoch of the case's last claim, which the caller has seen to be a dead one's."""
    left: tuple[str, ...] = ()
    """Why plans were left because memory ran out with them, in order."""


@dataclass(frozen=True)
class Answer:
    """What came of a job: `error` and `kind` (the name of its class) where there is no result."""

    status: str
    error: str = ""
    kind: str = ""
    may_pass: bool = False
    """True of what a disk or a network says for a while."""


def job_of(case: Case, *, out: Path, options: dict[str, Any], **more: Any) -> Job:
    """The job of a case; options of the case come before those of the batch, whose `mpp` is for slides."""
    is_volume = case.path.name.lower().endswith(VOXELS_STATED)
    own = {"mpp": case.mpp} if case.mpp is not None or is_volume else {}
    return Job(
        case=case.own_name,
        input=str(case.path),
        out=str(out / case.folder),
        options={**options, **own},
        annotations=str(case.annotations) if case.annotations else None,
        **more,
    )


class Worker:
    """A process for one case after another, started when it is first needed and again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._in_use = threading.Lock()

    def run(self, job: Job, *, limit_s: float | None = None) -> Answer:
        """Have a case worked on; one that takes longer than its limit is stopped."""
        with self._in_use:
            return self._run(job, limit_s)

    def stop(self) -> None:
        """Kill the process, if there is one, also while another thread waits for its answer."""
        while not self._in_use.acquire(timeout=0.05):
            if (process := self._process) is not None:
                # Only that: what the other thread waits on must not be closed under its hands.
                process.kill()
        try:
            self._end()
        finally:
            self._in_use.release()

    def _run(self, job: Job, limit_s: float | None) -> Answer:
        process = self._started()
        killed = processes_killed()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
            process.stdin.flush()
            line = self._line(process, limit_s)
        except BrokenPipeError:
            line = b""
        if line is None:
            self._end()
            return Answer(
                "failed", f"it took longer than its limit of {limit_s:g} s and was stopped", "TimeLimit"
            )
        try:
            return Answer(**json.loads(line))
        except (ValueError, TypeError):
            return self._last_words(killed)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "wsiseg.batch.serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        return self._process

    def _line(self, process: subprocess.Popen[bytes], limit_s: float | None) -> bytes | None:
        """What the process answers; empty where it died, None where it took too long."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            if not waiting.select(limit_s):
                return None
        return process.stdout.readline()

    def _last_words(self, killed: int | None) -> Answer:
        """How the process ended, by how many the machine had killed for memory when it was given its job."""
        assert self._process is not None
        status = self._process.wait()
        self._end()
        if status == -signal.SIGKILL and (killed is None or processes_killed() != killed):
            said = "its process was killed (signal 9), as systems do where memory runs out"
            return Answer("failed", said, "KilledForMemory")
        how = f"signal {-status}" if status < 0 else f"status {status}"
        if -status in (signal.SIGABRT, signal.SIGSEGV) and memory_is_limited():
            said = f"its process ended with {how}, as libraries do where a process may not take more memory"
            return Answer("failed", said, "KilledForMemory")
        return Answer("failed", f"its process ended with {how}", "WorkerDied")


def memory_is_limited() -> bool:
    """True where this process and those it starts may take only so much memory (`ulimit -v`, `-d`)."""
    limits = (resource.getrlimit(which)[0] for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return any(limit != resource.RLIM_INFINITY for limit in limits)


def processes_killed() -> int | None:
    """How many processes this machine has killed for memory since it was started; None: it does not say."""
    counters = Path("/proc/vmstat")
    try:
        lines = (line.split() for line in counters.read_text().splitlines())
        return next((int(line[1]) for line in lines if line[0] == "oom_kill"), None)
    except OSError:
        return None
