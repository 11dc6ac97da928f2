"""The confidence of a case: stored, resumed, verified, reported and drawn like its mask."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from ome_zarr_models.v05.image import Image as OmeImage
from PIL import Image

import wsiseg
from tests import executors
from tests.cases import SMALL, Interrupted, mask_of, polygon, stop_after, write_tiff
from tests.conftest import espnet3d_card
from tests.test_confidence import expected
from tests.test_mask_resampling import enlarged, one_pass_scores
from tests.test_volumes import PLAIN, affine_of, edited, write_volume
from wsiseg.classes import VOID
from wsiseg.errors import ConfigMismatch
from wsiseg.models.zoo import ZOO
from wsiseg.report import Report
from wsiseg.sources.base import Pixels
from wsiseg.tissue import TissueMask

pytestmark = pytest.mark.usefixtures("eight_classes")

PLAINLY: dict[str, Any] = SMALL | {"image": "none"}
CONFIDENT: dict[str, Any] = PLAINLY | {"confidence": True}


def confidence_of(report: Report) -> NDArray[np.uint8]:
    array = wsiseg.open_store(report.store).confidence()
    assert array is not None
    return np.asarray(array[:])


def files_of(report: Report, *folders: str) -> dict[str, bytes]:
    found = [p for folder in folders for p in (report.store / folder).rglob("*") if p.is_file()]
    assert found
    return {str(p.relative_to(report.store)): p.read_bytes() for p in found}


def zoo_card(folder: Path, **changes: Any) -> Path:
    """The shipped card with some entries changed, beside its weights."""
    data = json.loads((ZOO / "demo-breast8.json").read_text())
    folder.mkdir(exist_ok=True)
    (folder / "card.json").write_text(json.dumps(data | changes))
    (folder / data["weights"]).write_bytes((ZOO / data["weights"]).read_bytes())
    return folder / "card.json"


@pytest.fixture(scope="module", autouse=True)
def _levels() -> Iterator[None]:
    """Small images have coarser levels, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsiseg.pyramid.MIN_LEVEL_PX", 100)
        yield


