"""Models of 8-bit numbers: what they lose, what they weigh, and that they are used like any other."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import wsiseg
from tests.cases import CROPS, NAMES, mask_of
from tests.test_cli import Ran, assert_one_sentence
from wsiseg.models.card import read_card
from wsiseg.training import compressing

MANIFEST = Path(__file__).parents[1] / "data_manifests" / "ynet-breast8.csv"
MODEL = "demo-breast8-without-2204"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """The shipped crops: that of the case which the model has not seen is for testing."""
    rows: list[dict[str, Any]] = list(csv.DictReader(MANIFEST.read_text(encoding="utf-8").splitlines()))
    for row in rows:
        row["split"] = "test" if row["case"].startswith("2204") else "train"
    path = tmp_path / "m.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def arguments(manifest: Path, out: Path, *more: str) -> tuple[Any, ...]:
    return ("compress", MODEL, manifest, "--root", CROPS, "--split", "test", "--out", out, *more)


@pytest.mark.slow
def test_a_model_in_8_bits_loses_little_and_says_what(
    tmp_path: Path, manifest: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "small.json"
    ran = Ran(capfd, *arguments(manifest, out))
    assert ran.status == 0, ran.err
    assert "CPU seconds a megapixel" in ran.out
    assert "WARNING" not in ran.err
    card, figures = read_card(out), read_card(out).quality["compression"]
    before, after = figures["before"], figures["after"]
    assert (card.name, card.weights, card.network.name) == ("small", "small.onnx", "onnx")
    assert (figures["of"], figures["cases"], figures["split"]) == (MODEL, 1, "test")
    assert before["mean IoU"] == pytest.approx(np.mean(list(before["IoU"].values())), abs=1e-4)
    assert abs(before["mean IoU"] - after["mean IoU"]) < 0.01
    assert before["IoU"].keys() == after["IoU"].keys() >= {"malignant epithelium", "desmoplastic stroma"}
    assert after["bytes"] == out.with_suffix(".onnx").stat().st_size < before["bytes"] / 2
    assert min(f["CPU seconds a megapixel"] for f in (before, after)) > 0
    assert "other stains may exceed them" in card.limits[-1]

    graph = onnx.load(out.with_suffix(".onnx")).graph
    stored = {kind: sum(t.data_type == kind for t in graph.initializer) for kind in (1, 3)}
    assert stored[onnx.TensorProto.INT8] > 30  # the weights of every convolution
    wide = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert max(int(np.prod(t.dims)) for t in wide) <= 256  # scales, norms and slopes

    crop = CROPS / "images" / f"{NAMES[2]}.png"
    options: dict[str, Any] = {"mpp": 0.5, "image": "none", "device": "cpu", "executor": "windowed"}
    options |= {"core": 128, "halo": 16}  # windows of another size than those that it was made with
    plain = wsiseg.segment(crop, tmp_path / "plain", MODEL, **options)
    small = wsiseg.segment(crop, tmp_path / "small", out, **options)
    assert 0.97 < float((mask_of(plain) == mask_of(small)).mean()) < 1


@pytest.mark.slow
def test_it_prints_json_and_refuses_what_is_compressed_already(
    tmp_path: Path, manifest: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small.json"
    ran = Ran(capfd, *arguments(manifest, out, "--json"))
    assert json.loads(ran.out)["quality"]["compression"]["of"] == MODEL
    again = Ran(capfd, "compress", out, manifest, "--root", CROPS, "--out", tmp_path / "b.json")
    assert_one_sentence(again, 2, "model small is an exported graph already")


def test_what_cannot_be_done_is_one_sentence(
    tmp_path: Path, manifest: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "small.json"
    none = Ran(capfd, *arguments(manifest, out, "--split", "validation"))
    assert_one_sentence(none, 2, "m.csv has no case whose split is validation")
    out.write_text("there")
    there = Ran(capfd, *arguments(manifest, out))
    assert_one_sentence(there, 2, "is there already", "--overwrite")
    out.unlink()
    monkeypatch.setattr(compressing, "missing", lambda backend: ["onnx"])
    lacking = Ran(capfd, *arguments(manifest, out))
    assert_one_sentence(lacking, 2, "compressing needs onnx, not installed", "wsiseg[onnxruntime]")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.csv"]
