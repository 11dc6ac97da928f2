"""The trainer as a whole: it learns, scores what was held out, goes on after kill -9, leaves true cards."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.conftest import REPOSITORY
from tests.training_data import pictures, volumes
from wsiseg.cli import main
from wsiseg.errors import ConfigMismatch, ManifestError, StoreError
from wsiseg.manifest import read_manifest
from wsiseg.metrics import ConfusionMatrix, score
from wsiseg.models.registry import load_network
from wsiseg.models.zoo import ZOO, load_card
from wsiseg.predict import load_predictor
from wsiseg.training import loop
from wsiseg.training.cases import open_cases
from wsiseg.training.loop import train
from wsiseg.training.run import Run, read_run
from wsiseg.training.session import Session
from wsiseg.training.validation import confusion_on, summary

MANIFEST = REPOSITORY / "data_manifests" / "msd-hippocampus.csv"
SAMPLES = REPOSITORY / "wsiseg" / "samples" / "msd-hippocampus"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_on_pictures_learns_and_its_card_says_what_was_held_out(tmp_path: Path) -> None:
    run = pictures(tmp_path, splits="ttve", steps=60, validation={"every": 30})
    path = train(run)
    card, out = load_card(path), tmp_path / "out"
    losses = [float(row["loss"]) for row in rows_of(out / "tiny.log.csv")]
    assert losses[-1] < 0.7 * losses[0]
    scored = rows_of(out / "tiny.validation.csv")
    assert [row["step"] for row in scored] == ["30", "60"]
    assert card.quality["validation"]["mean IoU"] > 0.5
    assert card.quality["training"]["patches"] == 120
    assert json.loads((out / "tiny.result.json").read_text())["sha256"] == card.sha256
    with Image.open(out / "tiny.curves.png") as curves:
        assert curves.width > 500
    assert not list(out.glob("*.checkpoint.pt"))
    kept = (out / "tiny.run.yaml").read_text()
    assert yaml.safe_load(kept)["steps"] == 60
    assert str(tmp_path) not in kept
    image, truth = (np.array(Image.open(tmp_path / name)) for name in ("3.png", "3-truth.png"))
    mask = load_predictor(path, "cpu")(np.moveaxis(image, -1, 0)[None]).scores[0].argmax(0)
    matrix = ConfusionMatrix.of(truth=truth, prediction=mask.numpy().astype(np.uint8), num_classes=5)
    expected = {c.name: round(c.iou or 0, 4) for c in score(matrix, run.mask_classes).classes}
    assert card.quality["test"]["IoU of classes in the truth"] == expected


def test_a_run_on_volumes_learns_and_reports_the_dice_of_whole_volumes(tmp_path: Path) -> None:
    how = {"flip": "x", "warped": 0.5, "rotation_deg": 10, "zoom": [0.9, 1.1], "zoom_each_axis": True}
    run = volumes(tmp_path, steps=25, average=0.8, optimiser={"learning_rate": 0.02}, augmentation=how)
    card = load_card(train(run))
    assert (card.axes, card.channels, card.windows.output_stride) == ("zyx", 1, 8)
    losses = [float(row["loss"]) for row in rows_of(tmp_path / "out" / "tiny.log.csv")]
    assert losses[-1] < 0.9 * losses[0]
    quality = card.quality["validation"]
    assert (quality["volumes"], card.quality["training"]["cases"]) == (1, 2)
    assert quality["method"].startswith("scored once, after the last step, on cases that training never saw")
    assert set(quality["Dice, mean over volumes"]) <= {"front", "back"}


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    hashes = []
    for name, seed, workers in (("a", 1, 0), ("b", 1, 2), ("c", 2, 0)):
        how = {"balanced": 0.5, "workers": workers}
        run = pictures(
            tmp_path / name, seed=seed, patches=how, augmentation={"histology": {"stain_jitter": 0.1}}
        )
        hashes.append(load_card(train(run)).sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_validation_never_reaches_training(tmp_path: Path) -> None:
    first = load_card(train(volumes(tmp_path))).sha256
    run = volumes(tmp_path)
    (tmp_path / "images" / "2.nii.gz").write_bytes((tmp_path / "images" / "0.nii.gz").read_bytes())
    assert load_card(train(run)).sha256 == first


def interrupted(run: Run, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until a step, and no further."""
    original = Session.learn

    def learn(session: Session, number: int, parts: Any) -> float:
        if number > step:
            raise KeyboardInterrupt
        return original(session, number, parts)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "learn", learn)
        with pytest.raises(KeyboardInterrupt):
            train(run)


