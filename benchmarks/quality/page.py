"""docs/benchmarks.md: tables of the stored results, and of nothing else."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.quality import recipes, results
from benchmarks.quality.figures import (
    Figure,
    Found,
    difference,
    figures_of,
    measure_figure,
    site_of,
    values_of,
)
from benchmarks.quality.intervals import ROUNDS, Interval, Values, verdict
from benchmarks.quality.recipes import Benchmark, Claim
from benchmarks.quality.results import Result
from benchmarks.quality.scoring import HELD_OUT
from wsiseg.files import write_whole

HEAD = """\
# Quality on held-out cases

Made by `python -m benchmarks.quality page` from the files in `docs/benchmarks/`; each holds one training:
its run file with every setting, its seed, what it cost, and what it found on each case. Within a table all
entries see the same number of patches, given above it, and each is scored once, after its last step, on cases
that it never saw.

Figures are of all cases together, with seeds averaged in each case; in square brackets the 95 % interval
of a percentile bootstrap over patients ({rounds:,} draws); in round brackets the lowest and the highest
seed. A star says that a class was in none of the cases of some draws, which are left out. Differences are
paired: both entries on the same draws. A claim is confirmed or refuted only if it has {seeds} seeds, and
the interval and each of them lie wholly on one side of its bound. These intervals are about other cases,
not about other trainings: how much a training varies is the spread of the seeds. Minutes of a training
are of the CPU; where a GPU was used, of the clock, with other trainings on the same GPU at the same time.
Masks are made on the CPU in either case.

To repeat a table, with as many breaks as you like (what is finished is kept, what was killed goes on):

```
python -m benchmarks.quality NAME --work build/quality --shared ../shared
```
"""
SEEDS = 3
"""Trainings of an entry before anything is said of it."""
WIDTH = 118
COST = (
    "entry",
    "parameters",
    "GMACs per Mpx",
    "CPU s per Mpx",
    "minutes of a training",
    "seeds",
    "run file",
    "machine",
)


def write_page(folder: Path) -> Path:
    """Write the page beside the folder of results; returns its path."""
    found = [recipes.load(recipes.RUNS / f"{name}.yaml") for name in recipes.names()]
    parts = [HEAD.format(rounds=ROUNDS, seeds=SEEDS), *(section(benchmark, folder) for benchmark in found)]
    path = folder.parent / f"{folder.name}.md"
    write_whole(path, "\n".join(parts).encode())
    return path


def section(benchmark: Benchmark, folder: Path) -> str:
    """What is known of a benchmark, and what is not."""
    measured = {entry: results.of_entry(folder, benchmark, entry) for entry in benchmark.entries}
    known = {entry: found for entry, found in measured.items() if found}
    missing = [
        f"{benchmark.entries[entry].title} (`{entry}`)" for entry in benchmark.entries if entry not in known
    ]
    sides = sides_of(benchmark)
    lines = [
        f"## {benchmark.title}",
        "",
        wrapped(f"`{benchmark.name}`, {benchmark.patches:,} patches of {sides}. {benchmark.about}"),
        "",
    ]
    if known:
        lines += [*quality_table(benchmark, known), "", *cost_table(benchmark, known), ""]
        lines += sites_table(benchmark, known) if benchmark.kind == "dots" else []
    lines += claims_table(benchmark, known)
    lines += ["", wrapped("Not measured: " + "; ".join([*missing, *benchmark.open]) + "."), ""]
    return "\n".join(lines)


def quality_table(benchmark: Benchmark, known: dict[str, list[Result]]) -> list[str]:
    """A row for each figure, a column for each entry: there are more figures than entries."""
    rows = []
    for figure in figures_of(benchmark):
        cases = len(values_of(next(iter(known.values())), figure)[1])
        cells = [shown(measure_figure(found, figure), figure) for found in known.values()]
        rows.append([f"{figure.name} ({cases} cases)", *cells])
    return table(["", *(benchmark.entries[entry].title for entry in known)], rows)


def cost_table(benchmark: Benchmark, known: dict[str, list[Result]]) -> list[str]:
    """What each entry is and costs."""
    unit = "CPU s per volume" if benchmark.kind == "volumes" else "CPU s per Mpx"
    rows = []
    for entry, found in known.items():
        first = found[0]
        on_cpu = [result for result in found if result.device == "cpu"]  # machines with a GPU have others
        rows.append(
            [
                benchmark.entries[entry].title,
                "" if first.parameters is None else f"{first.parameters:,}",
                "" if first.gmacs_per_megapixel is None else f"{first.gmacs_per_megapixel:.2f}",
                f"{float(np.mean([speed(result, benchmark) for result in on_cpu or found])):.2f}",
                "; ".join(f"{np.mean([minutes(r) for r in own]):.1f}" for own in by_machine(found).values()),
                ", ".join(str(result.seed) for result in found),
                f"`runs/{benchmark.name}.yaml`, {entry}",
                "; ".join(by_machine(found)),
            ]
        )
    return table([unit if name == "CPU s per Mpx" else name for name in COST], rows)


def minutes(result: Result) -> float:
    """Of a training: of the processor, or of the clock where a GPU did the work."""
    return (result.training_cpu_s if result.device == "cpu" else result.training_wall_s) / 60


def by_machine(found: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by the kind of machine that they were trained on, in words."""
    kinds: dict[str, list[Result]] = {}
    for result in found:
        threads = f", {result.threads} thread{'s' * (result.threads > 1)}" if result.device == "cpu" else ""
        kinds.setdefault(result.machine + threads, []).append(result)
    return kinds


