"""A short version of `benchmarks.faults`: what is killed, stopped or has no room ends with the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.disturbances import EVERYWHERE, ON_A_DISK
from benchmarks.faults import content, losses, trial
from benchmarks.slide import make_slide
from tests.cases import SMALL
from wsiseg import open_store, segment

pytestmark = pytest.mark.slow


@pytest.mark.timeout(600)
def test_a_batch_to_which_things_happen_loses_nothing(tmp_path: Path) -> None:
    for number in range(4):
        make_slide(tmp_path / "in" / f"{number}.tif", height=1500 + 100 * number, width=1000)
    kinds = ["worker killed", "all killed", "worker stopped"]
    found = trial([str(tmp_path / "in")], tmp_path, rounds=3, seed=1, kinds=kinds)
    assert found.faults == dict.fromkeys(kinds, 1)
    assert found.hits.total() >= 1
    assert (found.losses, found.twice) == ([], [])
    assert set(kinds) < EVERYWHERE.keys() | ON_A_DISK.keys()


def test_a_byte_that_differs_is_a_loss(slide: Path, tmp_path: Path) -> None:
    for name in ("whole", "out"):
        segment(slide, tmp_path / name, image="none", **SMALL)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert content(out)
    assert losses(out, whole) == []
    mask = open_store(out / "scene.ome.zarr").mask()
    mask[0, 0] = 3 - int(np.asarray(mask[0, 0]))
    (out / "b.failure.json").touch()
    (out / ".claims").mkdir()
    assert losses(out, whole) == [
        "out: scene.ome.zarr/labels/tissue/0/c/0/0 differs",
        "out: scene.ome.zarr: mask rows 0 to 64 are not what was written",
        "out: b.failure.json is left",
        "out: claims are left",
    ]
