"""The temperature that a training writes on its card, and what it is said to be worth."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import wsiseg
from tests.cases import mask_of
from tests.training_data import pictures, volumes
from wsiseg.cli import main
from wsiseg.errors import ManifestError, ModelError
from wsiseg.models.card import ModelCard, read_card, write_card
from wsiseg.models.registry import load_network
from wsiseg.models.zoo import load_card
from wsiseg.predict import NetworkPredictor
from wsiseg.training.calibration import (
    HIGHEST,
    Labelled,
    calibrate_model,
    fit_temperature,
    labelled_pixels,
)
from wsiseg.training.cases import open_cases
from wsiseg.training.loop import train
from wsiseg.training.sections import Data

CALIBRATED: dict[str, Any] = {"validation": {"calibrate": True}}


def drawn(temperature: float, *, count: int = 60_000, classes: int = 4) -> Labelled:
    """Scores whose true temperature is known: classes are drawn by softmax(scores / temperature)."""
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(count, classes, generator=generator) * 3
    truth = torch.multinomial((scores / temperature).softmax(dim=1), 1, generator=generator)[:, 0]
    return Labelled(scores, truth)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_made_the_truth_is_found(temperature: float) -> None:
    pixels = drawn(temperature)
    found = fit_temperature(pixels)
    assert found == pytest.approx(temperature, rel=0.03)
    best = pixels.negative_log_likelihood(found)
    for other in (0.97 * found, 1.03 * found, temperature):
        assert best <= pixels.negative_log_likelihood(other) + 1e-7
    error = pixels.reliability(found).error
    assert error is not None
    assert error < 0.01


def test_the_likelihood_is_the_formulas_and_that_of_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.log(torch.tensor([[1.0, 2.0, 5.0], [5.0, 3.0, 2.0]]))
    pixels = Labelled(scores, torch.tensor([2, 1]))
    assert pixels.negative_log_likelihood(1.0) == pytest.approx(-(math.log(5 / 8) + math.log(0.3)) / 2)
    roots = math.sqrt(5) / (1 + math.sqrt(2) + math.sqrt(5)), math.sqrt(3) / sum(map(math.sqrt, (5, 3, 2)))
    assert pixels.negative_log_likelihood(2.0) == pytest.approx(-sum(map(math.log, roots)) / 2)
    # One is right at 5 / 8, one wrong at 1 / 2, in other bins.
    assert pixels.figures(1.0)["expected calibration error"] == pytest.approx((3 / 8 + 1 / 2) / 2, abs=1e-4)
    many = drawn(1.3, count=1000)
    whole = many.negative_log_likelihood(1.3), many.reliability(1.3).error
    monkeypatch.setattr("wsiseg.training.calibration.PIECE_PX", 77)
    assert (many.negative_log_likelihood(1.3), many.reliability(1.3).error) == pytest.approx(whole)


def test_scores_without_sense_end_at_the_highest_temperature() -> None:
    pixels = Labelled(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0]))
    assert fit_temperature(pixels) == pytest.approx(HIGHEST, rel=1e-3)


def expected(card: ModelCard, path: Path, folder: Path, name: str, temperature: float) -> tuple[float, float]:
    """Likelihood and calibration error of a picture, by numpy from the network's own scores."""
    image, truth = (np.array(Image.open(folder / f"{name}{end}.png")) for end in ("", "-truth"))
    predictor = NetworkPredictor(card, load_network(path), device=torch.device("cpu"))
    scores = predictor(np.moveaxis(image, -1, 0)[None].copy()).scores[0].numpy().reshape(5, -1)
    stated = truth.ravel()
    powers = np.exp(scores[:, stated != 255].astype(np.float64) / temperature)
    chances, stated = powers / powers.sum(axis=0), stated[stated != 255]
    likelihood = -np.log(chances[stated, np.arange(stated.size)]).mean()
    sure, right = chances.max(axis=0), chances.argmax(axis=0) == stated
    bins = np.ceil(sure * 15)
    error = sum(
        abs(right[bins == b].mean() - sure[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)
    )
    return float(likelihood), float(error)


def test_a_card_says_what_its_temperature_is_worth_and_masks_stay_as_they_are(tmp_path: Path) -> None:
    run = pictures(tmp_path, splits="ttve", steps=40, **CALIBRATED)
    truth = np.array(Image.open(tmp_path / "2-truth.png"))
    truth[:9, 5:30] = 255  # not labelled
    Image.fromarray(truth).save(tmp_path / "2-truth.png")
    path = train(run)
    card = load_card(path)
    figures = card.quality["calibration"]
    assert card.temperature == figures["temperature"] != 1.0
    assert figures["validation"]["pixels"] == (truth != 255).sum()
    assert "bins" in figures["method"]
    for entry, name, temperature in (
        (figures["validation"]["before"], "2", 1.0),
        (figures["validation"]["after"], "2", card.temperature),
        (figures["test, not fitted on"]["before"], "3", 1.0),
        (figures["test, not fitted on"]["after"], "3", card.temperature),
    ):
        likelihood, error = expected(card, path, tmp_path, name, temperature)
        assert entry["negative log-likelihood"] == pytest.approx(likelihood, abs=1e-4)
        assert entry["expected calibration error"] == pytest.approx(error, abs=1e-4)
    before, after = (figures["validation"][when]["negative log-likelihood"] for when in ("before", "after"))
    assert after <= before
    for other in (0.9, 1.1):
        assert expected(card, path, tmp_path, "2", other * card.temperature)[0] > after

    plain = train(pictures(tmp_path / "plain", splits="ttve", steps=40))
    assert load_card(plain).temperature == 1.0
    assert "calibration" not in load_card(plain).quality
    assert load_card(plain).identity == card.identity  # the same weights
    masks = [
        mask_of(
            wsiseg.segment(
                tmp_path / "3.png", tmp_path / name, model, mpp=0.5, tissue_filter=False, image="none"
            )
        )
        for name, model in (("a", path), ("b", plain))
    ]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert len(np.unique(masks[0])) > 1


def test_a_calibrated_card_says_so_to_those_who_ask_for_confidence(tmp_path: Path) -> None:
    path = train(pictures(tmp_path, splits="tv", **CALIBRATED))
    options: dict[str, Any] = {"mpp": 0.5, "tissue_filter": False, "image": "none", "confidence": True}
    report = wsiseg.segment(tmp_path / "1.png", tmp_path / "a", path, **options)
    assert "calibration" not in " ".join(report.remarks)
    card = read_card(path)
    write_card(card.model_copy(update={"quality": {}}), path)
    report = wsiseg.segment(tmp_path / "1.png", tmp_path / "b", path, **options)
    assert "the card states no calibration of the model" in " ".join(report.remarks)


def test_pixels_that_cannot_be_read_calibrate_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsiseg.sources.base import Pixels
    from wsiseg.sources.cached import CachedSource

    original = CachedSource.read

    def unreadable(cached: CachedSource, region: Any) -> Pixels:
        pixels = original(cached, region)
        return Pixels(pixels.values, np.zeros_like(pixels.valid))

    monkeypatch.setattr(CachedSource, "read", unreadable)
    card = load_card(train(pictures(tmp_path, splits="tve", **CALIBRATED)))
    assert card.temperature == 1.0
    assert card.quality["not calibrated"] == "no labelled pixel of the validation cases could be read"


def test_volumes_are_calibrated_too(tmp_path: Path) -> None:
    card = load_card(train(volumes(tmp_path, **CALIBRATED)))
    figures = card.quality["calibration"]["validation"]
    assert figures["pixels"] == 13 * 19 * 15
    assert figures["after"]["negative log-likelihood"] <= figures["before"]["negative log-likelihood"]
    assert json.loads((tmp_path / "out" / "tiny.json").read_text())["temperature"] == card.temperature


def test_of_many_pixels_a_share_is_drawn_by_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = pictures(tmp_path, splits="tvv")
    path = train(run)
    cases = open_cases(run).validation
    predictor = NetworkPredictor(load_card(path), load_network(path), device=torch.device("cpu"))
    whole = labelled_pixels(predictor, cases, seed=3)
    assert len(whole.truth) == 2 * 48 * 56
    monkeypatch.setattr("wsiseg.training.calibration.MOST_PX", 1000)
    part, again, other = (labelled_pixels(predictor, cases, seed=seed) for seed in (3, 3, 4))
    assert 900 < len(part.truth) < 1100
    assert torch.equal(part.scores, again.scores)
    assert not torch.equal(part.scores[:500], other.scores[:500])
    rows = {tuple(row) for row in whole.scores.tolist()}
    assert all(tuple(row) in rows for row in part.scores.tolist())
    monkeypatch.setattr("wsiseg.training.calibration.MOST_PX", 2_000_000)
    monkeypatch.setattr("wsiseg.training.validation.WHOLE_PX", 100)  # larger cases come in windows
    monkeypatch.setattr("wsiseg.training.validation.CORE", {2: 16})
    monkeypatch.setattr("wsiseg.training.validation.HALO", {2: 464})
    windows = labelled_pixels(predictor, cases[:1], seed=3)
    assert sorted(windows.truth.tolist()) == sorted(whole.truth[: 48 * 56].tolist())


@pytest.mark.parametrize(
    ("splits", "changes", "message"),
    [
        ("tt", CALIBRATED, "validation.calibrate needs labelled pixels in cases whose split is validation"),
        ("tv", {**CALIBRATED, "pretext": {}}, "a pretext has no masks to score: take validation out"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splits: str, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("wsiseg.training.loop.train_network", None)
    with pytest.raises(ManifestError, match=message):
        train(pictures(tmp_path, splits=splits, **changes))


def test_validation_without_a_label_is_refused(tmp_path: Path) -> None:
    run = pictures(tmp_path, splits="tv", **CALIBRATED)
    Image.fromarray(np.full((48, 56), 255, np.uint8)).save(tmp_path / "1-truth.png")
    with pytest.raises(ManifestError, match="needs labelled pixels in cases whose split is validation"):
        train(run)


def test_any_card_is_calibrated_as_its_training_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected_card = load_card(train(pictures(tmp_path / "a", splits="ttve", steps=40, **CALIBRATED)))
    plain = train(pictures(tmp_path / "b", splits="ttve", steps=40))
    out = tmp_path / "new" / "sure.json"
    command = ["wsiseg", "models", "calibrate", str(plain), str(tmp_path / "b" / "m.csv"), "--out", str(out)]
    monkeypatch.setattr("sys.argv", [*command, "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    said = json.loads(capsys.readouterr().out)
    card = load_card(out)
    assert said["temperature"] == card.temperature == expected_card.temperature
    assert card.quality["calibration"] == expected_card.quality["calibration"]
    assert card.quality["training"] == load_card(plain).quality["training"]
    assert (card.name, card.weights, card.identity) == ("sure", "sure.safetensors", expected_card.identity)
    assert load_network(out).state_dict().keys() == load_network(plain).state_dict().keys()

    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "is there already; use --overwrite" in capsys.readouterr().err
    # In place, over itself, the weights stay.
    calibrate_model(plain, plain, Data(manifest=tmp_path / "b" / "m.csv"), split="test", overwrite=True)
    assert load_card(plain).quality["calibration"]["test"]["pixels"] == 48 * 56
    assert load_network(plain) is not None


def test_a_card_that_cannot_be_calibrated_is_refused_in_a_sentence(tmp_path: Path) -> None:
    run = pictures(tmp_path, splits="tv")
    path, data = train(run), Data(manifest=tmp_path / "m.csv")
    card, new = read_card(path), tmp_path / "new.json"
    with pytest.raises(ManifestError, match="has no labelled pixel in cases whose split is test"):
        calibrate_model(path, new, data, split="test")
    with pytest.raises(ModelError, match="a card is a .json file"):
        calibrate_model(path, tmp_path / "new.txt", data)
    for changes, message in (
        ({"scores": "probabilities"}, "gives probabilities, which no temperature divides"),
        ({"spacing": None}, "states no pixel size"),
    ):
        write_card(card.model_copy(update=changes), path)
        with pytest.raises(ModelError, match=message):
            calibrate_model(path, new, data)
    assert not new.exists()
