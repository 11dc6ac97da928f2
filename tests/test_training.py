"""The trainer: weights and loss as published, patches with their truth, mistakes named, a run that learns."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.conftest import REPOSITORY
from wsiseg.classes import BREAST8
from wsiseg.errors import AnnotationError, ManifestError, StoreError, UsageError
from wsiseg.manifest import read_manifest
from wsiseg.models.registry import ZOO, load_card, load_network
from wsiseg.training.augment import flip_and_turn, jitter_stain
from wsiseg.training.loop import train
from wsiseg.training.loss import class_weights, weighted_cross_entropy
from wsiseg.training.patches import PatchSampler, open_cases
from wsiseg.training.run import read_run

CROPS = REPOSITORY / "wsiseg" / "samples" / "ynet-breast8"
MANIFEST = REPOSITORY / "data_manifests" / "ynet-breast8.csv"


def test_class_weights_are_those_of_a_correct_histogram(shared: Path) -> None:
    expected = json.loads((shared / "fixtures" / "class_weights.json").read_text())
    truths = [np.asarray(Image.open(p))[..., 0] for p in sorted((CROPS / "masks").glob("*.png"))]
    np.testing.assert_allclose(class_weights(truths, num_classes=8), expected["correct_weights"], rtol=1e-6)
    void = [np.where(t == 0, 255, t).astype(np.uint8) for t in truths]
    assert class_weights(void, num_classes=8)[0] == pytest.approx(1 / np.log(1.1), rel=1e-6)


def test_the_loss_is_the_golden_one(shared: Path) -> None:
    stored = np.load(shared / "fixtures" / "loss_ce.npz")
    logits, weights = torch.from_numpy(stored["logits"]), torch.from_numpy(stored["weights"])
    for target, value in (("target", "weighted_ce"), ("target_ignore255", "weighted_ce_ignore255")):
        loss = weighted_cross_entropy(logits, torch.from_numpy(stored[target]), weights)
        assert loss.item() == pytest.approx(float(stored[value]), rel=1e-6)


def test_flips_and_turns_move_image_and_truth_alike_and_reach_all_eight() -> None:
    truth = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = np.repeat(truth[..., None], 3, axis=2)
    seen = set()
    for seed in range(64):
        turned, marks = flip_and_turn(image, truth, np.random.default_rng(seed))
        np.testing.assert_array_equal(turned[..., 1], marks)
        seen.add(marks.tobytes() + bytes(marks.shape))
    assert len(seen) == 8


def test_stain_jitter_changes_stain_and_leaves_glass() -> None:
    tissue = np.full((4, 5, 3), (180, 90, 160), np.uint8)
    changed = jitter_stain(tissue, np.random.default_rng(1), strength=0.3)
    assert changed.shape == tissue.shape
    assert np.abs(changed.astype(int) - tissue).max() > 5
    same = jitter_stain(tissue, np.random.default_rng(1), strength=0.0)
    assert np.abs(same.astype(int) - tissue).max() <= 1


def test_patches_carry_the_truth_of_their_pixels(tmp_path: Path) -> None:
    """Images that show their own class: wherever a patch was cut, colour and truth must agree."""
    rng = np.random.default_rng(0)
    rows = ["case,path,patient,annotation,mpp,licence"]
    for case in ("a", "b"):
        truth = rng.integers(0, 8, (6, 9)).repeat(20, axis=0).repeat(20, axis=1).astype(np.uint8)
        Image.fromarray(np.stack([truth * 30] * 3, axis=-1)).save(tmp_path / f"{case}.png")
        Image.fromarray(truth).save(tmp_path / f"{case}-truth.png")
        rows.append(f"{case},{case}.png,{case},{case}-truth.png,0.5,none")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    cases = open_cases(read_manifest(tmp_path / "m.csv"), BREAST8)
    sampler = PatchSampler(
        cases=cases, size=64, zoom=(1.0, 1.0), stain_jitter=0.0, min_piece=16, glass_share=0.0, glass=0
    )
    images, truths = sampler.batch(6, np.random.default_rng(3))
    assert images.shape == (6, 3, 64, 64)
    np.testing.assert_array_equal(images[:, 0].numpy(), truths.numpy() * 30)
    glassy = PatchSampler(
        cases=cases, size=64, zoom=(0.8, 1.3), stain_jitter=0.0, min_piece=16, glass_share=0.99, glass=0
    )
    images, truths = glassy.batch(4, np.random.default_rng(3))
    assert (truths == 0).float().mean() > 0.8
    assert images[truths[:, None].expand_as(images) == 0].float().mean() > 200


def run_file(folder: Path, **changes: Any) -> Path:
    data = yaml.safe_load((ZOO / "demo-breast8.run.yaml").read_text()) | {
        "name": "tiny",
        "manifest": str(MANIFEST),
        "root": str(CROPS),
        "out": str(folder / "out"),
        "network": {"name": "espnet", "arguments": {"classes": 8, "p": 1, "q": 1}},
        "patch": 64,
        "batch": 4,
        "steps": 60,
        "min_piece": 32,
        "threads": None,
        "leave_one_patient_out": False,
        **changes,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_a_short_run_learns_and_leaves_weights_card_log_and_run(tmp_path: Path) -> None:
    card_path = train(read_run(run_file(tmp_path)))
    card = load_card(card_path)
    load_network(card_path)
    assert card.windows.output_stride == 8
    assert card.windows.halo is None
    assert card.quality == {"note": "no held-out figures: trained on every case"}
    with (tmp_path / "out" / "tiny.log.csv").open() as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream)]
    assert losses[-1] < 0.9 * losses[0]
    kept = yaml.safe_load((tmp_path / "out" / "tiny.run.yaml").read_text())
    assert kept["steps"] == 60
    assert kept["manifest"] == MANIFEST.name
    assert str(tmp_path) not in (tmp_path / "out" / "tiny.run.yaml").read_text()


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    cards = [load_card(train(read_run(run_file(tmp_path / name, steps=3)))) for name in ("a", "b")]
    assert cards[0].sha256 == cards[1].sha256


def test_left_out_patients_are_scored_by_weights_that_never_saw_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on: list[set[str]] = []
    from wsiseg.training import loop

    original = loop.train_network

    def spy(run: Any, cases: Any, **rest: Any) -> Any:
        trained_on.append({case.row.patient for case in cases})
        return original(run, cases, **rest)

    monkeypatch.setattr(loop, "train_network", spy)
    card = load_card(train(read_run(run_file(tmp_path, steps=2, leave_one_patient_out=True))))
    everyone = {"1222", "1339", "1529", "2204"}
    assert trained_on == [everyone - {p} for p in sorted(everyone)] + [everyone]
    assert set(card.quality["per patient"]) == everyone
    assert card.quality["all"]["pixels"] == 5 * 384 * 384
    assert set(card.quality["all"]["IoU of classes in the truth"]) == {c.name for c in BREAST8[:7]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "unknown setting 'colour'; known are: name, manifest"),
        ({"steps": 0}, "setting 'steps' = 0: Input should be greater"),
        ({"manifest": "nowhere.csv"}, "cannot read the manifest .*nowhere.csv"),
        ({"patch": 60}, "patch 60 must be a multiple of 8"),
        ({"zoom": [2, 1]}, "zoom .2.0, 1.0. must rise"),
        ({"background": 9}, "background 9 is not a class"),
        ({"preprocessing": {"mean": [1, 2]}}, "three means and three stds"),
        ({"preprocessing": {"statistics": "case"}}, "statistics must be card"),
        ({"network": {"name": "espnet", "arguments": {"classes": 5}}}, "classes must be 8 .* got 5"),
        ({"learning_rate": 1e30}, "the loss is not finite at step"),
        ({"spacing": {"value": 2.0}}, "has pixels of 0.5 µm, the run trains at 2"),
    ],
)
def test_mistakes_in_a_run_file_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        train(read_run(run_file(tmp_path, **changes)))


def test_run_files_and_cases_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read .*none.yaml"):
        read_run(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(UsageError, match="must hold settings by name, found list"):
        read_run(tmp_path / "list.yaml")
    header = "case,path,patient,annotation,mpp,licence\n"
    image = f"images/{next((CROPS / 'images').glob('*.png')).name}"
    (tmp_path / "m.csv").write_text(f"{header}a,{image},a,,0.5,MIT\n")
    with pytest.raises(ManifestError, match="case 'a' has no annotation"):
        open_cases(read_manifest(tmp_path / "m.csv", root=CROPS), BREAST8)
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "small.png")
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(tmp_path / "image.png")
    (tmp_path / "m.csv").write_text(f"{header}a,image.png,a,small.png,0.5,MIT\n")
    with pytest.raises(AnnotationError, match="small.png has 3 x 4 pixels"):
        open_cases(read_manifest(tmp_path / "m.csv"), BREAST8)


def test_a_manifest_is_believed_and_checked(tmp_path: Path) -> None:
    text = MANIFEST.read_text()
    only = [line for line in text.splitlines() if line.startswith(("case", "1529"))]
    (tmp_path / "one.csv").write_text("\n".join(only))
    with pytest.raises(ManifestError, match="at least two patients"):
        train(read_run(run_file(tmp_path, manifest=str(tmp_path / "one.csv"), leave_one_patient_out=True)))
    (tmp_path / "test.csv").write_text(text.replace(",train,", ",test,"))
    with pytest.raises(ManifestError, match="no case whose split is train"):
        train(read_run(run_file(tmp_path, manifest=str(tmp_path / "test.csv"))))
    first = text.splitlines()[1].split(",")[2]
    (tmp_path / "other.csv").write_text(text.replace(first, "0" * 64))
    with pytest.raises(ManifestError, match="has another sha256 than the manifest says"):
        train(read_run(run_file(tmp_path, manifest=str(tmp_path / "other.csv"))))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        train(read_run(run_file(tmp_path, out=str(tmp_path / "file"))))
