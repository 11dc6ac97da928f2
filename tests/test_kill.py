"""kill -9 at any moment, then the same command: the same bytes, and nothing finished is done again."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import SLIDE

pytestmark = pytest.mark.slow

CONFIG = "core = 128\nslab = 128\nchunk = 64\n"
KILLS = 10


def start(out: Path, config: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "wsiseg",
        "segment",
        str(SLIDE),
        "--out",
        str(out),
        "--config",
        str(config),
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ledger(out: Path) -> dict[str, int]:
    """Finished slabs and when their entries were written, in ns."""
    folder = out / f"{SLIDE.stem}.ome.zarr" / "ledger"
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("slab-*.json")}


def label_files(out: Path) -> dict[str, bytes]:
    labels = out / f"{SLIDE.stem}.ome.zarr" / "labels"
    return {str(p.relative_to(labels)): p.read_bytes() for p in labels.rglob("*") if p.is_file()}


def kill_while_working(out: Path, config: Path, rng: random.Random) -> bool:
    """Kill a run soon after it has written a slab; False if it was finished before."""
    before, begun = ledger(out), time.time_ns()
    process = start(out, config)
    deadline = time.monotonic() + 60
    # Wait for the work itself to begin, so that kills fall into it and not into start-up.
    while process.poll() is None and time.monotonic() < deadline and len(ledger(out)) == len(before):
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.2))
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    after = ledger(out)
    assert {name: after[name] for name in before} == before  # nothing finished was done again
    assert all(written > begun for name, written in after.items() if name not in before)
    return True


@pytest.mark.timeout(600)
def test_ten_kills_at_random_moments_leave_the_same_bytes(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    assert start(tmp_path / "whole", config).wait() == 0
    expected, rng, kills = label_files(tmp_path / "whole"), random.Random(20), 0
    for attempt in range(KILLS):  # a fast machine finishes a store before its tenth kill: begin another
        out = tmp_path / f"killed-{attempt}"
        while kills < KILLS and kill_while_working(out, config, rng):
            kills += 1
        before = ledger(out)
        assert start(out, config).wait() == 0
        assert label_files(out) == expected
        assert {name: ledger(out)[name] for name in before} == before
        if kills == KILLS:
            break
    assert kills == KILLS


@pytest.mark.timeout(300)
def test_kills_while_starting_and_finishing_leave_the_same_bytes(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    assert start(tmp_path / "whole", config).wait() == 0
    rng = random.Random(3)
    for _ in range(4):
        process = start(tmp_path / "killed", config)
        time.sleep(rng.uniform(1.0, 6.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(tmp_path / "killed", config).wait() == 0
    assert label_files(tmp_path / "killed") == label_files(tmp_path / "whole")
