from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks.quality import results, training
from benchmarks.quality.figures import (
    difference,
    figures_of,
    measure_figure,
    values_of,
)
from benchmarks.quality.intervals import Interval
from benchmarks.quality.page import section
from benchmarks.quality.recipes import Benchmark, Claim, Shipped
from benchmarks.quality.results import CaseValues, Result
from benchmarks.quality.shipping import ship
from benchmarks.quality.training import Meter, Place, measure
from wsiseg.errors import ConfigMismatch, UsageError
from wsiseg.models.registry import load_network
from wsiseg.models.zoo import load_card
from wsiseg.training.run import read_run
from wsiseg.training.sections import CardText

SETTINGS: dict[str, Any] = {
    "classes": [
        {"index": 0, "name": "epithelium", "color": [0, 0, 0]},
        {"index": 1, "name": "stroma", "color": [0, 0, 9]},
        {"index": 2, "name": "rare", "color": [0, 9, 0]},
        {"index": 3, "name": "background", "color": [9, 0, 0]},
        {"index": 4, "name": "none", "color": [9, 9, 9]},
    ],
    "background": 3,
    "data": {"allow_empty_classes": True},
    "spacing": {"value": 1.0},
    "preprocessing": {"mean": [128, 128, 128], "std": [60, 60, 60]},
    "patches": {"size": 32, "batch": 2},
    "optimiser": {"learning_rate": 0.01},
    "checkpoint_every": 2,
    "card": {"training_data": "made here", "licence": "none", "intended_use": "test"},
}


def espnet(variant: str) -> dict[str, Any]:
    return {"network": {"name": "espnet", "arguments": {"classes": 5, "p": 1, "q": 1, "variant": variant}}}


