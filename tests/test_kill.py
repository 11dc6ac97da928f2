"""kill -9 at any moment, then the same command: the same bytes, and nothing finished is done again."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import REPOSITORY, espnet3d_card
from tests.executors import BAND, PLAIN, SLAB, TALL, memory_for_band, tall_slide
from tests.test_volumes import write_volume
from wsiseg.models.zoo import load_card

pytestmark = pytest.mark.slow

KILLS = 10
DRIVER = """
import json, os, sys, time
import wsiseg, wsiseg.overlay, wsiseg.pipeline
from wsiseg.sources.cached import CachedSource

original = CachedSource.read

def segment(input, out, log, options):
    rows = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def read(cached, region):
        os.write(rows, f"{region[0].start} {region[0].stop}\\n".encode())
        time.sleep(0.01)  # so that a fast machine is killed while it works, too
        return original(cached, region)

    CachedSource.read = read
    wsiseg.segment(input, out, **options)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        segment(*json.loads(line))
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs one segmentation after another, each in a process of its own that need not import anything."""


class Runs:
    """Segmentations of one slide with one set of options, in processes that can be killed."""

    def __init__(self, driver: subprocess.Popen[str], slide: Path, logs: Path, **options: Any) -> None:
        self._driver = driver
        self._slide = slide
        self._logs = logs
        self._options = options
        self._child = 0
        self.count = 0

    def _line(self) -> int:
        assert self._driver.stdout is not None
        return int(self._driver.stdout.readline())

    def start(self, out: Path) -> None:
        assert self._driver.stdin is not None
        self.count += 1
        log = self._logs / f"{out.name}-{self.count:03d}.txt"
        request = [str(self._slide), str(out), str(log), self._options]
        self._driver.stdin.write(json.dumps(request) + "\n")
        self._driver.stdin.flush()
        self._child = self._line()

    def is_over(self) -> bool:
        assert self._driver.stdout is not None
        return bool(select.select([self._driver.stdout], [], [], 0)[0])

    def kill(self) -> bool:
        """kill -9; False if the run had come to its end."""
        if not self.is_over():
            os.kill(self._child, signal.SIGKILL)
        return self.status() == -signal.SIGKILL

    def status(self) -> int:
        """What the run ends with, waited for."""
        return self._line()

    def finish(self, out: Path) -> None:
        self.start(out)
        assert self.status() == 0

    def rows_read_twice(self, out: Path) -> list[int]:
        """Of each run into a store but the first: rows that it read although a run before had."""
        read: list[tuple[int, int]] = []
        for log in sorted(self._logs.glob(f"{out.name}-*.txt")):
            rows = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
            if rows:  # killed before it began, otherwise
                read.append((rows[0][0], min(rows[-1][1], TALL[0])))
        return [max(stop for _, stop in read[:n]) - read[n][0] for n in range(1, len(read))]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    script = tmp_path_factory.mktemp("driver") / "driver.py"
    script.write_text(DRIVER)
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as process:
        yield process


@pytest.fixture(scope="module")
def narrow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return espnet3d_card(tmp_path_factory.mktemp("narrow"), channels=1)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tall_slide(tmp_path_factory.mktemp("slide"))


def ledger(out: Path) -> dict[str, int]:
    """Finished slabs and when their entries were written, in ns."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.ome.zarr/ledger/slab-*.json")}


def label_files(out: Path) -> dict[str, bytes]:
    """What lies in a store of mask and confidence."""
    store = next(out.glob("*.ome.zarr"))
    files = [p for name in ("labels", "confidence") for p in (store / name).rglob("*") if p.is_file()]
    return {str(p.relative_to(store)): p.read_bytes() for p in files}


def kill_while_working(runs: Runs, out: Path, rng: random.Random) -> bool:
    """Kill a run soon after it has written a slab, or just anywhere; False if it was finished before."""
    before, begun = ledger(out), time.time_ns()
    runs.start(out)
    if rng.random() < 0.7:
        # Wait for the work itself to begin, so that kills fall into it and not into start-up.
        deadline = time.monotonic() + 60
        while not runs.is_over() and time.monotonic() < deadline and len(ledger(out)) == len(before):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
    else:
        time.sleep(rng.uniform(0, 0.5))
    killed = runs.kill()
    after = ledger(out)
    assert {name: after[name] for name in before} == before  # nothing finished was done again
    assert all(written > begun for name, written in after.items() if name not in before)
    return killed


