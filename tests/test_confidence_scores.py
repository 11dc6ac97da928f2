"""Scores of a confidence: what evaluate and segment say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wsiseg
from tests.cases import CROPS, NAMES
from tests.test_cli import Ran
from wsiseg.classes import VOID
from wsiseg.errors import AnnotationError

pytestmark = pytest.mark.usefixtures("eight_classes")


def test_evaluate_and_segment_say_how_far_the_confidence_can_be_trusted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image, truth = (CROPS / kind / f"{NAMES[0]}.png" for kind in ("images", "masks"))
    made = "segment", image, "--out", tmp_path, "--mpp", "0.5", "--image", "none", "--confidence"
    ran = Ran(capfd, *made)
    assert ran.status == 0, ran.err
    assert f"{NAMES[0]}.confidence.png" in ran.out.replace("\n", "")
    store = tmp_path / f"{NAMES[0]}.ome.zarr"
    asked = ("evaluate", "--prediction", store, "--truth", truth)
    found = json.loads(Ran(capfd, *asked, "--json").out)["calibration"]

    opened = wsiseg.open_store(store)
    confidence: Any = opened.confidence()
    stated = np.asarray(Image.open(truth))[..., 0]
    mask, sure = np.asarray(opened.mask()[:]), np.asarray(confidence[:]) / 255
    counted = (stated != VOID) & (sure > 0) & ((stated != 0) | (mask != 0))
    error = 0.0
    for number, entry in enumerate(found["bins"]):
        own = counted & (sure > number / 15) & (sure <= (number + 1) / 15)
        assert entry["pixels"] == own.sum()
        if own.any():
            right = (mask == stated)[own].mean()
            assert entry["accuracy"] == pytest.approx(right)
            assert entry["confidence"] == pytest.approx(sure[own].mean())
            error += abs(right - sure[own].mean()) * own.sum() / counted.sum()
    assert found["expected_calibration_error"] == pytest.approx(error)
    assert found["pixels"] == counted.sum()
    shown = Ran(capfd, *asked).out
    assert f"expected calibration error {error:.4f} over {counted.sum()} pixels" in shown

    scored = (*made, "--annotations", truth)
    report = json.loads(Ran(capfd, *scored, "--json").out)["cases"][0]
    assert report["confidence"]["calibration"] == found
    assert f"expected calibration error {error:.4f}" in Ran(capfd, *scored).out

    for shard in (store / "confidence" / "0" / "c").rglob("*/*"):
        shard.write_bytes(b"\xff" * shard.stat().st_size)
    with pytest.raises(AnnotationError, match="the confidence of the prediction has pixels that cannot be"):
        wsiseg.evaluate(store, truth)