def tiny() -> Benchmark:
    entries = {
        "one": {"title": "In one", "run": espnet("A")},
        "two": {"title": "In two", "run": espnet("A"), "first": {"patches": 6, "run": espnet("C")}},
    }
    claims = [Claim(says="two beats one", of="two", against="one", figure="mean IoU", more_than=0.0)]
    return Benchmark(
        name="tiny", title="Tiny", about="Made here.", data="tissue", kind="pixels", apart="rare", patches=12,
        run=SETTINGS, entries=entries, claims=claims, open=["the rest"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the shared one, with crops made of noise."""
    root = tmp_path_factory.mktemp("shared")
    rng = np.random.default_rng(0)
    for split, count in (("test", 2), ("val", 3)):
        for number in range(count):
            mask = rng.integers(0, 4, (5, 6), dtype=np.uint8).repeat(9, axis=0).repeat(8, axis=1)
            image = (60 * mask[..., None] + rng.integers(0, 9, (*mask.shape, 3))).astype(np.uint8)
            for kind, values in (("img", image), ("mask", mask)):
                path = root / "data" / "wsss4luad" / split / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)
    return root


def place(data: Path, folder: Path) -> Place:
    return Place(folder / "work", data, folder / "benchmarks", threads=1, device="cpu")


def stored(path: Path) -> Result:
    found = results.read(path)
    assert found is not None
    return found


def counts(result: Result) -> list[Any]:
    return [(case.case, case.values) for case in result.cases]


def test_a_killed_entry_goes_on_and_ends_as_one_that_was_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stored(measure(tiny(), "one", seed=0, place=place(data, tmp_path / "whole")))
    assert [case.case for case in whole.cases] == ["val-0", "val-1", "val-2"]
    assert all(case.array.sum() == 45 * 48 for case in whole.cases)

    def killed(self: Meter, step: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt
        note(self, step, loss)

    note = Meter.loss
    monkeypatch.setattr(Meter, "loss", killed)
    there = place(data, tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        measure(tiny(), "one", seed=0, place=there)
    monkeypatch.setattr(Meter, "loss", note)
    spent = json.loads((there.work / "tiny" / "tiny-one-0" / "cpu.json").read_text())
    assert list(spent) == ["2", "4"]

    resumed = stored(measure(tiny(), "one", seed=0, place=there))
    assert counts(resumed) == counts(whole)
    assert resumed.training_cpu_s >= round(spent["4"], 1)
    assert resumed.runs == whole.runs
    assert "manifest: manifest.csv" in resumed.runs[0]
    assert str(data) not in resumed.model_dump_json()


def test_what_is_finished_is_not_run_again_and_other_settings_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = place(data, Path())
    path = measure(tiny(), "two", seed=1, place=there)
    found = stored(path)
    assert [run.count("variant: C") for run in found.runs] == [1, 0]
    assert [stage["steps"] for stage in found.recipe] == [3, 3]
    assert "card: tiny-two-1-1.json" in found.runs[1]
    assert ["seed: 1001" in found.runs[0], "seed: 1\n" in found.runs[1]] == [True, True]

    monkeypatch.setattr(training, "train", None)
    assert measure(tiny(), "two", seed=1, place=there) == path
    path.unlink()  # trained, but not scored: the weights are there
    assert counts(stored(measure(tiny(), "two", seed=1, place=there))) == counts(found)

    other = tiny().model_copy(update={"patches": 24})
    with pytest.raises(ConfigMismatch, match=r"training 2.steps was 3 and is now 9\); delete it"):
        measure(other, "two", seed=1, place=there)
    path.unlink()
    with pytest.raises(ConfigMismatch, match="holds a training with other settings"):
        measure(other, "two", seed=1, place=there)


def made_result(benchmark: Benchmark, entry: str, seed: int, hits: tuple[int, ...]) -> Result:
    """Three images of 10 pixels of each of four classes, of which so many are right."""
    cases = []
    for number, right in enumerate(hits):
        values = np.zeros((5, 5))
        for k in range(4):
            values[k, k], values[k, (k + 1) % 4] = right, 10 - right
        cases.append(
            CaseValues(
                case=str(number), patient=str(number), part="held out", cpu_s=1, values=values.tolist()
            )
        )
    return Result(
        benchmark=benchmark.name, entry=entry, seed=seed, patches=benchmark.patches,
        recipe=benchmark.recipe(entry), runs=["name: x"], training_cpu_s=90, training_wall_s=100,
        machine="CPU", device="cpu", threads=1, parameters=1000 if entry == "one" else 4000,
        gmacs_per_megapixel=2.5, forward_s_per_megapixel=0.5, cases=cases,
    )  # fmt: skip


def test_figures_of_an_entry_average_its_seeds_in_each_image() -> None:
    benchmark = tiny()
    found = [made_result(benchmark, "one", 0, (10, 10, 10)), made_result(benchmark, "one", 1, (5, 5, 5))]
    figure = next(f for f in figures_of(benchmark) if f.name == "mean IoU")
    measured = measure_figure(found, figure)
    assert measured.interval == pytest.approx(Interval(0.6, 0.6, 0.6))  # 7.5 of 10 right: 7.5 / 12.5
    assert measured.by_seed == pytest.approx([1.0, 5 / 15])
    with pytest.raises(ValueError, match="different cases"):
        values_of([found[0], made_result(benchmark, "one", 1, (5, 5))], figure)
    with pytest.raises(ValueError, match="different cases"):
        difference(found[:1], [made_result(benchmark, "two", 0, (5, 5))], figure)


def test_the_page_says_what_was_found_and_what_was_not(tmp_path: Path) -> None:
    benchmark = tiny()
    for entry, hits in (("one", (5, 6, 7)), ("two", (8, 9, 10))):
        results.write(made_result(benchmark, entry, 0, hits), tmp_path)
    said = section(benchmark, tmp_path)
    assert "12 patches of 32 x 32 pixels" in said
    assert "| mean IoU without rare (3 cases) | 0.429 [" in said  # 18 of 30 right: 18 / 42
    assert "| In one | 1,000 | 2.50 | 0.50 | 1.5 | 0 | `runs/tiny.yaml`, one | CPU, 1 thread |" in said
    assert "| 0.25 x | undecided: 1 of 3 seeds |" in said
    for seed in (1, 2):
        for entry, hits in (("one", (5, 6, 7)), ("two", (8, 9, 9))):
            results.write(made_result(benchmark, entry, seed, hits), tmp_path)
    said = section(benchmark, tmp_path)
    # 27 / 33, twice 26 / 34, less 18 / 42
    assert "+0.390, +0.336, +0.336 | > 0 | 0.25 x | confirmed |" in said
    assert said.endswith("Not measured: the rest.\n")

    gpu = {"machine": "GPU", "device": "cuda", "training_wall_s": 300.0}
    results.write(made_result(benchmark, "one", 2, (5, 6, 7)).model_copy(update=gpu), tmp_path)
    assert "| 1.5; 5.0 | 0, 1, 2 | `runs/tiny.yaml`, one | CPU, 1 thread; GPU |" in section(
        benchmark, tmp_path
    )

    changed = tiny().model_copy(update={"patches": 24})
    said = section(changed, tmp_path)
    assert "Not measured: In one (`one`); In two (`two`); the rest." in said
    assert "| not measured |" in said
    assert "0.429" not in said


def test_a_training_is_shipped_with_what_was_measured(data: Path, tmp_path: Path) -> None:
    there = place(data, tmp_path)
    text = CardText(training_data="noise", licence="none", intended_use="test", limits=("all",))
    how = Shipped(entry="two", seed=1, data={"manifest": "../m.csv", "root": "../there"}, card=text)
    benchmark = tiny().model_copy(update={"ship": {"fine": how}})
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    with pytest.raises(UsageError, match="with seed 1, is not measured yet"):
        ship(benchmark, "fine", place=there, zoo=zoo)
    result = stored(measure(tiny(), "two", seed=1, place=there))
    other = stored(measure(tiny(), "two", seed=2, place=there))
    with pytest.raises(UsageError, match="ships no 'coarse'; it ships fine"):
        ship(benchmark, "coarse", place=there, zoo=zoo)
    path = ship(benchmark, "fine", place=there, zoo=zoo)

    card, network = load_card(path), load_network(path)
    trained = load_network(there.work / "tiny" / "tiny-two-1" / "tiny-two-1.json")
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), trained.state_dict()[name].numpy())
    assert (card.name, card.licence, card.limits) == ("fine", "none", ("all",))
    figure = next(f for f in figures_of(benchmark) if f.name == "mean IoU")
    found = measure_figure([result], figure)
    assert card.quality["mean IoU"].startswith(f"{found.interval.value:.4f} [{found.interval.low:.4f}, ")
    assert card.quality["held-out cases"] == 3
    assert card.quality["training"]["steps"] == 3
    main = figures_of(benchmark)[0]
    seeds = [measure_figure([r], main).interval.value for r in (result, other)]
    assert card.quality["other trainings"].endswith(f"seeds 1, 2: {seeds[0]:.3f}, {seeds[1]:.3f}")

    first, last = (yaml.safe_load((zoo / f"{name}.run.yaml").read_text()) for name in ("fine-1", "fine"))
    assert (first["name"], last["name"], last["out"]) == ("fine-1", "fine", "../../build/fine")
    assert "start" not in first or first["start"] is None
    assert last["start"]["card"] == "../../build/fine/fine-1.json"
    assert last["data"]["root"] == "../there"
    read_run(zoo / "fine.run.yaml")
