"""One entry trained with one seed, scored once, and stored; safe to interrupt and to call again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

import wsiseg
from benchmarks.quality.prepare import Cases, prepare
from benchmarks.quality.recipes import Benchmark, Settings, merged
from benchmarks.quality.results import Result, check_recipe, kind_of_machine, path_of, read, write
from benchmarks.quality.scoring import forward_seconds, score_cases
from wsiseg.errors import ConfigMismatch
from wsiseg.files import to_json, write_whole
from wsiseg.memory import keep_memory
from wsiseg.models.facts import network_facts
from wsiseg.models.importing import import_checkpoint
from wsiseg.training.loop import train
from wsiseg.training.run import Run, read_run
from wsiseg.training.watch import Silent

T = TypeVar("T")
SHOWN_EVERY = 20
EARLIER_SEEDS = 1000
"""What is added to the seed of an entry for a training before its own."""


@dataclass(frozen=True)
class Place:
    """Where a benchmark works, and with what."""

    work: Path
    shared: Path
    results: Path
    threads: int
    device: str
    """Of the trainings; scored is on the CPU, so that seconds can be compared."""
    workers: int = 0
    """Threads that make patches ahead: a GPU waits for one that does everything."""


@dataclass(frozen=True)
class Trained:
    """A finished training: its card, its run, and what its steps cost."""

    card: Path
    run: Run
    text: str
    cpu_s: float
    wall_s: float
    machine: str


class Meter(Silent):
    """CPU seconds of the steps that a training's state comes from, also over a kill; shows the progress.

    What is spent up to a step is stored before the trainer stores its state, so that every state that a
    kill can leave has its sum.
    """

    def __init__(self, path: Path, *, every: int) -> None:
        self._path, self._every = path, every
        self._spent: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
        self._before, self._start, self._total, self._what = 0.0, 0.0, 0, ""

    def steps(self, items: Iterator[T], *, done: int, total: int, what: str) -> Iterator[T]:
        self._before = self._spent.get(str(done), 0.0)
        self._total, self._what = total, what
        self._start = time.process_time()
        return items

    def loss(self, step: int, loss: float) -> None:
        spent = self._before + time.process_time() - self._start
        if step % self._every == 0 or step == self._total:
            self._spent[str(step)] = round(spent, 2)
            write_whole(self._path, to_json(self._spent))
        if step % SHOWN_EVERY == 0 or step == self._total:
            said = f"{self._what}: step {step} of {self._total}, loss {loss:.3f}, {spent:.0f} CPU s"
            print(said, file=sys.stderr, flush=True)

    @property
    def total(self) -> float:
        """CPU seconds of all steps of a finished training."""
        return self._spent[max(self._spent, key=int)]


def measure(benchmark: Benchmark, entry: str, *, seed: int, place: Place) -> Path:
    """Train and score an entry, unless that is done; returns the path of its result. Raises WsisegError."""
    path = path_of(place.results, benchmark.name, entry, seed)
    known = read(path)
    if known is not None:
        check_recipe(known, benchmark, path)
        return path
    cases = prepare(benchmark.data, shared=place.shared, folder=place.work)
    trained = train_entry(benchmark, entry, seed=seed, cases=cases, place=place)
    last = trained[-1]
    network = wsiseg.build_network(last.run.network.name, **last.run.network.arguments)
    facts = network_facts(network, last.run.patch, channels=last.run.channels)
    result = Result(
        benchmark=benchmark.name,
        entry=entry,
        seed=seed,
        patches=benchmark.patches,
        recipe=benchmark.recipe(entry),
        runs=[one.text for one in trained],
        training_cpu_s=round(sum(one.cpu_s for one in trained), 1),
        training_wall_s=round(sum(one.wall_s for one in trained), 1),
        machine=last.machine,
        scored_on=kind_of_machine("cpu"),
        device=place.device,
        threads=place.threads,
        parameters=facts.parameters,
        gmacs_per_megapixel=facts.gmacs_per_megapixel,
        forward_s_per_megapixel=forward_seconds(last.card, last.run.patch, channels=last.run.channels),
        cases=score_cases(benchmark, last.card, last.run, cases=cases, shared=place.shared),
    )
    return write(result, place.results)


def stage_name(benchmark: Benchmark, entry: str, seed: int, *, number: int) -> str:
    """Name of the training of an entry that is its `number`th; of the last one without the number."""
    last = number == len(benchmark.recipe(entry))
    return f"{benchmark.name}-{entry}-{seed}" + ("" if last else f"-{number}")


def train_entry(benchmark: Benchmark, entry: str, *, seed: int, cases: Cases, place: Place) -> list[Trained]:
    """The trainings of an entry, each from the weights of the one before. Raises WsisegError."""
    keep_memory()
    torch.set_num_threads(place.threads)
    trained: list[Trained] = []
    recipe = benchmark.recipe(entry)
    for number, stage in enumerate(recipe, start=1):
        name = stage_name(benchmark, entry, seed, number=number)
        settings = dict(stage)
        checkpoint = settings.pop("checkpoint", None)
        start = imported(checkpoint, place) if checkpoint else trained[-1].card if trained else None
        if start is not None:
            settings = merged(settings, {"start": {"card": str(start.resolve())}})
        settings |= {
            "name": name,
            "out": ".",
            "data": {
                **settings.get("data", {}),
                "manifest": str(cases.manifest.resolve()),
                "root": str(cases.root.resolve()),
            },
            # Patches are drawn by seed and step: with one seed the second would see the first one's again.
            "seed": seed + EARLIER_SEEDS * (len(recipe) - number),
            "threads": place.threads,
            "device": place.device,
        }
        if place.workers:
            settings["patches"] = {**settings["patches"], "workers": place.workers}
        trained.append(train_once(settings, place.work / benchmark.name / name))
    return trained


def train_once(settings: Settings, folder: Path) -> Trained:
    """Train a run in a folder of its own, or go on with what a kill left there.

    Raises ConfigMismatch where the folder holds a training with other settings.
    """
    path = folder / "run.yaml"
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise ConfigMismatch(
            f"{folder} holds a training with other settings: delete it, or name another --work"
        )
    write_whole(path, text.encode())
    run = read_run(path)
    meter = Meter(folder / "cpu.json", every=run.checkpoint_every)
    card = folder / f"{run.name}.json"
    finished = folder / f"{run.name}.result.json"  # written last
    machine = folder / "machine.json"
    if not finished.is_file():
        write_whole(machine, to_json({"machine": kind_of_machine(run.device)}))
        card = train(run, watch=meter)
    said: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
    written = (folder / f"{run.name}.run.yaml").read_text(encoding="utf-8")
    used = str(json.loads(machine.read_text(encoding="utf-8"))["machine"])
    return Trained(card, run, written, meter.total, float(said["training"]["seconds"]), used)


def imported(checkpoint: str, place: Place) -> Path:
    """The card of a published checkpoint. Raises ModelError where there is none."""
    card = place.work.resolve() / "cards" / f"{Path(checkpoint).stem}.json"
    if not card.is_file():
        import_checkpoint(place.shared / "fixtures" / "weights" / checkpoint, card)
    return card