def kill_ten_times(runs: Runs, folder: Path, *, seed: int) -> list[Path]:
    """The stores that were killed and finished; each has the bytes of one that never was."""
    runs.finish(folder / "whole")
    expected, rng, kills = label_files(folder / "whole"), random.Random(seed), 0
    stores = []
    for attempt in range(KILLS):  # a fast machine finishes a store before its tenth kill: begin another
        out = folder / f"killed-{attempt}"
        stores.append(out)
        while kills < KILLS and kill_while_working(runs, out, rng):
            kills += 1
        before = ledger(out)
        runs.finish(out)
        assert label_files(out) == expected
        assert {name: ledger(out)[name] for name in before} == before
        if kills == KILLS:
            break
    assert kills == KILLS
    return stores


def execution(out: Path) -> dict[str, Any]:
    report = json.loads(next(out.glob("*.report.json")).read_text())
    return {**report["execution"], **report["work"]}


@pytest.mark.timeout(600)
def test_ten_kills_of_windows_leave_the_same_bytes(
    driver: subprocess.Popen[str], slide: Path, tmp_path: Path
) -> None:
    runs = Runs(driver, slide, tmp_path, **PLAIN, core=64)
    kill_ten_times(runs, tmp_path, seed=20)
    assert execution(tmp_path / "whole")["executor"] == "windowed"


@pytest.mark.timeout(600)
def test_ten_kills_of_streaming_leave_the_same_bytes_and_repeat_no_more_than_one_slab_needs(
    driver: subprocess.Popen[str], slide: Path, tmp_path: Path
) -> None:
    memory = memory_for_band(TALL, band=BAND)
    runs = Runs(driver, slide, tmp_path, **PLAIN, memory=memory, confidence=True)
    stores = kill_ten_times(runs, tmp_path, seed=21)
    assert "confidence/1/zarr.json" in label_files(stores[0])
    whole = execution(tmp_path / "whole")
    assert (whole["executor"], whole["band"], whole["repeated_pixels"]) == ("streaming", BAND, 0)
    twice = [rows for out in stores for rows in runs.rows_read_twice(out)]
    assert len(twice) >= KILLS // 2  # but for runs that were killed before they read anything
    reach = load_card("demo-breast8").windows.receptive_field
    assert reach is not None
    field = sum(reach) + 1
    assert max(twice) <= field + SLAB + 2 * BAND


@pytest.mark.timeout(600)
def test_ten_kills_on_a_volume_leave_the_same_bytes(
    driver: subprocess.Popen[str], tmp_path: Path, narrow_model: Path
) -> None:
    values = np.random.default_rng(6).integers(0, 900, (30, 26, 320)).astype(np.int16)
    write_volume(tmp_path / "v.nii.gz", values, np.diag([1.0, 1.2, 0.8, 1.0]))
    options = {"model": str(narrow_model), "memory": 640, "chunk": 16, "slab": 16, "image": "none"}
    runs = Runs(driver, tmp_path / "v.nii.gz", tmp_path, **options, readers=1, threads=1, confidence=True)
    stores = kill_ten_times(runs, tmp_path, seed=22)
    whole = execution(tmp_path / "whole")
    assert (whole["executor"], whole["repeated_pixels"]) == ("streaming", 0)
    for name in ("v.mask.nii.gz", "v.confidence.nii.gz"):
        assert len({(out / name).read_bytes() for out in (tmp_path / "whole", *stores)}) == 1


@pytest.mark.timeout(300)
def test_kills_while_starting_and_finishing_leave_the_same_bytes(slide: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('image = "none"\nslab = 64\nchunk = 32\nthreads = 1\nconfidence = true\n')

    def start(out: Path) -> subprocess.Popen[bytes]:
        options = ["--out", str(out), "--config", str(config)]
        command = [sys.executable, "-m", "wsiseg", "segment", str(slide), *options]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    begun = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    seconds, rng = time.monotonic() - begun, random.Random(3)
    for _ in range(4):
        process = start(tmp_path / "killed")
        time.sleep(rng.uniform(0.2, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(tmp_path / "killed").wait() == 0
    assert label_files(tmp_path / "killed") == label_files(tmp_path / "whole")
