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

CONFIG = "core = 256\nslab = 256\nchunk = 128\n"
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


@pytest.mark.timeout(600)
def test_ten_kills_at_random_moments_leave_the_same_bytes(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    assert start(tmp_path / "whole", config).wait() == 0
    out, rng = tmp_path / "killed", random.Random(20)
    finished_before: dict[str, int] = {}
    kills = 0
    while kills < KILLS:
        process = start(out, config)
        # Wait for the work itself to begin, so that kills fall into it and not into start-up.
        begun, deadline = time.time_ns(), time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if len(ledger(out)) > len(finished_before):
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        now = ledger(out)
        assert {name: now[name] for name in finished_before} == finished_before
        assert all(written > begun for name, written in now.items() if name not in finished_before)
        finished_before = now
    assert kills >= 6, "the slide was finished before it could be killed often enough"
    assert start(out, config).wait() == 0
    assert label_files(out) == label_files(tmp_path / "whole")
    after = ledger(out)
    assert {name: after[name] for name in finished_before} == finished_before


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
