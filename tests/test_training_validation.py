"""The figures on a card are those that `segment` and `evaluate` would give for the same cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import wsiseg
from tests.training_data import pictures, volumes
from wsiseg.metrics import ConfusionMatrix
from wsiseg.models.registry import load_network
from wsiseg.models.zoo import load_card
from wsiseg.training.cases import open_cases
from wsiseg.training.loop import train
from wsiseg.training.validation import confusion_on, masks, windows_of


@pytest.mark.parametrize("resampling", ["nearest", "scores"])
@pytest.mark.parametrize("spacing", [0.5, 0.8])
def test_pictures_are_scored_on_their_own_pixels(tmp_path: Path, spacing: float, resampling: str) -> None:
    how = {"spacing": {"value": spacing}, "mask_resampling": resampling}
    run = pictures(tmp_path, splits="tv", **how)
    path = train(run)
    case = open_cases(run).validation[0]
    assert (case.shape == case.grid.shape) == (spacing == 0.5)
    report = wsiseg.segment(
        tmp_path / case.row.path, tmp_path / "mask", path,
        mpp=0.5, tissue_filter=False, executor="windowed", core=64, halo=0, image="none",
    )  # fmt: skip
    mask = np.asarray(wsiseg.open_store(report.store).mask()[:])
    assert case.given is not None
    truth = case.given.read(case.grid.whole)
    expected = ConfusionMatrix.of(truth=truth, prediction=mask, num_classes=5)

    card = load_card(path)
    assert card.mask_resampling == resampling
    found = confusion_on(load_network(path), [case], card=card, device=torch.device("cpu"))[0]
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert found.counts.sum() == truth.size
    assert card.quality["validation"]["pixels"] == truth.size
    assert card.quality["validation"]["pixel accuracy"] == pytest.approx(
        np.trace(expected.counts) / truth.size, abs=1e-4
    )


def test_windows_of_large_cases_lie_inside_as_those_of_segment_do() -> None:
    for name, shape in (("breast-tissue3", (3000, 2600)), ("hippocampus", (200, 190, 180))):
        plan = windows_of(load_card(name), shape, one_size=False)
        assert len(plan) > 4
        for window in plan.windows():
            for read, size in zip(window.read, shape, strict=True):
                assert 0 <= read.start <= read.stop <= -(-size // 8) * 8


def test_volumes_are_scored_on_their_own_voxels_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finer = {"value": [0.5, 0.5, 0.5], "unit": "millimeter"}
    run = volumes(tmp_path, data={"allow_upsampling": True}, spacing=finer, mask_resampling="scores")
    path = train(run)
    case = open_cases(run).train[0]
    assert case.shape == tuple(2 * n for n in case.grid.shape)
    predictor = wsiseg.load_predictor(path, "cpu").for_case(case.stats)
    whole = list(masks(predictor, case))
    assert [truth.shape for truth, _ in whole] == [case.grid.shape]
    monkeypatch.setattr("wsiseg.training.validation.PIECE_PX", 4 * case.grid.shape[1] * case.grid.shape[2])
    pieces = list(masks(predictor, case))
    assert len(pieces) > 2
    for index in (0, 1):
        joined = np.concatenate([piece[index] for piece in pieces])
        np.testing.assert_array_equal(joined, whole[0][index])


def test_a_network_that_sees_its_whole_window_gets_windows_like_its_patches(tmp_path: Path) -> None:
    # Norms of each window: in a larger one, or one that is partly empty, every score is another.
    network = {
        "name": "monai:UNet",
        "arguments": {
            "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2],
            "norm": "instance",
        },
    }  # fmt: skip
    run = volumes(tmp_path, network=network, patches={"size": [8, 16, 12], "batch": 2})
    path = train(run)
    card = load_card(path)
    assert card.windows.sides == (8, 16, 12)
    case = open_cases(run).validation[0]
    report = wsiseg.segment(tmp_path / case.row.path, tmp_path / "out", path, image="none")
    assert report.execution["core"] == [4, 8, 6]
    assert report.execution["halo"] == [2, 4, 3]
    mask = np.asarray(wsiseg.open_store(report.store).mask()[:])
    assert case.given is not None
    truth = case.given.read(case.grid.whole)
    expected = ConfusionMatrix.of(truth=truth, prediction=mask, num_classes=3)
    found = confusion_on(load_network(path), [case], card=card, device=torch.device("cpu"))[0]
    np.testing.assert_array_equal(found.counts, expected.counts)

    # The middle of the first window is the network's own answer on a patch.
    from wsiseg.predict import load_predictor

    predictor = load_predictor(path, "cpu").for_case(case.stats)
    patch = case.source.read((slice(0, 8), slice(0, 16), slice(0, 12))).values[None]
    own = predictor(np.ascontiguousarray(patch)).scores.argmax(dim=1)[0].numpy()
    np.testing.assert_array_equal(mask[:2, :4, :3], own[:2, :4, :3])
    assert len(np.unique(mask)) > 1
    # What is asked for comes first.
    plain = wsiseg.segment(
        tmp_path / case.row.path, tmp_path / "b", path, image="none", core=16, halo=0, taper=0
    )
    assert plain.execution["core"] == [16, 16, 16]