@pytest.fixture(scope="module")
def scene(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return picture[:160, :260]


@pytest.fixture(scope="module")
def slide(scene: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiff(tmp_path_factory.mktemp("small") / "scene.tif", scene)


@pytest.fixture(scope="module")
def sure(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return wsiseg.segment(slide, tmp_path_factory.mktemp("sure"), **CONFIDENT)


@pytest.fixture(scope="module")
def plain(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return wsiseg.segment(slide, tmp_path_factory.mktemp("plain"), **PLAINLY)


def test_the_confidence_is_that_of_the_network_and_0_on_glass(sure: Report, scene: NDArray[np.uint8]) -> None:
    store, found, mask = wsiseg.open_store(sure.store), confidence_of(sure), mask_of(sure)
    kept = store.ledger.read("tissue.npz")
    assert kept is not None
    tissue = TissueMask(np.load(io.BytesIO(kept))["tissue"]).at(store.geometry.whole, shape=mask.shape)
    np.testing.assert_array_equal(found > 0, tissue)
    predictor = wsiseg.load_predictor("demo-breast8", "cpu")
    plan = store.plan.execution
    window = tuple(slice(core, 2 * core) for core in plan["core"])
    halo = plan["halo"][0]
    seen = tuple(slice(part.start - halo, part.stop + halo) for part in window)
    scores = predictor(np.moveaxis(scene[seen], -1, 0)[None].copy()).scores[0].numpy()
    by_formula = expected(scores[:, halo:-halo, halo:-halo])
    np.testing.assert_allclose(found[window].astype(int), by_formula * tissue[window], atol=1)
    assert len(np.unique(found[window])) > 50


def test_the_mask_and_its_pyramid_are_the_bytes_without_a_confidence(sure: Report, plain: Report) -> None:
    assert files_of(plain, "labels") == files_of(sure, "labels")
    assert plain.confidence is None
    assert [c.mean_confidence for c in plain.classes] == [None] * len(plain.classes)
    assert not (plain.store / "confidence").exists()
    assert not list(plain.store.parent.glob("*confidence*"))
    assert wsiseg.open_store(plain.store).confidence() is None
    assert "confidence" not in json.loads((plain.store / "ledger" / "slab-00000.json").read_text())


def test_levels_are_means_of_what_was_decided_and_an_ome_zarr_image(sure: Report) -> None:
    group = zarr.open_group(sure.store / "confidence", mode="r")
    image = OmeImage.from_zarr(group)
    (scales,) = image.ome_attributes.multiscales
    assert [a.name for a in scales.axes] == ["y", "x"]
    assert [d.path for d in scales.datasets] == ["0", "1", "2"]
    assert scales.datasets[0].coordinateTransformations[0].model_dump()["scale"] == [0.5, 0.5]
    store, found = wsiseg.open_store(sure.store), confidence_of(sure)
    level = store.confidence(1)
    assert level is not None
    fours = np.stack([found[a::2, b::2] for a in (0, 1) for b in (0, 1)]).astype(int)
    count = np.maximum((fours > 0).sum(axis=0), 1)
    np.testing.assert_array_equal(level[:], (fours.sum(axis=0) + count // 2) // count)
    root: Any = zarr.open_group(sure.store, mode="r").attrs["ome"]
    assert root["multiscales"][0]["datasets"][0]["path"] == "labels/tissue/0"  # not this one


def test_the_report_has_means_by_class_and_a_picture(sure: Report, capfd: pytest.CaptureFixture[str]) -> None:
    found, mask = confidence_of(sure), mask_of(sure)
    assert sure.confidence is not None
    decided = found[(found > 0) & (mask != 0)]
    assert sure.confidence.pixels == decided.size
    assert sure.confidence.mean == pytest.approx(decided.mean() / 255)
    for c in sure.classes:
        own = found[(mask == c.index) & (found > 0)]
        assert c.mean_confidence == (pytest.approx(own.mean() / 255) if own.size else None)
    written = json.loads(sure.report.read_text())
    assert written["classes"][0]["mean_confidence"] == sure.classes[0].mean_confidence
    assert "states no calibration" in " ".join(sure.remarks)
    with Image.open(sure.confidence.picture) as drawn:
        assert min(drawn.size) > 300
        colours = np.asarray(drawn.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 100
    from wsiseg.display import print_report

    print_report(sure)
    out = capfd.readouterr().out
    assert f"{sure.confidence.mean:.3f} where the network decided" in out
    assert f"{sure.classes[0].mean_confidence:.3f}" in out
    assert str(sure.confidence.picture) in out.replace("\n", "")


def test_a_lost_picture_is_drawn_again(sure: Report, slide: Path) -> None:
    assert sure.confidence is not None
    sure.confidence.picture.unlink()
    again = wsiseg.segment(slide, sure.report.parent, **CONFIDENT)
    assert again.status == "already complete"
    assert sure.confidence.picture.is_file()


@pytest.mark.parametrize("slab", [32, pytest.param(128, marks=pytest.mark.slow)])
def test_slabs_and_readers_do_not_change_a_byte(slide: Path, sure: Report, tmp_path: Path, slab: int) -> None:
    other = wsiseg.segment(slide, tmp_path, **(CONFIDENT | {"slab": slab, "readers": 3}))
    np.testing.assert_array_equal(confidence_of(other), confidence_of(sure))


def assert_resumes(slide: Path, folder: Path, *, stops: tuple[int, ...], **options: Any) -> Report:
    """A run that is stopped after so many slabs, again and again, ends like one that never was."""
    whole = wsiseg.segment(slide, folder / "whole", **options)
    for count in stops:
        with pytest.raises(Interrupted):
            wsiseg.segment(slide, folder / "parts", progress=stop_after(count), **options)
    parts = wsiseg.segment(slide, folder / "parts", **options)
    folders = ("labels", "confidence", *(["0"] if options["image"] != "none" else []))
    assert files_of(parts, *folders) == files_of(whole, *folders)
    assert parts.classes == whole.classes
    assert parts.confidence is not None
    assert parts.confidence.picture.is_file()
    return whole


def test_interrupted_and_resumed_windows_end_with_the_same_bytes(slide: Path, tmp_path: Path) -> None:
    options = CONFIDENT | {"image": "full", "slab": 32, "taper": 8}
    assert_resumes(slide, tmp_path, stops=(0, 1, 2, 1), **options)


@pytest.mark.slow
def test_interrupted_and_resumed_streaming_ends_with_the_same_bytes(tmp_path: Path) -> None:
    options = {**executors.PLAIN, "memory": executors.memory_for_band(executors.TALL, band=executors.BAND)}
    slide = executors.tall_slide(tmp_path)
    report = assert_resumes(slide, tmp_path, stops=(0, 5, 20), confidence=True, **options)
    assert report.execution["band"] == executors.BAND
    other = wsiseg.segment(slide, tmp_path / "slabs", confidence=True, **(options | {"slab": 160}))
    np.testing.assert_array_equal(confidence_of(other), confidence_of(report))


def test_where_no_network_decided_the_confidence_is_0(
    slide: Path, sure: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsiseg.sources import tiff

    original = tiff.TiffSource.read

    def spoilt(self: tiff.TiffSource, region: Any) -> Pixels:
        pixels = original(self, region)
        valid = np.array(pixels.valid)
        y, x = (np.arange(part.start, part.stop) for part in region)
        valid[np.ix_((y >= 90) & (y < 101), (x >= 60) & (x < 83))] = False
        return Pixels(pixels.values, valid)

    roi = tmp_path / "roi.geojson"
    square = polygon(None, (40, 50), (200, 50), (200, 150), (40, 150))
    roi.write_text(json.dumps({"type": "FeatureCollection", "features": [square]}))
    monkeypatch.setattr(tiff.TiffSource, "read", spoilt)
    report = wsiseg.segment(slide, tmp_path, region=roi, tissue_filter=False, **CONFIDENT)
    mask, found = mask_of(report), confidence_of(report)
    decided = np.zeros(mask.shape, bool)
    decided[50:150, 40:200] = True
    decided[90:101, 60:83] = False
    np.testing.assert_array_equal(mask != VOID, decided)
    np.testing.assert_array_equal(found > 0, decided)
    both = decided & (confidence_of(sure) > 0)
    np.testing.assert_array_equal(found[both], confidence_of(sure)[both])


def test_a_changed_byte_is_found(slide: Path, sure: Report, tmp_path: Path) -> None:
    report = wsiseg.segment(slide, tmp_path, **CONFIDENT)
    store = wsiseg.open_store(report.store)
    assert store.verify() == []
    for level, sentence in (
        (0, "confidence rows 64 to 128 are not what was written"),
        (1, "pyramid level confidence/1 is not what was written"),
    ):
        array = store.confidence(level)
        assert array is not None
        before = np.asarray(array[70, 30]).item()
        array[70, 30] = before ^ 1
        assert store.verify() == [sentence]
        array[70, 30] = before
    assert store.verify() == []


def test_a_store_begun_or_finished_without_a_confidence_is_refused(
    slide: Path, sure: Report, plain: Report, tmp_path: Path
) -> None:
    sentence = "confidence was False and is now True"
    with pytest.raises(Interrupted):
        wsiseg.segment(slide, tmp_path, progress=stop_after(1), **PLAINLY)
    with pytest.raises(ConfigMismatch, match=sentence):
        wsiseg.segment(slide, tmp_path, **CONFIDENT)
    with pytest.raises(ConfigMismatch, match=sentence):
        wsiseg.segment(slide, plain.store.parent, **CONFIDENT)
    with pytest.raises(ConfigMismatch, match="confidence was True and is now False"):
        wsiseg.segment(slide, sure.store.parent, **PLAINLY)


def test_what_is_begun_anew_without_a_confidence_leaves_none(slide: Path, tmp_path: Path) -> None:
    before = wsiseg.segment(slide, tmp_path, **CONFIDENT)
    assert before.confidence is not None
    with pytest.raises(Interrupted):
        wsiseg.segment(slide, tmp_path, overwrite=True, progress=stop_after(1), **PLAINLY)
    assert not before.confidence.picture.exists()
    assert not (before.store / "confidence").exists()


def test_the_temperature_of_the_card_decides_the_confidence_and_not_the_mask(
    slide: Path, sure: Report, tmp_path: Path
) -> None:
    warm = zoo_card(tmp_path / "warm", temperature=2.0, name="demo-breast8")
    first = wsiseg.segment(slide, tmp_path / "a", warm, **CONFIDENT)
    assert files_of(first, "labels") == files_of(sure, "labels")
    decided = confidence_of(sure) > 0
    np.testing.assert_array_equal(confidence_of(first) > 0, decided)
    assert (confidence_of(first) <= confidence_of(sure)).all()
    assert confidence_of(first)[decided].mean() < confidence_of(sure)[decided].mean() - 10
    zoo_card(tmp_path / "warm", temperature=1.0, name="demo-breast8")
    with pytest.raises(ConfigMismatch, match="temperature was 2.0 and is now 1.0"):
        wsiseg.segment(slide, tmp_path / "a", warm, **CONFIDENT)
    # A mask alone does not depend on it, and is taken as it is.
    zoo_card(tmp_path / "warm", temperature=2.0, name="demo-breast8")
    wsiseg.segment(slide, tmp_path / "b", warm, **PLAINLY)
    zoo_card(tmp_path / "warm", temperature=3.0, name="demo-breast8")
    assert wsiseg.segment(slide, tmp_path / "b", warm, **PLAINLY).status == "already complete"


@pytest.mark.slow
def test_views_give_their_mean_probability(slide: Path, scene: NDArray[np.uint8], tmp_path: Path) -> None:
    report = wsiseg.segment(slide, tmp_path, views="flips", **CONFIDENT)
    predictor = wsiseg.load_predictor("demo-breast8", "cpu", views="flips")
    assert predictor.card.scores == "probabilities"
    found = confidence_of(report)
    image = np.moveaxis(scene, -1, 0)
    halo = report.execution["halo"][0]
    core = tuple(slice(side, 2 * side) for side in report.execution["core"])
    seen = tuple(slice(part.start - halo, part.stop + halo) for part in core)
    probabilities = predictor(image[(None, slice(None), *seen)].copy()).scores[0].numpy()
    by_formula = expected(probabilities[:, halo:-halo, halo:-halo], temperature=None)
    own = found[core].astype(int)
    np.testing.assert_allclose(own, np.where(own > 0, by_formula, 0), atol=1)
    assert (own > 0).mean() > 0.5


# Volumes


def test_a_volume_has_its_confidence_on_the_files_own_grid(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(300, 60, (20, 25, 31)).astype(np.float32)
    for number, (order, signs) in enumerate([((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1))]):
        affine = affine_of(order, signs)
        path = write_volume(tmp_path / f"v{number}.nii", values, affine)
        report = wsiseg.segment(path, tmp_path, confidence=True, image="none", threads=1, **PLAIN)
        assert report.confidence is not None
        assert report.confidence.nifti == tmp_path / f"v{number}.confidence.nii.gz"
        made: Any = nib.load(report.confidence.nifti)
        assert made.get_data_dtype() == np.uint8
        np.testing.assert_allclose(made.affine, affine, atol=1e-5)
        source = wsiseg.open_source(path)
        native: Any = source.native  # type: ignore[attr-defined]
        np.testing.assert_array_equal(np.asarray(made.dataobj), native.to_native(confidence_of(report)))
        assert made.shape == values.shape
        assert b"confidence, 255 is a probability of 1; research use only" in made.header["descrip"].item()
        with Image.open(report.confidence.picture) as drawn:
            assert drawn.width > 1000
        assert wsiseg.open_store(report.store).verify() == []


@pytest.mark.slow
def test_a_volume_whose_scores_are_mixed_has_the_confidence_of_the_mixed_scores(tmp_path: Path) -> None:
    """The scores of one pass over the resampled volume, enlarged by torch."""
    values = np.random.default_rng(3).normal(200, 40, (22, 33, 45)).astype(np.float32)
    volume = write_volume(tmp_path / "v.nii", values)
    card = edited(
        espnet3d_card(tmp_path, channels=1, seed=5),
        mask_resampling="scores",
        spacing={"value": [1.6, 1.3, 1.0], "unit": "millimeter"},
        preprocessing={"statistics": "case"},
        temperature=1e-4,  # what random weights say is nearly the same for every class
    )
    options: dict[str, Any] = {"image": "none", "confidence": True, **PLAIN}
    report = wsiseg.segment(volume, tmp_path / "a", card, **options)
    scores = one_pass_scores(card, volume)
    shape = wsiseg.open_source(volume).geometry.shape
    mixed = torch.nn.functional.interpolate(
        torch.from_numpy(scores)[None], size=shape, mode="trilinear", align_corners=False
    )[0]
    found, by_formula = confidence_of(report), expected(mixed.numpy(), temperature=1e-4)
    assert np.abs(found.astype(int) - by_formula).max() <= 1
    assert (found == by_formula).mean() > 0.999
    assert len(np.unique(found)) > 50
    assert (enlarged(scores, shape) == mask_of(report)).mean() > 0.9999
    with pytest.raises(Interrupted):
        wsiseg.segment(volume, tmp_path / "b", card, progress=stop_after(1), **options)
    resumed = wsiseg.segment(volume, tmp_path / "b", card, **options)
    assert files_of(resumed, "labels", "confidence") == files_of(report, "labels", "confidence")
    whole = wsiseg.segment(volume, tmp_path / "c", card, **(options | {"slab": 48}))
    np.testing.assert_array_equal(confidence_of(whole), found)


def test_needed_space_counts_the_confidence(sure: Report, plain: Report) -> None:
    assert sure.bytes["estimated"] - plain.bytes["estimated"] == pytest.approx(160 * 260 * 0.7 * 4 / 3, abs=1)
    stored = sum(len(data) for data in files_of(sure, "confidence").values())
    assert stored < sure.bytes["estimated"] - plain.bytes["estimated"]


@pytest.mark.slow
def test_a_slide_of_other_pixels_takes_the_nearest_confidence(
    scene: NDArray[np.uint8], tmp_path: Path
) -> None:
    fine = write_tiff(tmp_path / "fine.tif", scene.repeat(2, axis=0).repeat(2, axis=1), mpp=0.25)
    report = wsiseg.segment(fine, tmp_path, tissue_filter=False, **CONFIDENT)
    found = confidence_of(report)
    assert found.shape == (320, 520)
    assert found.min() >= 1
    np.testing.assert_array_equal(found[::2, ::2].repeat(2, axis=0).repeat(2, axis=1), found)
