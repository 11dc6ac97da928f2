"""Run files: every setting is described, every mistake named; the manual lists them all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from tests.conftest import REPOSITORY
from tests.training_data import BOX, PICTURES, VOLUMES, merged, run_of
from wsiseg.errors import ManifestError, UsageError
from wsiseg.training.run import Run, known_keys, portable, read_run, section_of, write_run

DOCS = REPOSITORY / "docs" / "training.md"


def settings(model: type[BaseModel], before: str = "") -> dict[str, str]:
    """Every setting of a section and of the sections in it, with its description."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation)
        own = inner is not None and inner.__module__.startswith("wsiseg.training")
        if inner is not None and own:
            found |= settings(inner, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = field.description or ""
    return found


def test_every_setting_is_described_and_stands_in_the_manual() -> None:
    wanted = settings(Run)
    assert len(wanted) > 60
    assert [name for name, words in wanted.items() if not words] == []
    rows = dict(re.findall(r"^\| `([\w.]+)` \| [^|]* \| (.*) \|$", DOCS.read_text("utf-8"), re.MULTILINE))
    assert rows == wanted


PICTURE_MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"colour": 1}, "unknown setting 'colour'; known are: name, axes, network"),
    ({"patches": {"sizes": 3}}, "unknown setting 'patches.sizes'; known are: size, batch, balanced"),
    (
        {"augmentation": {"histology": {"x": 3}}},
        "known are: stain_jitter, .*, degraded, blur_px, jpeg_quality",
    ),
    ({"losses": [{"kinds": "dice"}]}, "unknown setting 'losses.0.kinds'; known are: kind, output, weight"),
    ({"start": {"cards": "x"}}, "unknown setting 'start.cards'; known are: card, freeze, unfreeze"),
    ({"steps": 0}, "setting 'steps' = 0: Input should be greater"),
    ({"losses": []}, "setting 'losses'"),
    ({"patches": {"size": [32]}}, "patches.size .32,. must be 2 sides of at least 8 pixels"),
    ({"augmentation": {"zoom": [2, 1]}}, "augmentation.zoom .2.0, 1.0. must rise"),
    ({"augmentation": {"flip": "zx"}}, "augmentation.flip 'zx' must name axes of 'yx'"),
    ({"augmentation": {"mri": {}}}, "augmentation.mri is for volumes"),
    ({"background": 9}, "background 9 is not a class"),
    ({"preprocessing": {"mean": [1, 2]}}, "as many means as stds"),
    ({"preprocessing": {"mean": [0], "std": [1]}}, "three means and three stds"),
    (
        {"preprocessing": {"statistics": "case"}, "patches": {"mosaic": True, "glass_share": 0.1}},
        "bare glass is of no case",
    ),
    ({"spacing": {"value": 1.0, "unit": "millimeter"}}, "axes yx is in micrometer"),
    ({"patches": {"class_shares": [1, 2]}}, "patches.class_shares has 2 values for 5 classes"),
    ({"patches": {"class_shares": [0] * 5}}, "class_shares are all 0"),
    ({"losses": [{"class_weights": [1, 2]}]}, "losses.class_weights has 2 values for 5 classes"),
    ({"losses": [{"output": -1}]}, "losses.output -1 must be 0, 1, 2, ... or diagnosis"),
    ({"losses": [{"output": "diagnosis", "kind": "dice"}]}, "a diagnosis is learned by cross-entropy"),
    ({"diagnoses": ["a"]}, "diagnoses and a loss with output: diagnosis belong together"),
    (
        {"diagnoses": ["a"], "losses": [{"output": "diagnosis"}], "patches": {"mosaic": True}},
        "a mosaic is made of several cases and has no diagnosis",
    ),
    ({"patches": {"glass_share": 0.1}}, "glass_share is of a mosaic's pieces"),
    ({"validation": {"keep": "best"}}, "validation.keep best and validation.patience need validation.every"),
    ({"pretext": {"haematoxylin": 0, "rotation": 0}}, "pretext needs a task"),
    ({"pretext": {}, "patches": {"size": [32, 40]}}, "pretext turns patches: their sides must be equal"),
]
VOLUME_MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"classes": [BOX[0], BOX[2], BOX[1]]}, "numbered 0, 1, 2"),
    ({"augmentation": {"flip": "xyx"}}, "setting 'augmentation.flip' = 'xyx'"),
    ({"augmentation": {"histology": {}}}, "augmentation.histology for pictures"),
    ({"augmentation": {"quarter_turns": True}}, "glass_share, quarter_turns and pretext are for pictures"),
    ({"spacing": {"value": 1.0, "unit": "micrometer"}}, "axes zyx is in millimeter"),
    ({"spacing": {"value": [1, 1]}}, "must have one entry per axis"),
]


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [(PICTURES, *case) for case in PICTURE_MISTAKES] + [(VOLUMES, *case) for case in VOLUME_MISTAKES],
)
def test_mistakes_in_a_run_file_are_named(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ManifestError, match=message) as refused:
        run_of(tmp_path, base, changes)
    assert "\n" not in str(refused.value)


def test_run_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read .*none.yaml"):
        read_run(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(UsageError, match="must hold settings by name, found list"):
        read_run(tmp_path / "list.yaml")


def test_paths_are_relative_to_the_file_and_leave_no_trace(tmp_path: Path) -> None:
    changes = {"data": {"root": "data"}, "start": {"card": "before/x.json"}}
    run = run_of(tmp_path, PICTURES, changes)
    assert (run.data.manifest, run.data.root, run.out) == (
        tmp_path / "m.csv", tmp_path / "data", tmp_path / "out",
    )  # fmt: skip
    assert run.start is not None
    assert run.start.card == str(tmp_path / "before" / "x.json")
    write_run(run, tmp_path / "kept.yaml")
    kept = yaml.safe_load((tmp_path / "kept.yaml").read_text())
    assert kept["start"]["card"] == "x.json"
    assert str(tmp_path) not in (tmp_path / "kept.yaml").read_text()
    assert (
        portable(run_of(tmp_path, PICTURES, {"start": {"card": "demo-breast8"}}))["start"]["card"]
        == "demo-breast8"
    )
    assert read_run(tmp_path / "kept.yaml").steps == run.steps


def test_known_keys_are_those_of_the_section() -> None:
    assert known_keys(Run, ("start", "unfreeze", 0, "stp")) == ["step", "layers"]
    assert known_keys(Run, ("x",))[:3] == ["name", "axes", "network"]
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
