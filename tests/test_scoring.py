"""Scores of a case against truth, with the run or after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import wsiseg
from tests.cases import CROPS, NAMES, SMALL, mask_of, polygon
from tests.test_volumes import write_volume
from wsiseg.annotations.labels import IndexLabels
from wsiseg.classes import anonymous_classes
from wsiseg.comparing import calibration, confusion
from wsiseg.errors import (
    AnnotationError,
)
from wsiseg.geometry import Region
from wsiseg.metrics import ConfusionMatrix

pytestmark = pytest.mark.usefixtures("eight_classes")


def test_annotations_of_a_crop_are_scored_and_a_finished_mask_is_scored_without_computing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = NAMES[0]
    image, truth = CROPS / "images" / f"{name}.png", CROPS / "masks" / f"{name}.png"
    report = wsiseg.segment(image, tmp_path, mpp=0.5, core=128, halo=64, annotations=truth)
    assert report.scores is not None
    prediction, expected = mask_of(report), np.asarray(Image.open(truth))[..., 0]
    for entry in report.scores.classes:
        p, t = prediction == entry.index, expected == entry.index
        union = int((p | t).sum())
        assert entry.iou == (int((p & t).sum()) / union if union else None)
    again = wsiseg.evaluate(report.store, truth)
    assert again.volume_scores is None
    assert again.calibration is None
    own = again.model_dump(exclude={"volume_scores", "calibration"})
    assert own.pop("review") is None
    assert own == report.scores.model_dump()
    monkeypatch.setattr("wsiseg.pipeline.load_predictor", None)
    flipped = tmp_path / "other.png"
    Image.fromarray(expected[::-1]).save(flipped)
    other = wsiseg.segment(image, tmp_path, mpp=0.5, core=128, halo=64, annotations=flipped)
    assert other.scores is not None
    assert other.scores != report.scores


def test_evaluate_takes_pictures_and_writes_scores(tmp_path: Path) -> None:
    truth = np.array([[0, 2], [4, 255]], np.uint8).repeat(3, axis=0)
    prediction = np.array([[0, 2], [2, 2]], np.uint8).repeat(3, axis=0)
    Image.fromarray(truth).save(tmp_path / "truth.png")
    Image.fromarray(prediction).save(tmp_path / "prediction.png")
    scores = wsiseg.evaluate(
        tmp_path / "prediction.png", tmp_path / "truth.png", out=tmp_path / "scores.json"
    )
    assert [c.iou for c in scores.classes] == [1.0, None, 0.5, None, 0.0, None, None, None]
    assert scores.mean_iou == 0.5
    assert scores.void_pixels == 3
    assert json.loads((tmp_path / "scores.json").read_text())["pixel_accuracy"] == pytest.approx(6 / 9)


def test_truth_that_does_not_fit_is_refused_before_anything_is_computed(slide: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(AnnotationError, match="small.png has 10 x 12 pixels .* the prediction has 300 x 520"):
        wsiseg.segment(slide, tmp_path, annotations=tmp_path / "small.png", **SMALL)
    strange = tmp_path / "strange.geojson"
    strange.write_text(json.dumps([polygon("cartilage", (0, 0), (9, 0), (9, 9))]))
    with pytest.raises(AnnotationError, match=r"model does not know: 'cartilage' \(1, first: feature 1\)"):
        wsiseg.segment(slide, tmp_path, annotations=strange, **SMALL)
    with pytest.raises(AnnotationError, match="no such annotation"):
        wsiseg.segment(slide, tmp_path, annotations=tmp_path / "none.png", **SMALL)
    assert not list(tmp_path.glob("*.ome.zarr"))
    with pytest.raises(AnnotationError, match="no such prediction"):
        wsiseg.evaluate(tmp_path / "none.png", strange)


def test_a_mask_that_cannot_be_decoded_is_one_sentence(slide: Path, tmp_path: Path) -> None:
    report = wsiseg.segment(slide, tmp_path, **SMALL)
    shard = next(p for p in (report.store / "labels" / "tissue" / "0" / "c").rglob("*") if p.is_file())
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    Image.fromarray(np.zeros((300, 520), np.uint8)).save(tmp_path / "truth.png")
    with pytest.raises(AnnotationError, match="has pixels that cannot be decoded, near row"):
        wsiseg.evaluate(report.store, tmp_path / "truth.png")


def test_evaluate_of_a_volume_gives_what_the_run_gave_from_the_store_and_from_its_nifti(
    tmp_path: Path,
) -> None:
    from wsiseg.demo import SAMPLES

    folder = SAMPLES / "msd-hippocampus"
    volume, truth = (folder / kind / "hippocampus_149.nii.gz" for kind in ("images", "labels"))
    report = wsiseg.segment(volume, tmp_path, annotations=truth, image="none", threads=1)
    assert report.nifti is not None
    assert report.volume_scores is not None
    assert report.volume_scores.classes[1].hausdorff_95_mm is not None
    for prediction in (report.store, report.nifti):
        made = wsiseg.evaluate(prediction, truth, out=tmp_path / "scores.json")
        assert made.volume_scores == report.volume_scores
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["volume_scores"]["mean_dice"] == report.volume_scores.mean_dice
    given: Any = nib.load(truth)
    affine = given.affine.copy()
    affine[0, 3] += 4
    write_volume(tmp_path / "moved.nii.gz", np.asarray(given.dataobj), affine)
    with pytest.raises(AnnotationError, match="lies elsewhere than the volume"):
        wsiseg.evaluate(report.nifti, tmp_path / "moved.nii.gz")


def test_a_confidence_is_held_against_truth_where_both_say_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sure = np.array([[0, 51, 102], [255, 255, 204]], np.uint8)
    masks = {"prediction": [[0, 1, 1], [1, 0, 255]], "truth": [[0, 1, 0], [1, 255, 1]]}
    prediction, truth = (
        IndexLabels(np.array(m, np.uint8), classes=anonymous_classes(2), name=n, shape=(2, 3))
        for n, m in masks.items()
    )
    for piece in (1, 100):
        monkeypatch.setattr("wsiseg.comparing.SCORE_BLOCK_PX", piece)
        made = calibration(sure, prediction, truth)
        assert made.pixels == 3  # 0.2 right, 0.4 wrong, 1 right
        assert made.expected_calibration_error == pytest.approx((0.8 + 0.4 + 0) / 3)
        assert [i for i, b in enumerate(made.bins) if b.pixels] == [2, 5, 14]


@pytest.mark.parametrize("shape", [(40,), (9, 14), (7, 9, 11)])
def test_confusion_in_blocks_is_that_of_the_whole(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(len(shape))
    truth, prediction = (rng.integers(0, 3, shape, dtype=np.uint8) for _ in range(2))
    labels = [
        IndexLabels(values, classes=anonymous_classes(3), name="labels", shape=shape)
        for values in (prediction, truth)
    ]
    seen = []
    original = IndexLabels.read

    def read(own: IndexLabels, region: Region) -> Any:
        seen.append(region)
        return original(own, region)

    monkeypatch.setattr(IndexLabels, "read", read)
    monkeypatch.setattr("wsiseg.comparing.SCORE_BLOCK_PX", 30)
    made = confusion(labels[0], labels[1], num_classes=3)
    whole = ConfusionMatrix.of(truth=truth, prediction=prediction, num_classes=3)
    np.testing.assert_array_equal(made.counts, whole.counts)
    assert len(seen) > 2
    assert all(np.prod([part.stop - part.start for part in region]) <= 30 for region in seen)
