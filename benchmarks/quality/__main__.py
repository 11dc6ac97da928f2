"""Train and score the entries of a benchmark one after the other, or write the page of all results.

    python -m benchmarks.quality NAME --work FOLDER [--seeds 0 1 2] [--only ENTRY ...] [--threads 1]
    python -m benchmarks.quality NAME --work FOLDER --ship MODEL
    python -m benchmarks.quality page

What is finished leaves a file in docs/benchmarks and is not run again; what was killed goes on where it was.
`--patches` takes another budget, for a trial whose results go elsewhere (`--results`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import wsiseg
from benchmarks.quality import recipes, results
from benchmarks.quality.page import write_page
from benchmarks.quality.prepare import SHARED, prepare
from benchmarks.quality.shipping import ship
from benchmarks.quality.training import Place, measure, train_entry
from wsiseg.models.zoo import ZOO


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=[*recipes.names(), "page"])
    parser.add_argument("--work", type=Path, help="folder of the trainings; not in the repository")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", metavar="ENTRY")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--device", default="cpu", help="of trainings: cpu, or cuda (not the same to the bit)"
    )
    parser.add_argument("--workers", type=int, default=0, help="threads that make patches ahead, for a GPU")
    parser.add_argument("--train-only", action="store_true", help="score by a later call, maybe elsewhere")
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder that has data and fixtures")
    parser.add_argument("--results", type=Path, default=results.FOLDER)
    parser.add_argument("--ship", metavar="MODEL", help="write a trained model of the benchmark into the zoo")
    parser.add_argument("--patches", type=int, help="another budget, for a trial")
    given = parser.parse_args(arguments)
    if given.name != "page" and given.work is None:
        parser.error("--work is needed: the folder of the trainings")
    if given.patches is not None and given.results == results.FOLDER:
        parser.error("a trial with --patches needs --results, another folder for what it leaves")
    return given


def run(given: argparse.Namespace) -> None:
    """Measure what is missing of a benchmark, seed by seed."""
    benchmark = recipes.load(recipes.RUNS / f"{given.name}.yaml")
    if given.patches is not None:
        benchmark = benchmark.model_copy(update={"patches": given.patches})
    wanted = given.only or list(benchmark.entries)
    unknown = sorted(set(wanted) - set(benchmark.entries))
    if unknown:
        raise SystemExit(f"{given.name} has no entry {unknown[0]!r}; it has {', '.join(benchmark.entries)}")
    place = Place(given.work, given.shared, given.results, given.threads, given.device, given.workers)
    if given.ship is not None:
        print(ship(benchmark, given.ship, place=place, zoo=ZOO))
        return
    for seed in given.seeds:
        for entry in wanted:
            if given.train_only:
                cases = prepare(benchmark.data, shared=place.shared, folder=place.work)
                train_entry(benchmark, entry, seed=seed, cases=cases, place=place)
                continue
            path = measure(benchmark, entry, seed=seed, place=place)
            result = results.read(path)
            assert result is not None
            each = result.training_cpu_s / result.patches
            print(f"{entry}, seed {seed}: {result.training_cpu_s:.0f} CPU s, {each:.3f} a patch: {path.name}")


def main() -> None:
    given = options()
    try:
        if given.name == "page":
            print(write_page(given.results))
        else:
            run(given)
    except wsiseg.WsisegError as err:
        print(f"error: {err}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
