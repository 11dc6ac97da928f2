"""What a second worker is worth, and what ten thousand entries of a manifest cost.

    python -m benchmarks.scaling FOLDER [--inputs FOLDER_OR_MANIFEST] [--rounds 1] [--json]

On the inputs given, or on 17 slides made of real crops and the three shipped volumes, each with one thread:

  one      `wsiseg segment`, one case after another
  jobs     the same with `--jobs 2`
  shared   two such commands on one folder of results, which share its cases by claims

Wall seconds from start to end of the processes, in turn. A case is done twice if two holders were seen to
claim it. Masks are compared byte by byte with those of `one`. CPU seconds beside the wall's tell what of a
ratio was other work on the machine.

Then a manifest of 10,000 entries, all but the first three of files that are not there: seconds until the
first case is claimed, peak memory of the process that gives the cases out at its first page and after a
minute, and size of the page; if Chromium is installed, also how long it takes to lay the page out.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.slide import make_slide
from benchmarks.speed import high_water_kb
from benchmarks.watched import claims_in
from wsiseg.demo import SAMPLES

SLIDES = 17
ENTRIES = 10_000
WATCHED_S = 60.0
MAX_RATIO, MAX_START_S, MAX_GROWTH = 0.6, 10.0, 1.25
CHROMIUM = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--hide-scrollbars",
)


def make_inputs(folder: Path) -> Path:
    """Slides of several sizes and the shipped volumes."""
    for number in range(SLIDES):
        height, width = 2000 + 160 * number, 3000 + 320 * (number % 4)
        make_slide(folder / f"slide {number:02}.tif", height=height, width=width)
    for volume in (SAMPLES / "msd-hippocampus" / "images").glob("*.nii.gz"):
        shutil.copy(volume, folder)
    return folder


def commands(inputs: Path, out: Path, config: Path, how: str) -> list[list[str]]:
    command = [
        sys.executable, "-m", "wsiseg", "segment", str(inputs), "--out", str(out),
        "--config", str(config), "--json",
    ]  # fmt: skip
    return {"one": [command], "jobs": [[*command, "--jobs", "2"]], "shared": [command, command]}[how]


def timed(inputs: Path, out: Path, config: Path, how: str) -> dict[str, Any]:
    """Wall seconds of a way to segment the inputs, and the cases that two processes worked on."""
    shutil.rmtree(out, ignore_errors=True)
    seen: dict[str, set[str]] = defaultdict(set)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    running = [subprocess.Popen(c, stdout=subprocess.PIPE) for c in commands(inputs, out, config, how)]
    while any(process.poll() is None for process in running):
        for case, claim in claims_in(out):
            seen[case].add(claim["token"])
        time.sleep(0.02)
    seconds = time.monotonic() - start
    last = json.loads((running[-1].stdout or sys.stdin.buffer).read())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(seconds, 1),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "finished": last["finished"],
        "seen": len(seen),
        "twice": sorted(case for case, tokens in seen.items() if len(tokens) > 1),
    }


def masks(out: Path) -> dict[str, bytes]:
    """All bytes of all masks, and those of volumes on their own grid."""
    files = [
        p for p in out.rglob("*") if p.is_file() and ("labels" in p.parts or p.name.endswith("mask.nii.gz"))
    ]
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(files)}


def scale(inputs: Path, folder: Path, *, rounds: int) -> dict[str, Any]:
    """Every way in turn, some times over."""
    config = folder / "one-thread.toml"
    config.write_text("threads = 1\nreaders = 1\n")
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    differ: set[str] = set()
    for _ in range(rounds):
        for how in ("one", "jobs", "shared"):
            found[how].append(timed(inputs, folder / how, config, how))
            print(f"{how}: {found[how][-1]}", file=sys.stderr, flush=True)
            alone, other = masks(folder / "one"), masks(folder / how)
            differ |= {n for n in alone.keys() | other.keys() if alone.get(n) != other.get(n)}
    best = {how: min(one["seconds"] for one in runs) for how, runs in found.items()}
    return {
        "runs": found,
        "jobs_to_one": round(best["jobs"] / best["one"], 3),
        "shared_to_one": round(best["shared"] / best["one"], 3),
        "twice": sorted({case for runs in found.values() for one in runs for case in one["twice"]}),
        "finished": {one["finished"] for runs in found.values() for one in runs}.pop(),
        "files_that_differ": sorted(differ),
    }


def make_manifest(folder: Path) -> Path:
    """The manifest of ENTRIES cases, three of which are there."""
    crops = sorted((SAMPLES / "ynet-breast8" / "images").glob("*.png"))[:3]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["case", "path", "patient", "mpp", "licence"])
        for number in range(ENTRIES):
            name = crops[number].name if number < len(crops) else f"missing-{number}.png"
            table.writerow([f"case-{number:05}", name, f"patient-{number // 3}", "0.5", "MIT"])
    for crop in crops:
        shutil.copy(crop, folder)
    return path


def large_manifest(folder: Path) -> dict[str, Any]:
    """What so many entries cost at the start and while they are worked on."""
    out = folder / "many"
    shutil.rmtree(out, ignore_errors=True)
    command = commands(make_manifest(folder / "manifest"), out, folder / "one-thread.toml", "one")[0]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first_s, first_mb, page = None, 0.0, out / "index.html"
    while process.poll() is None and time.monotonic() - start < WATCHED_S:
        if first_s is None and any(claims_in(out)):
            first_s = time.monotonic() - start
        if not first_mb and page.is_file():
            first_mb = high_water_kb(process.pid) / 1024
        time.sleep(0.02)
    last_mb = high_water_kb(process.pid) / 1024
    process.terminate()
    process.wait()
    return {
        "first_case_s": round(first_s, 1) if first_s else None,
        "peak_mb_at_first_page": round(first_mb),
        f"peak_mb_after_{WATCHED_S:.0f}_s": round(last_mb),
        "cases_done": len(list(out.glob("*.failure.json"))) + len(list(out.glob("*.report.json"))),
        "page_mb": round(page.stat().st_size / 1e6, 2) if page.is_file() else None,
        "page_laid_out_s": laid_out(page, picture=folder / "page.png"),
    }


def laid_out(page: Path, *, picture: Path) -> float | None:
    """Seconds that Chromium takes from its start to a picture of the page, less those of an empty page."""
    browser = shutil.which("chromium")
    if browser is None or not page.is_file():
        return None
    spent = []
    for address in ("about:blank", page.resolve().as_uri()):
        with tempfile.TemporaryDirectory() as profile:
            start = time.monotonic()
            subprocess.run(
                [browser, *CHROMIUM, f"--user-data-dir={profile}", "--window-size=1280,1600",
                 f"--screenshot={picture}", address],
                check=True, capture_output=True, timeout=300,
            )  # fmt: skip
            spent.append(time.monotonic() - start)
    return round(spent[1] - spent[0], 2)


def verdicts(scaled: dict[str, Any], many: dict[str, Any]) -> dict[str, bool]:
    """What was to be shown, each as a sentence with its figure."""
    before, after = many["peak_mb_at_first_page"], many[f"peak_mb_after_{WATCHED_S:.0f}_s"]
    jobs, shared = scaled["jobs_to_one"], scaled["shared_to_one"]
    return {
        f"--jobs 2 takes {jobs} x of one worker, at most {MAX_RATIO}": jobs <= MAX_RATIO,
        f"two commands take {shared} x of one, at most {MAX_RATIO}": shared <= MAX_RATIO,
        f"{len(scaled['twice'])} cases were done twice": not scaled["twice"],
        f"{len(scaled['files_that_differ'])} files of masks differ": not scaled["files_that_differ"],
        f"the first of {ENTRIES} cases is begun after {many['first_case_s']} s, at most {MAX_START_S}":
            many["first_case_s"] is not None and many["first_case_s"] <= MAX_START_S,
        f"memory is {before} MB with the first page and {after} MB after {WATCHED_S:.0f} s":
            after <= MAX_GROWTH * before,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--inputs", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    inputs = given.inputs or make_inputs(given.folder / "inputs")
    scaled = scale(inputs, given.folder, rounds=given.rounds)
    many = large_manifest(given.folder)
    checks = verdicts(scaled, many)
    if given.json:
        print(json.dumps({"scaling": scaled, "manifest": many, "checks": checks}, indent=1))
    else:
        for name, value in many.items():
            print(f"{name:24} {value}")
        for sentence, held in checks.items():
            print(f"{'held' if held else 'MISSED':7} {sentence}")
    raise SystemExit(0 if all(checks.values()) else 1)


if __name__ == "__main__":
    main()