def speed(result: Result, benchmark: Benchmark) -> float:
    """CPU seconds of a volume with its reading, or of the bare network for a million pixels."""
    if benchmark.kind == "volumes":
        return float(np.mean([case.cpu_s for case in result.cases]))
    return result.forward_s_per_megapixel


def sites_table(benchmark: Benchmark, known: dict[str, list[Result]]) -> list[str]:
    """Accuracy at the dots of each hospital's patients."""
    first = next(iter(known.values()))[0]
    rows = []
    for site in sorted({site_of(case) for case in first.cases if case.part == HELD_OUT}):
        counts = of_site(first, site)
        cells = [f"{np.mean([share_right(of_site(r, site)) for r in found]):.3f}" for found in known.values()]
        rows.append([site, str(len(counts)), f"{int(counts.sum()):,}", *cells])
    titles = [benchmark.entries[entry].title for entry in known]
    return [*table(["site, share of dots that are right", "patches", "dots", *titles], rows), ""]


def of_site(result: Result, site: str) -> Values:
    """Counts (N, K, K) of the patches of a hospital's patients."""
    return np.array([c.array for c in result.cases if c.part == HELD_OUT and site_of(c) == site])


def share_right(counts: Values) -> float:
    """Share of all dots of some patches (N, K, K) that are right."""
    return float(np.trace(counts.sum(axis=0)) / counts.sum())


def claims_table(benchmark: Benchmark, known: dict[str, list[Result]]) -> list[str]:
    """Every claim with what its interval says."""
    rows = [claim_row(benchmark, claim, known) for claim in benchmark.claims]
    return table(["claim", "figure", "found", "each seed", "bound", "fewer parameters", "verdict"], rows)


def claim_row(benchmark: Benchmark, claim: Claim, known: dict[str, list[Result]]) -> list[str]:
    """One claim."""
    entries = [entry for entry in (claim.of, claim.against) if entry is not None]
    bound = f"> {claim.more_than:g}"
    if not all(entry in known for entry in entries):
        return [claim.says, claim.figure, "", "", bound, "", "not measured"]
    figure = next(f for f in figures_of(benchmark) if f.name == claim.figure)
    ours, fewer = known[claim.of], ""
    if claim.against is None:
        found = measure_figure(ours, figure)
    else:
        theirs = known[claim.against]
        found = difference(ours, theirs, figure)
        if ours[0].parameters and theirs[0].parameters:
            fewer = f"{theirs[0].parameters / ours[0].parameters:.2f} x"
    seeds = min(len(known[entry]) for entry in entries)
    decided = decision(found, more_than=claim.more_than, seeds=seeds)
    sign = "" if claim.against is None else "+"
    each = ", ".join(f"{value:{sign}.3f}" for value in found.by_seed)
    return [claim.says, claim.figure, bracketed(found.interval, sign=sign), each, bound, fewer, decided]


def decision(found: Found, *, more_than: float, seeds: int) -> str:
    """What the interval says, as far as enough seeds say the same."""
    if seeds < SEEDS:
        return f"undecided: {seeds} of {SEEDS} seeds"
    said = verdict(found.interval, more_than=more_than)
    above = [value > more_than for value in found.by_seed]
    if said != "undecided" and any(one != (said == "confirmed") for one in above):
        return f"undecided: {sum(above)} of {len(above)} seeds are above the bound"
    return said


def shown(found: Found, figure: Figure) -> str:
    """A figure with its interval and the range of its seeds."""
    scale, digits = (100, 1) if figure.percent else (1, 3)
    text = bracketed(found.interval, scale=scale, digits=digits)
    if len(found.by_seed) > 1:
        low, high = (f"{scale * value:.{digits}f}" for value in (min(found.by_seed), max(found.by_seed)))
        text += f" ({low} to {high})"
    return text + " %" * figure.percent


def bracketed(interval: Interval, *, scale: int = 1, digits: int = 3, sign: str = "") -> str:
    """A value with its interval in brackets, and a star where some draws have none."""
    value, low, high = (
        f"{number * scale:{sign}.{digits}f}" for number in (interval.value, interval.low, interval.high)
    )
    return f"{value} [{low}, {high}]" + "*" * (interval.undefined > 0)


def wrapped(text: str) -> str:
    """A paragraph in lines."""
    return "\n".join(textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def sides_of(benchmark: Benchmark) -> str:
    """Sides of a patch in words."""
    size = benchmark.run["patches"]["size"]
    unit = "voxels" if benchmark.kind == "volumes" else "pixels"
    sides = size if isinstance(size, list) else [size] * 2
    return f"{' x '.join(map(str, sides))} {unit}"
