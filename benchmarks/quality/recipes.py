"""What is compared: a benchmark as one file, with the settings that all entries share and their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from wsiseg.training.sections import CardText

RUNS = Path(__file__).parent / "runs"
Settings = dict[str, Any]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class First(_Frozen):
    """A training before the entry's own, which starts from its weights."""

    patches: int = Field(gt=0, description="of those that the entry sees in all")
    run: Settings = Field(description="what differs from the entry's own settings")


class Entry(_Frozen):
    """One row: a network and how it is trained."""

    title: str
    run: Settings = Field(description="what differs from the settings that all entries share")
    first: First | None = None
    checkpoint: str | None = Field(None, description="published weights to start from")


class Claim(_Frozen):
    """A sentence that an interval confirms, refutes or leaves open."""

    says: str
    of: str = Field(description="an entry")
    against: str | None = Field(None, description="the entry that it is compared with, if with any")
    figure: str
    more_than: float = Field(description="bound of the figure, or of the difference between both entries")


class Shipped(_Frozen):
    """A training whose weights are shipped."""

    entry: str
    seed: int
    data: Settings = Field(description="manifest and root as a user has them, relative to the zoo")
    calibrated: bool = Field(False, description="fit a temperature on the validation cases of these data")
    uncalibrated: str | None = Field(None, description="why the card keeps its own temperature all the same")
    card: CardText


class Benchmark(_Frozen):
    """Entries trained from the same patches and scored on the same held-out cases."""

    name: str
    title: str
    about: str
    data: str = Field(description="cases by the name of what prepares them")
    kind: Literal["pixels", "dots", "volumes"] = Field(description="what is scored")
    patches: int = Field(gt=0, description="seen by every entry in all of its training")
    apart: str | None = Field(None, description="a class so rare that means are also given without it")
    run: Settings
    entries: dict[str, Entry]
    claims: tuple[Claim, ...] = ()
    ship: dict[str, Shipped] = Field({}, description="models by name that come of it")
    open: tuple[str, ...] = Field((), description="what is not measured, one sentence each")

    @property
    def class_names(self) -> list[str]:
        """Names of the classes by index."""
        return [c["name"] for c in self.run["classes"]]

    def recipe(self, entry: str) -> list[Settings]:
        """Settings of every training of an entry, in order; paths, seed and threads are not among them.

        Raises ValueError where the patches are no whole number of steps.
        """
        own = self.entries[entry]
        last = merged(self.run, own.run)
        stages = [(self.patches, last)]
        if own.first is not None:
            earlier = own.first.patches
            stages = [(earlier, merged(last, own.first.run)), (self.patches - earlier, last)]
        made = [{**run, "steps": self._steps(run, patches)} for patches, run in stages]
        if own.checkpoint is not None:
            made[0]["checkpoint"] = own.checkpoint
        return made

    def _steps(self, run: Settings, patches: int) -> int:
        batch = int(run["patches"]["batch"])
        steps, left = divmod(patches, batch)
        if left or steps < 1:
            raise ValueError(f"{self.name}: {patches} patches are no whole batches of {batch}")
        return steps


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Settings:
    """Settings with some changed; sections are merged, and a network is replaced as a whole."""
    made = copy.deepcopy(dict(base))
    for key, value in changes.items():
        inner = made.get(key)
        if key != "network" and isinstance(inner, dict) and isinstance(value, dict):
            made[key] = merged(inner, value)
        else:
            made[key] = copy.deepcopy(value)
    return made


def names() -> list[str]:
    """Names of the benchmarks."""
    return sorted(path.stem for path in RUNS.glob("*.yaml"))


def load(path: Path) -> Benchmark:
    """The benchmark in a file. `like` names another whose settings and entries `keep` it takes over."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "like" in data:
        base = yaml.safe_load((path.parent / f"{data.pop('like')}.yaml").read_text(encoding="utf-8"))
        kept = {name: base["entries"][name] for name in data.pop("keep")}
        data = {**base, **data, "entries": {**kept, **data.get("entries", {})}}
    return Benchmark(name=path.stem, **data)
