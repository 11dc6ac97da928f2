"""A network that learns from another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training_data import pictures
from wsiseg.errors import ManifestError
from wsiseg.models.registry import load_network
from wsiseg.models.zoo import load_card
from wsiseg.training.distilling import soft_loss
from wsiseg.training.loop import train


def test_the_loss_is_the_distance_of_softened_probabilities() -> None:
    generator = torch.Generator().manual_seed(1)
    scores, taught = (torch.randn(2, 3, 4, 5, generator=generator).double() for _ in range(2))
    for temperature in (1.0, 4.0):
        p, q = ((t / temperature).softmax(1) for t in (taught, scores))
        expected = temperature**2 * (p * (p.log() - q.log())).sum(1).mean()
        torch.testing.assert_close(soft_loss(scores, taught, temperature=temperature), expected)
    assert float(soft_loss(taught, taught, temperature=3.0)) == pytest.approx(0, abs=1e-12)


def trained(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    return train(pictures(folder, steps=1, **changes))


@pytest.mark.parametrize("variant", ["A", "C"])
def test_what_the_teacher_says_changes_the_weights_and_is_kept_with_them(
    tmp_path: Path, variant: str
) -> None:
    teacher = trained(tmp_path / "teacher")
    small = {"network": {"name": "espnet", "arguments": {"classes": 5, "p": 1, "q": 1, "variant": variant}}}
    alone = trained(tmp_path / "alone", **small)
    taught = trained(tmp_path / "taught", **small, distil={"teacher": str(teacher), "weight": 3.0})
    log = (tmp_path / "taught" / "out" / "tiny.log.csv").read_text().splitlines()
    assert "distillation" in log[0]
    states = [load_network(card).state_dict() for card in (alone, taught)]
    assert any((states[0][key] != states[1][key]).any() for key in states[0])
    kept = (tmp_path / "taught" / "out" / "tiny.run.yaml").read_text()
    assert "teacher: tiny.json" in kept
    assert str(tmp_path) not in kept


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": "demo-breast8"}, "has 8 classes on axes yx, the run 5 on yx"),
        ({"teacher": "hippocampus"}, "on axes zyx, the run 5 on yx"),
    ],
)
def test_a_teacher_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        train(pictures(tmp_path, distil=changes))


def test_a_teacher_with_another_preprocessing_is_refused(tmp_path: Path) -> None:
    teacher = trained(tmp_path / "teacher")
    assert load_card(teacher).name == "tiny"
    (tmp_path / "other").mkdir()
    other: dict[str, Any] = {
        "preprocessing": {"mean": [1, 2, 3], "std": [60, 60, 60]},
        "distil": {"teacher": str(teacher)},
    }
    with pytest.raises(ManifestError, match="tiny was trained with another preprocessing"):
        train(pictures(tmp_path / "other", **other))
    with pytest.raises(ManifestError, match="distil and pretext are two ways to learn"):
        pictures(tmp_path / "other", distil={"teacher": str(teacher)}, pretext={})
