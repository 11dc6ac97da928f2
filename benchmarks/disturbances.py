"""What can happen to a batch, done to one that is at work."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.watched import claims_in, tree

LEASE_S = 3.0
ROOT = Path(__file__).resolve().parents[1]


def claims(out: Path) -> dict[int, str]:
    """The cases that are in work, by the process that has claimed them."""
    return {int(claim["process"]): case for case, claim in claims_in(out) if "process" in claim}


def alive(pid: int) -> bool:
    """False of a process that is gone or has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Batch:
    """A command that works on a folder of results, in a group of processes of its own."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str) -> None:
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                command, stdout=stream, stderr=stream, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            )  # fmt: skip

    @property
    def main(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def workers(self) -> list[int]:
        """Its processes but the first."""
        return [pid for pid in tree(self.main)[1:] if alive(pid)]

    def kill(self) -> None:
        """kill -9 of all of it."""
        for pid in tree(self.main):  # a stopped process takes no end of its input
            if pid != self.main and alive(pid):
                os.kill(pid, signal.SIGKILL)
        if self.running:
            os.killpg(self.main, signal.SIGKILL)
        self._process.wait()

    def wait(self) -> int:
        return self._process.wait()


@dataclass
class Place:
    """Where batches work while things happen: a folder of results, perhaps on a disk of its own."""

    out: Path
    disk: Path | None
    start: Callable[[], Batch]
    log: Path
    rng: random.Random
    batches: list[Batch] = field(default_factory=list)
    restarts: int = 0

    def ensure(self) -> Batch:
        """A batch that is at work: one of those there are, or a new one."""
        self.batches = [batch for batch in self.batches if batch.running]
        if not self.batches:
            self.add()
        return self.rng.choice(self.batches)

    def add(self) -> None:
        """Start one more batch."""
        self.restarts += 1
        self.batches.append(self.start())

    def in_work(self, pids: Sequence[int]) -> bool:
        """True if one of some processes is in the middle of a case."""
        held = claims(self.out)
        return any(pid in held for pid in pids)

    def until_work(self, batch: Batch) -> bool:
        """Wait until a batch has a case in work; False where it ends before."""
        while batch.running:
            if self.in_work(batch.workers()):
                return True
            time.sleep(0.02)
        return False


def kill_worker(place: Place, batch: Batch) -> bool:
    """kill -9 of one process that works on cases."""
    workers = batch.workers()
    if not workers:
        return False
    victim = place.rng.choice(workers)
    hit = place.in_work([victim])
    os.kill(victim, signal.SIGKILL)
    return hit


def kill_all(place: Place, batch: Batch) -> bool:
    """kill -9 of a whole batch."""
    hit = place.in_work(batch.workers())
    batch.kill()
    return hit


def stop_worker(place: Place, batch: Batch) -> bool:
    """One process is stopped for longer than its lease, while another batch goes on."""
    workers = batch.workers()
    return bool(workers) and _stopped(place, place.rng.choice(workers))


def stop_main(place: Place, batch: Batch) -> bool:
    """The process that gives cases out is stopped, while another batch goes on."""
    hit = place.in_work(batch.workers())
    _stopped(place, batch.main)
    return hit


def _stopped(place: Place, pid: int) -> bool:
    hit = place.in_work([pid])
    os.kill(pid, signal.SIGSTOP)
    if len([batch for batch in place.batches if batch.running]) < 2:
        place.add()
    time.sleep(LEASE_S + place.rng.uniform(1, 4))
    if alive(pid):
        os.kill(pid, signal.SIGCONT)
    return hit


def fill_disk(place: Place, batch: Batch) -> bool:
    """The disk is full for a while."""
    assert place.disk is not None
    hit = place.in_work(batch.workers())
    filler = place.disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        try:
            for size in (1 << 20, 1 << 12):
                while stream.write(bytes(size)) == size:
                    pass
        except OSError:
            pass
    time.sleep(place.rng.uniform(1, 4))
    filler.unlink()
    return hit


def read_only(place: Place, batch: Batch) -> bool:
    """Nothing can be written for a while."""
    assert place.disk is not None
    hit = place.in_work(batch.workers())
    for _ in range(500):  # it is refused while a file is open for writing
        if _mount("-o", "remount,ro", str(place.disk)):
            break
        time.sleep(0.005)
    else:
        return False
    time.sleep(place.rng.uniform(1, 4))
    assert _mount("-o", "remount,rw", str(place.disk))
    return hit


def _mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


EVERYWHERE = {
    "worker killed": kill_worker,
    "all killed": kill_all,
    "worker stopped": stop_worker,
    "main stopped": stop_main,
}
ON_A_DISK = {"disk full": fill_disk, "read-only": read_only}


def own_disk(folder: Path, *, megabytes: int = 256) -> bool:
    """Mount a small file system in memory; False where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    return _mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder))


SERVER_S = 90.0
FLOW = """
import json, sys
from flows.segment_folder import segment_folder
segment_folder(**json.loads(sys.argv[1]))
"""


def kill_server(place: Place, parameters: dict[str, object], home: Path, *, port: int) -> bool:
    """A flow is at work on the folder when its Prefect server is killed; True if a case was in work."""
    environment = {
        "PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_API_REQUEST_TIMEOUT": "5",
    }  # fmt: skip
    server = Batch(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        place.log, **environment,
    )  # fmt: skip
    try:
        if not _answers(f"http://127.0.0.1:{port}/api/health"):
            raise SystemExit(f"the Prefect server did not start; see {place.log}")
        flow = Batch([sys.executable, "-c", FLOW, json.dumps(parameters)], place.log, **environment)
        hit = place.until_work(flow)
        time.sleep(place.rng.uniform(0, 2))
        hit = hit and place.in_work(flow.workers())
    finally:
        server.kill()
    until = time.monotonic() + 15
    while flow.running and time.monotonic() < until:
        time.sleep(0.1)
    flow.kill()  # what it would do until it gives up its server is not waited for
    return hit


def _answers(url: str) -> bool:
    from urllib.request import urlopen

    until = time.monotonic() + SERVER_S
    while time.monotonic() < until:
        try:
            with urlopen(url, timeout=2):
                return True
        except OSError:
            time.sleep(0.5)
    return False