HOW: dict[str, Any] = {
    "steps": 12, "checkpoint_every": 5, "average": 0.9,
    "validation": {"every": 4, "keep": "best"},
    "optimiser": {"clip_norm": 1.0},
    "augmentation": {"flip": "yx", "zoom": [0.9, 1.1], "histology": {"stain_jitter": 0.1}},
}  # fmt: skip


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_an_interrupted_training_ends_with_the_weights_and_tables_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    how = HOW | {"schedule": {"kind": schedule}}
    whole = load_card(train(pictures(tmp_path / "whole", **how)))
    run = pictures(tmp_path / "cut", **how)
    for step in (3, 7, 10):  # before the first checkpoint, after it, after the second
        interrupted(run, step, monkeypatch)
    again = load_card(train(run))
    assert again.sha256 == whole.sha256
    assert again.quality["validation"] == whole.quality["validation"]
    assert rows_of(tmp_path / "cut/out/tiny.validation.csv") == rows_of(
        tmp_path / "whole/out/tiny.validation.csv"
    )
    loss = [[row["loss"] for row in rows_of(tmp_path / n / "out/tiny.log.csv")] for n in ("cut", "whole")]
    assert loss[0] == loss[1]


def test_folds_go_on_where_they_were_and_other_trainings_keep_their_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {
        "steps": 4,
        "checkpoint_every": 2,
        "validation": {"leave_one_patient_out": True},
    }
    train(pictures(tmp_path / "whole", splits="tt", **how))
    run = pictures(tmp_path / "cut", splits="tt", **how)
    interrupted(run, 3, monkeypatch)
    other = tmp_path / "cut" / "out" / "tiny-2.checkpoint.pt"
    other.write_bytes(b"of another run in the same folder")
    train(run)
    for name in ("tiny-without-p0", "tiny-without-p1", "tiny"):
        cards = [load_card(tmp_path / folder / "out" / f"{name}.json") for folder in ("whole", "cut")]
        assert cards[0].sha256 == cards[1].sha256
    assert list((tmp_path / "cut" / "out").glob("*.checkpoint.pt")) == [other]


def test_a_state_of_another_run_or_of_other_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(pictures(tmp_path, **HOW), 6, monkeypatch)
    state = tmp_path / "out" / "tiny.checkpoint.pt"
    with pytest.raises(
        ConfigMismatch, match=r"tiny.checkpoint.pt was begun .*: seed was 0 and is now 1; delete"
    ):
        train(pictures(tmp_path, seed=1, **HOW))
    rate = pictures(tmp_path, **HOW | {"optimiser": {"learning_rate": 0.5}})
    with pytest.raises(ConfigMismatch, match=r"optimiser.learning_rate was 0.01 and is now 0.5"):
        train(rate)
    run = pictures(tmp_path, **HOW | {"checkpoint_every": 3})  # decides nothing
    Image.open(tmp_path / "1.png").save(tmp_path / "0.png")
    with pytest.raises(ConfigMismatch, match=r"cases.0 was [0-9a-f]{20}"):
        train(run)
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(StoreError, match="is not the state of a training; delete it"):
        train(pictures(tmp_path, **HOW))


