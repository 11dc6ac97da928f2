"""What is checked before any time is spent, and cases on the run's grid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.training_data import pictures, save, volume, volumes
from wsiseg.classes import VOID
from wsiseg.errors import AnnotationError, ManifestError, UnreadableSource, WsisegError
from wsiseg.models.card import sha256_of
from wsiseg.training import cases as cases_module
from wsiseg.training.cases import class_counts, open_cases
from wsiseg.training.census import take_census


def rewritten(folder: Path, old: str, new: str) -> None:
    text = (folder / "m.csv").read_text()
    assert old in text
    (folder / "m.csv").write_text(text.replace(old, new))


def relabelled(folder: Path, value: float) -> None:
    truth = volume(0)[1].astype(np.float32)
    truth[0, 0, 0] = value
    save(folder / "labels" / "0.nii.gz", truth)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: relabelled(f, 3), AnnotationError, "has class 3, which the model does not know"),
        (lambda f: relabelled(f, 1.5), AnnotationError, "no class indices"),
        (lambda f: relabelled(f, 256), AnnotationError, "no class indices"),
        (
            lambda f: save(f / "labels" / "0.nii.gz", volume(0)[1][:-1]),
            AnnotationError,
            "labels/0.nii.gz has 15 x 19 x 12 pixels .* 15 x 19 x 13",
        ),
        (
            lambda f: save(f / "labels" / "0.nii.gz", volume(0)[1], np.diag([-1.0, 1, 1, 1])),
            AnnotationError,
            "labels/0.nii.gz lies elsewhere than the volume",
        ),
        (
            lambda f: save(f / "images" / "0.nii.gz", np.zeros((13, 19, 15, 2), np.uint8)),
            ManifestError,
            "case '0' has 2 channels on axes zyx; the run trains on 1 on zyx",
        ),
        (lambda f: (f / "images" / "0.nii.gz").unlink(), UnreadableSource, "no such file"),
        (lambda f: rewritten(f, ",labels/0.nii.gz", ","), ManifestError, "case '0' has no annotation"),
        (lambda f: rewritten(f, ",train,", ",test,"), ManifestError, "no case whose split is train"),
        (
            lambda f: rewritten(f, "p1,validation", "p0,validation"),
            ManifestError,
            "patient 'p0' is in train and, by case '1', in validation",
        ),
        (
            lambda f: save(f / "labels" / "0.nii.gz", np.minimum(volume(0)[1], 1)),
            ManifestError,
            "class 'back' has no pixel in the cases trained on",
        ),
    ],
)
def test_cases_that_cannot_be_used_are_refused(
    tmp_path: Path, spoil: Callable[[Path], None], error: type[WsisegError], message: str
) -> None:
    run = volumes(tmp_path, count=2)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        open_cases(run)


def test_pictures_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    run = pictures(tmp_path, splits="t")
    Image.fromarray(np.full((48, 56), VOID, np.uint8)).save(tmp_path / "0-truth.png")
    with pytest.raises(ManifestError, match="class 'glass' has no pixel"):
        open_cases(run)
    anyway = pictures(tmp_path, splits="t", data={"allow_empty_classes": True})
    Image.fromarray(np.full((48, 56), VOID, np.uint8)).save(tmp_path / "0-truth.png")
    with pytest.raises(ManifestError, match="no labelled pixel"):
        open_cases(anyway)
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "0-truth.png")
    with pytest.raises(AnnotationError, match="0-truth.png has 3 x 4 pixels"):
        open_cases(anyway)
    coarse = pictures(tmp_path, splits="t", spacing={"value": 0.25})
    with pytest.raises(ManifestError, match="pixels of 0.5 x 0.5 µm, coarser than the 0.25 x 0.25"):
        open_cases(coarse)
    fine = pictures(tmp_path, splits="t", spacing={"value": 0.25}, data={"allow_upsampling": True})
    assert open_cases(fine).train[0].shape == (96, 112)


def test_a_class_that_nobody_labelled_may_come_from_glass(tmp_path: Path) -> None:
    run = pictures(tmp_path, splits="t", patches={"mosaic": True, "glass_share": 0.1})
    truth = np.array(Image.open(tmp_path / "0-truth.png"))
    Image.fromarray(np.where(truth == 0, VOID, truth).astype(np.uint8)).save(tmp_path / "0-truth.png")
    assert open_cases(run).train[0].census.total[0] == 0


@pytest.mark.parametrize("make", [pictures, volumes])
def test_a_file_of_another_sha256_is_refused(tmp_path: Path, make: Any) -> None:
    run = make(tmp_path)
    name = "0.png" if make is pictures else "images/0.nii.gz"
    right = (tmp_path / "m.csv").read_text().replace("case,path,", "case,sha256,path,")
    rows = right.splitlines()
    rest = [row.replace(",", ",,", 1) for row in rows[2:]]
    first = rows[1].replace("0,", f"0,{sha256_of(tmp_path / name)},", 1)
    (tmp_path / "m.csv").write_text("\n".join([rows[0], first, *rest]))
    assert len(open_cases(run).train) == 2
    (tmp_path / "m.csv").write_text("\n".join([rows[0], rows[1].replace("0,", f"0,{'0' * 64},", 1), *rest]))
    with pytest.raises(ManifestError, match=f"case '0': {name} has another sha256 than the manifest says"):
        open_cases(run)


def test_other_pixel_sizes_are_resampled_truth_by_pixel_centres(tmp_path: Path) -> None:
    run = pictures(tmp_path, splits="t", spacing={"value": 1.0})
    case = open_cases(run).train[0]
    assert case.shape == (24, 28)
    truth = np.array(Image.open(tmp_path / "0-truth.png"))
    image = np.array(Image.open(tmp_path / "0.png")).astype(float)
    values, marks = case.read((slice(2, 20), slice(4, 24)))
    np.testing.assert_array_equal(marks, truth[1::2, 1::2][2:20, 4:24])
    # Inside a block of one class a mixed pixel is near the mean of those that it covers.
    means = image.reshape(24, 2, 28, 2, 3).mean(axis=(1, 3))[2:20, 4:24]
    inner = (slice(None), slice(4, 5), slice(2, 3))
    assert np.abs(np.moveaxis(values, 0, -1)[4, 2] - means[4, 2]).max() < 15, inner


def test_what_lies_outside_is_background_and_void_also_of_a_case_that_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = (slice(-3, 10), slice(50, 60))
    held = open_cases(pictures(tmp_path, splits="t")).train[0].read(region)
    monkeypatch.setattr(cases_module, "HELD_BYTES", 0)
    streamed = open_cases(pictures(tmp_path, splits="t")).train[0].read(region)
    for one, other in zip(held, streamed, strict=True):
        np.testing.assert_array_equal(one, other)
    values, truth = held
    assert (values[:, :3] == 255).all()
    assert (truth[:3] == VOID).all()
    assert (truth[:, 6:] == VOID).all()
    assert (truth[3:, :6] != VOID).all()


def test_polygons_on_a_slide_are_truth(tmp_path: Path) -> None:
    run = pictures(tmp_path, splits="t", data={"allow_empty_classes": True})
    square = [[10, 20], [30, 20], [30, 40], [10, 40], [10, 20]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [square]},
        "properties": {"classification": {"name": "Nuclei"}},
    }
    (tmp_path / "0.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    rewritten(tmp_path, "0-truth.png", "0.geojson")
    case = open_cases(run).train[0]
    assert case.census.total.tolist() == [0, 0, 400, 0, 0]
    _, truth = case.read((slice(0, 48), slice(0, 56)))
    assert (truth[20:40, 10:30] == 2).all()
    assert (truth != VOID).sum() == 400


def test_a_census_counts_every_pixel_once_and_draws_cells_by_their_share() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 1, 2, VOID], size=(300, 520), p=[0.5, 0.29, 0.01, 0.2]).astype(np.uint8)
    truth[:256, :256][truth[:256, :256] == 2] = 1

    class Grid:
        shape = truth.shape

        def read(self, region: Any) -> Any:
            return truth[region]

    census = take_census(Grid(), num_classes=4)
    assert census.total.tolist() == [*np.bincount(truth[truth != VOID], minlength=4)]
    drawn = [census.draw_cell(2, rng) for _ in range(200)]
    assert (slice(0, 256), slice(0, 256)) not in drawn
    expected = (truth[:256, 256:512] == 2).sum() / (truth == 2).sum()
    assert np.mean([cell == (slice(0, 256), slice(256, 512)) for cell in drawn]) == pytest.approx(
        expected, abs=0.1
    )


def test_counts_add_up_over_cases(tmp_path: Path) -> None:
    cases = open_cases(pictures(tmp_path, splits="tt")).train
    truths = [np.array(Image.open(tmp_path / f"{n}-truth.png")) for n in range(2)]
    expected = sum(np.bincount(t.ravel(), minlength=5) for t in truths)
    np.testing.assert_array_equal(class_counts(cases, num_classes=5), expected)


def test_a_diagnosis_that_the_run_does_not_know_is_refused(tmp_path: Path) -> None:
    joint = {"diagnoses": ["benign", "malignant"], "losses": [{"output": 0}, {"output": "diagnosis"}]}
    run = pictures(tmp_path, splits="tt", **joint)
    text = (tmp_path / "m.csv").read_text().splitlines()
    said = ["diagnosis", "malignant", "odd"]
    (tmp_path / "m.csv").write_text("\n".join(f"{row},{d}" for row, d in zip(text, said, strict=True)))
    with pytest.raises(ManifestError, match="case '1' has diagnosis 'odd'; the run knows benign, malignant"):
        open_cases(run)
    (tmp_path / "m.csv").write_text("\n".join(f"{r},{d}" for r, d in zip(text[:2], said[:2], strict=True)))
    assert open_cases(run).train[0].diagnosis == 1
