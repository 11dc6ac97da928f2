"""A training of a benchmark as a shipped model: its weights, a card with what was measured, its run files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from benchmarks.quality import results
from benchmarks.quality.figures import DICE, Figure, figures_of, measure_figure, values_of
from benchmarks.quality.recipes import Benchmark, Settings, Shipped
from benchmarks.quality.results import Result
from benchmarks.quality.training import Place, stage_name
from wsiseg.errors import UsageError
from wsiseg.files import write_whole
from wsiseg.models.card import read_card, write_card
from wsiseg.training.calibration import calibrate_model
from wsiseg.training.sections import Data

METHOD = (
    "these weights were scored once, after the last step, on cases that training never saw (which choices "
    "these cases took part in, the limits say); in brackets the 95 % interval of a bootstrap over {units}"
)


def ship(benchmark: Benchmark, name: str, *, place: Place, zoo: Path) -> Path:
    """Write a model of `benchmark.ship` into a folder; returns the path of its card.

    Raises UsageError where it is not listed, or was not trained and scored with the settings of now.
    """
    if name not in benchmark.ship:
        raise UsageError(
            f"{benchmark.name} ships no {name!r}; it ships {', '.join(benchmark.ship) or 'nothing'}"
        )
    how = benchmark.ship[name]
    every = results.of_entry(place.results, benchmark, how.entry)
    result = next((r for r in every if r.seed == how.seed), None)
    if result is None:
        raise UsageError(f"{benchmark.name}, {how.entry} with seed {how.seed}, is not measured yet")
    own = stage_name(benchmark, how.entry, how.seed, number=len(result.runs))
    folder = place.work / benchmark.name / own
    trained = read_card(folder / f"{own}.json")
    weights = zoo / f"{name}.safetensors"
    shutil.copyfile(folder / trained.weights, weights)
    for number, text in enumerate(result.runs, start=1):
        stage = name if number == len(result.runs) else f"{name}-{number}"
        before = None if number == 1 else f"../../build/{name}/{name}-{number - 1}.json"
        write_whole(zoo / f"{stage}.run.yaml", run_file(text, name=stage, out=name, how=how, before=before))
    changes: dict[str, Any] = {
        **how.card.model_dump(),
        "name": name,
        "weights": weights.name,
        "quality": quality(benchmark, result, every) | {"training": trained.quality["training"]},
    }
    path = zoo / f"{name}.json"
    known = read_card(path) if path.is_file() else None
    if known is not None and known.sha256 == trained.sha256:
        changes["windows"] = known.windows  # measured on these weights since
    write_card(trained.model_copy(update=changes), path)
    if how.calibrated:
        data = Data(
            **{key: (zoo / value).resolve() for key, value in how.data.items()}, allow_upsampling=True
        )
        calibrated = calibrate_model(path, path, data, device=place.device, overwrite=True)
        if how.uncalibrated is not None:
            found = {**calibrated.quality["calibration"], "kept": how.uncalibrated}
            kept = {
                "temperature": trained.temperature,
                "quality": calibrated.quality | {"calibration": found},
            }
            write_card(calibrated.model_copy(update=kept), path)
    return path


def run_file(text: str, *, name: str, out: str, how: Shipped, before: str | None) -> bytes:
    """The run file of a training as a user would start it."""
    run: Settings = yaml.safe_load(text)
    run |= {"name": name, "out": f"../../build/{out}", "card": how.card.model_dump(mode="json")}
    run["data"] |= how.data
    if before is not None:
        run["start"]["card"] = before
    return yaml.safe_dump(run, sort_keys=False, allow_unicode=True).encode()


def quality(benchmark: Benchmark, result: Result, every: list[Result]) -> dict[str, Any]:
    """What a card says of the held-out cases: of these weights, and the spread of other seeds."""
    found: dict[str, Any] = {
        "benchmark": f"{benchmark.name}, entry {result.entry}, seed {result.seed}: see docs/benchmarks.md",
        "method": METHOD.format(units="volumes" if benchmark.kind == "volumes" else "patients"),
        "held-out cases": len(values_of([result], figures_of(benchmark)[0])[1]),
    }
    for figure in figures_of(benchmark):
        found[figure.name] = shown(result, figure)
    if benchmark.kind == "volumes":
        found["Dice, lowest of a volume"] = {
            name: min(dice for case in result.cases if (dice := case.values[k][DICE]) is not None)
            for k, name in enumerate(benchmark.class_names[1:])
        }
    if len(every) > 1:
        main = figures_of(benchmark)[0]
        by_seed = measure_figure(every, main).by_seed
        found["other trainings"] = (
            f"{main.name} of seeds {', '.join(str(r.seed) for r in every)}: "
            f"{', '.join(f'{value:.3f}' for value in by_seed)}"
        )
    return found


def shown(result: Result, figure: Figure) -> str:
    """A figure of one training with its interval."""
    interval = measure_figure([result], figure).interval
    scale, unit = (100, " %") if figure.percent else (1, "")
    value, low, high = (
        f"{scale * v:.{1 if figure.percent else 4}f}" for v in (interval.value, interval.low, interval.high)
    )
    return f"{value}{unit} [{low}, {high}]"