DRIVER = """
import sys
from pathlib import Path
from wsiseg.training.loop import train
from wsiseg.training.run import read_run
class Watch:
    def steps(self, items, *, done, total, what):
        print("from", done, flush=True)
        for item in items:
            print("step", item[0], flush=True)
            yield item
    def loss(self, step, loss): ...
    def scored(self, step, scores): ...
print("end", train(read_run(Path(sys.argv[1])), watch=Watch()), flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", [pictures, volumes])
def test_kill_9_at_random_steps_ends_with_bit_identical_weights(tmp_path: Path, kind: Any) -> None:
    how = {"steps": 40, "checkpoint_every": 4, "average": 0.9, "validation": {"every": 7, "keep": "best"}}
    whole = load_card(train(kind(tmp_path / "whole", **how)))
    kind(tmp_path / "cut", **how)
    rng, began = np.random.default_rng(), []
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "cut" / "run.yaml")]
    for stop in [*sorted(rng.choice(np.arange(2, 40), 4, replace=False)), None]:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                word, value = line.split(maxsplit=1)
                if word == "from":
                    began.append(int(value))
                elif word == "step" and stop is not None and int(value) >= stop:
                    time.sleep(float(rng.uniform(0, 0.05)))
                    os.kill(process.pid, signal.SIGKILL)
                    break
        assert process.wait() == (0 if stop is None else -signal.SIGKILL)
    assert began[0] == 0
    assert began[-1] > 0
    assert load_card(tmp_path / "cut/out/tiny.json").sha256 == whole.sha256


def test_left_out_patients_are_scored_by_weights_that_never_saw_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on: list[set[str]] = []
    original = loop.train_network

    def spy(run: Any, cases: Any, *rest: Any) -> Any:
        trained_on.append({case.row.patient for case in cases.train})
        return original(run, cases, *rest)

    monkeypatch.setattr(loop, "train_network", spy)
    run = pictures(tmp_path, splits="ttt", validation={"leave_one_patient_out": True})
    card = load_card(train(run))
    everyone = {"p0", "p1", "p2"}
    assert trained_on == [everyone - {p} for p in sorted(everyone)] + [everyone]
    folds = card.quality["leave one patient out"]
    assert set(folds["per patient"]) == everyone
    assert folds["all"]["pixels"] == 3 * 48 * 56
    left = load_card(tmp_path / "out" / "tiny-without-p1.json")
    assert left.quality["on the patient left out"] == folds["per patient"]["p1"]
    draft = load_card(tmp_path / "out" / "tiny.json")
    network, cases = load_network(tmp_path / "out" / "tiny-without-p1.json"), open_cases(run)
    matrices = confusion_on(network, cases.train[1:2], card=draft, device=torch.device("cpu"))
    assert summary(matrices, run) == folds["per patient"]["p1"]


def test_the_best_weights_are_kept_and_patience_ends_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([0.2, 0.6, 0.5, 0.6, 0.9])
    weights: list[torch.Tensor] = []

    def figure_of(*_: Any) -> float:
        return next(figures)

    original = Session.judge

    def judge(session: Session, matrices: Any) -> Any:
        weights.append(next(iter(session.weights.values())).detach().clone())
        return original(session, matrices)

    monkeypatch.setattr("wsiseg.training.session.figure_of", figure_of)
    monkeypatch.setattr(Session, "judge", judge)
    how = {"every": 2, "keep": "best", "patience": 2}
    path = train(pictures(tmp_path, steps=50, validation=how))
    assert load_card(path).quality["training"]["steps"] == 8
    assert load_card(path).quality["training"]["kept"] == "weights of step 4"
    assert load_card(path).quality["validation"]["method"].startswith("the weights were chosen by these")
    torch.testing.assert_close(next(load_network(path).parameters()).detach(), weights[1], rtol=0, atol=0)


def test_sparse_dots_are_learned_and_scored_where_they_are(tmp_path: Path) -> None:
    run = pictures(tmp_path, steps=30)
    rng = np.random.default_rng(0)
    for number in range(3):
        truth = np.asarray(Image.open(tmp_path / f"{number}-truth.png"))
        dots = np.where(rng.random(truth.shape) < 0.05, truth, 255).astype(np.uint8)
        Image.fromarray(dots).save(tmp_path / f"{number}-truth.png")
    counted = int((dots != 255).sum())
    quality = load_card(train(run)).quality["validation"]
    assert quality["pixels"] == counted
    assert quality["pixel accuracy"] > 0.3


def test_without_held_out_cases_the_card_claims_no_figures(tmp_path: Path) -> None:
    quality = load_card(train(pictures(tmp_path, splits="t"))).quality
    assert quality["note"] == "no held-out figures: the manifest has no validation or test cases"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimiser": {"learning_rate": 1e30}},
            "the loss is not finite at step 2; lower optimiser.learning",
        ),
        ({"precision": "bfloat16"}, "precision bfloat16 is for a GPU and this run is on the CPU"),
        ({"splits": "tt", "validation": {"every": 1}}, "validation.every needs cases whose split is valid"),
        ({"splits": "tv", "validation": {"leave_one_patient_out": True}}, "cases of at least two patients"),
        ({"patches": {"size": 36}}, "espnet cannot be trained on patches of 36 x 36 pixels and 3 channels"),
        ({"network": {"name": "espnet", "arguments": {"classes": 6}}}, "puts out 6 scores a pixel .* has 5"),
        ({"losses": [{"output": 1}]}, "a loss is on output 1, but the network espnet has 1 outputs"),
    ],
)
def test_runs_that_cannot_be_trained_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        train(pictures(tmp_path, **changes))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = pictures(tmp_path)
    (tmp_path / "out").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        train(run)


def test_the_command_shows_losses_and_scores(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path, validation={"every": 2})
    monkeypatch.setattr(sys, "argv", ["wsiseg", "train", str(tmp_path / "run.yaml"), "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capfd.readouterr()
    assert end.value.code == 0, err
    assert json.loads(out) == {"card": str(tmp_path / "out" / "tiny.json")}
    assert "step 2: glass IoU" in err
    assert "loss " in err


def test_the_shipped_model_is_as_good_on_the_shipped_samples_as_its_card_says_of_held_out_ones() -> None:
    """The samples are validation volumes: the weights never saw them."""
    run = read_run(ZOO / "hippocampus.run.yaml")
    manifest = read_manifest(MANIFEST, root=SAMPLES)
    shipped = [c.case for c in manifest.cases if manifest.resolve(c.path).is_file()]
    assert len(shipped) == 3
    card, network = load_card("hippocampus"), load_network("hippocampus")
    cases = [open_case(run, row) for row in manifest.cases if row.case in shipped]
    for matrix in confusion_on(network, cases, card=card, device=torch.device("cpu")):
        for c in score(matrix, card.classes).classes[1:]:
            assert (c.dice or 0) >= card.quality["Dice, lowest of a volume"][c.name] - 1e-3


def open_case(run: Run, row: Any) -> Any:
    from wsiseg.training.cases import open_case as opened

    return opened(run, read_manifest(MANIFEST, root=SAMPLES), row)


@pytest.mark.parametrize("name", ["demo-breast8", "hippocampus"])
def test_the_run_files_of_the_shipped_models_are_those_of_their_cards(name: str) -> None:
    run, card = read_run(ZOO / f"{name}.run.yaml"), load_card(name)
    assert (run.network, run.mask_classes, run.preprocessing) == (
        card.network,
        card.classes,
        card.preprocessing,
    )
    assert (run.spacing, run.card.licence, run.card.limits) == (card.spacing, card.licence, card.limits)


def test_the_manifest_splits_by_patient() -> None:
    rows = read_manifest(MANIFEST).cases
    assert [sum(r.split == s for r in rows) for s in ("train", "validation")] == [161, 40]
    assert len({r.patient for r in rows}) == len(rows) == 201
