"""What a finished training of a benchmark leaves: one JSON file, from which all figures are made."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.quality.recipes import Benchmark, Settings
from wsiseg.errors import ConfigMismatch
from wsiseg.files import to_json, write_whole
from wsiseg.training.checkpoint import first_difference

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CaseValues(_Frozen):
    """What was found on one held-out image or volume.

    `values` are, for pixels and dots, counts by class: rows truth, columns prediction; for volumes a row for
    each structure: Dice, 95 % Hausdorff distance in mm, volume predicted minus truth in ml and per truth.
    """

    case: str
    patient: str
    part: str = Field(description="set of held-out cases that it belongs to")
    cpu_s: float = Field(description="CPU seconds of the prediction")
    values: list[list[float | None]]

    @property
    def array(self) -> NDArray[np.float64]:
        """The values, NaN for none."""
        return np.array(self.values, np.float64)


class Result(_Frozen):
    """One entry trained with one seed and scored once."""

    benchmark: str
    entry: str
    seed: int
    patches: int
    recipe: list[Settings]
    runs: list[str] = Field(description="run file of every training, in order")
    training_cpu_s: float = Field(description="of all steps that the weights come from")
    training_wall_s: float
    machine: str = Field(description="of the training")
    scored_on: str | None = Field(None, description="where CPU seconds were taken; None: on the same machine")
    device: str
    threads: int
    parameters: int | None
    gmacs_per_megapixel: float | None
    forward_s_per_megapixel: float = Field(description="CPU seconds of the bare network on a patch")
    cases: list[CaseValues]


def path_of(folder: Path, benchmark: str, entry: str, seed: int) -> Path:
    """Where the result of an entry and seed is."""
    return folder / f"{benchmark}-{entry}-{seed}.json"


def write(result: Result, folder: Path) -> Path:
    """Store a result whole or not at all."""
    path = path_of(folder, result.benchmark, result.entry, result.seed)
    write_whole(path, to_json(result.model_dump(mode="json")))
    return path


def read(path: Path) -> Result | None:
    """A result, None where there is none."""
    return Result.model_validate_json(path.read_bytes()) if path.is_file() else None


def check_recipe(result: Result, benchmark: Benchmark, path: Path) -> None:
    """Raises ConfigMismatch where a result was made with other settings than the benchmark has now."""
    difference = difference_of(result, benchmark)
    if difference is not None:
        raise ConfigMismatch(
            f"{path} was measured with other settings ({difference}); delete it to measure anew"
        )


def difference_of(result: Result, benchmark: Benchmark) -> str | None:
    """The first setting in which a result differs from what the benchmark has now, None where none does."""
    now = benchmark.recipe(result.entry)
    return first_difference(_by_number(result.recipe), _by_number(now))


def of_entry(folder: Path, benchmark: Benchmark, entry: str) -> list[Result]:
    """Results of an entry by seed, but those that were measured with other settings."""
    found = sorted(folder.glob(f"{benchmark.name}-{entry}-*.json"))
    results = [Result.model_validate_json(path.read_bytes()) for path in found]
    wanted = [r for r in results if (r.benchmark, r.entry) == (benchmark.name, entry)]
    return sorted((r for r in wanted if difference_of(r, benchmark) is None), key=lambda r: r.seed)


def kind_of_machine(device: str) -> str:
    """Processor and libraries in words, without a name."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    capability = torch.backends.cpu.get_cpu_capability()
    processor = " ".join((model or platform.machine()).split())
    return f"{processor} ({os.cpu_count()} cores, {capability}), torch {torch.__version__}"


def _by_number(recipe: list[Settings]) -> dict[str, Any]:
    return {f"training {number}": stage for number, stage in enumerate(recipe, start=1)}
