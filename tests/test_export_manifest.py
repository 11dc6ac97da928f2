"""A reviewed slide becomes a row that can be trained on."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import wsiseg
from wsiseg.errors import UsageError
from wsiseg.export.command import export_store
from wsiseg.manifest import read_manifest
from wsiseg.reviews.corrections import Corrections
from wsiseg.store import open_store
from wsiseg.training.cases import open_cases
from wsiseg.training.run import read_run

SAMPLE = Path(wsiseg.__file__).parent / "samples" / "ynet-breast8" / "images" / "2204_1_18400_11800_1.33.png"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    Image.open(SAMPLE).crop((0, 0, 64, 64)).save(folder / "case.png")
    wsiseg.segment(
        folder / "case.png", folder / "results", mpp=0.5, model="demo-breast8", device="cpu", image="none"
    )
    return folder


def draw(results: Path, initials: str, *, index: int = 2) -> None:
    store = open_store(results / "results" / "case.ome.zarr")
    ring = [(4, 8), (24, 8), (24, 40), (4, 40)]
    Corrections(store).draw(initials, str(uuid.uuid4()), [[ring]], index=index, version=0)


def row(results: Path, **settings: Any) -> Any:
    asked = {"patient": "p", "input": results / "case.png", **settings}
    store = results / "results" / "case.ome.zarr"
    out = asked.pop("out", results / "manifest.csv")
    return export_store(store, to="training-manifest", out=out, **asked)


def test_a_review_is_trained_on_where_something_was_drawn(results: Path) -> None:
    with pytest.raises(UsageError, match="nobody has drawn anything"):
        row(results)
    draw(results, "AB")
    assert row(results).details["row"]["annotation"] == "results/case.review.AB.geojson"
    row(results, patient="q")  # the row of the case is replaced
    (case,) = read_manifest(results / "manifest.csv").cases
    assert (case.path, case.patient, case.split, case.mpp) == ("case.png", "q", "train", 0.5)

    run = {
        "name": "x", "classes": "breast8", "steps": 1,
        "network": {"name": "espnet", "arguments": {"classes": 8}},
        "data": {"manifest": "manifest.csv", "allow_empty_classes": True},
        "patches": {"size": 32},
        "preprocessing": {"mean": [180, 140, 180], "std": [40, 50, 40]}, "spacing": {"value": 0.5},
        "card": {"training_data": "a test", "licence": "none", "intended_use": "a test"},
    }  # fmt: skip
    (results / "run.yaml").write_text(yaml.safe_dump(run))
    (opened,) = open_cases(read_run(results / "run.yaml")).train
    truth = opened.truth((slice(0, 64), slice(0, 64)))
    expected = np.full((64, 64), 255, np.uint8)
    expected[8:40, 4:24] = 2
    np.testing.assert_array_equal(truth, expected)


def test_what_makes_no_row_is_said(results: Path, tmp_path: Path) -> None:
    draw(results, "AB")
    with pytest.raises(UsageError, match="name the patient with --patient"):
        row(results, patient=None)
    with pytest.raises(UsageError, match="--split tests is not known"):
        row(results, split="tests")
    with pytest.raises(UsageError, match="the result has no image to train on; name the slide"):
        row(results, input=None)
    with pytest.raises(UsageError, match="paths of a manifest do not leave its folder"):
        row(results, out=tmp_path / "m.csv")
    draw(results, "CD")
    with pytest.raises(UsageError, match="name a reviewer with --reviewer; those who drew on it are AB, CD"):
        row(results)
    assert row(results, reviewer="CD").details["row"]["annotation"] == "results/case.review.CD.geojson"
