"""A process that is stopped for longer than its lease, and wakes when another has its case."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wsiseg
from tests.cases import write_tiff
from tests.conftest import random_image
from tests.images import rgb_last
from wsiseg.claims import last_claim

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OPTIONS: dict[str, Any] = {
    "executor": "windowed", "core": 64, "halo": 16, "slab": 32, "chunk": 32, "tissue_filter": False,
    "image": "none", "lease_s": 1.5,
}  # fmt: skip
SLOW = """
import json, sys, time
import wsiseg
from wsiseg.sources.cached import CachedSource

original = CachedSource.read

def read(cached, region):
    time.sleep(0.05)  # so that it can be stopped while it works
    return original(cached, region)

CachedSource.read = read
try:
    report = wsiseg.segment(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
except wsiseg.WsisegError as err:
    print(type(err).__name__, err, flush=True)
    sys.exit(1)
print(report.status, flush=True)
"""


def begun(slide: Path, out: Path, *, slabs: int) -> subprocess.Popen[str]:
    """A segmentation in a process that has finished some slabs."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(slide), str(out), json.dumps(OPTIONS)],
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.ome.zarr/ledger/slab-*.json"))) < slabs:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def content(out: Path) -> dict[str, bytes]:
    """Every file of the mask and the ledger."""
    store = out / "a.ome.zarr"
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for part in ("labels", "ledger")
        for path in sorted((store / part).rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("wakes", ["in the middle", "at the end"])
def test_another_takes_the_case_over_and_the_one_that_wakes_changes_nothing(
    tmp_path: Path, wakes: str
) -> None:
    slide = write_tiff(tmp_path / "a.tif", rgb_last(random_image((480, 130), seed=2)))
    wsiseg.segment(slide, tmp_path / "alone", **OPTIONS)
    out = tmp_path / "out"
    first = begun(slide, out, slabs=3)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        done = len(list(out.glob("*.ome.zarr/ledger/slab-*.json")))
        second = begun(slide, out, slabs=done + 3)
        seen = last_claim(out, "a")
        assert seen is not None
        assert (seen.epoch, seen.holder["process"]) == (2, second.pid)
        if wakes == "in the middle":
            os.kill(first.pid, signal.SIGCONT)
            said, _ = first.communicate(timeout=60)
            assert said.startswith("ClaimLost a was taken over by process")
        assert second.communicate(timeout=120)[0] == "segmented\n"
        before = content(out)
        if wakes == "at the end":
            os.kill(first.pid, signal.SIGCONT)
            said, _ = first.communicate(timeout=60)
            assert said.startswith("ClaimLost a was taken over by another")
        assert first.returncode == 1
    finally:
        first.kill()
        first.communicate()
    assert content(out) == before
    # What a slab cost, which its ledger entry says too, depends on where the work was taken over.
    alone = content(tmp_path / "alone")
    assert {n: b for n, b in before.items() if n.startswith("labels")} == {
        n: b for n, b in alone.items() if n.startswith("labels")
    }
    assert before.keys() == alone.keys()
    assert wsiseg.open_store(out / "a.ome.zarr").verify() == []
    assert not (out / ".claims").exists()


def test_while_one_works_another_is_told_and_does_nothing(tmp_path: Path) -> None:
    slide = write_tiff(tmp_path / "a.tif", rgb_last(random_image((480, 130), seed=2)))
    out = tmp_path / "out"
    first = begun(slide, out, slabs=2)
    with pytest.raises(wsiseg.WsisegError, match=f"a is in work by process {first.pid} on "):
        wsiseg.segment(slide, out, **OPTIONS)
    assert first.communicate(timeout=120)[0] == "segmented\n"
    np.testing.assert_array_equal(
        wsiseg.open_store(out / "a.ome.zarr").mask()[:],
        wsiseg.open_store(wsiseg.segment(slide, tmp_path / "alone", **OPTIONS).store).mask()[:],
    )
