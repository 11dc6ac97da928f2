"""40 inputs, 20 of them broken, in one command: every result, every reason, and nothing else touched.

    python -m benchmarks.folder FOLDER [--shared ../shared/data] [--jobs 1 2] [--json]

Makes the inputs (`benchmarks.inputs`) and runs `wsiseg segment` on them as a process of its own, once for
each number of jobs, then again: nothing may be computed twice. HOME, the working folder and the folder for
temporary files are empty ones that are looked at afterwards (only matplotlib's list of fonts may be there).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.inputs import Inputs, make_inputs
from benchmarks.watched import Ran, differences, listing, segment_command, watched

MAX_PEAK_MB = 3000.0
EXPECTED_STATUS = 1
FONTS = "/.cache/matplotlib/"
"""Where matplotlib keeps its list of the machine's fonts, once and for all programs."""
ROOT = Path(__file__).resolve().parents[1]


def run(inputs: Inputs, folder: Path, *, jobs: int) -> tuple[Ran, dict[str, Any], list[str]]:
    """The command once: how it ended, its summary, and what it changed outside of the results."""
    out, config = folder / f"out-{jobs}", folder / "config.toml"
    places = {name: folder / "around" / name for name in ("home", "work", "temporary")}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ, "HOME": str(places["home"]), "TMPDIR": str(places["temporary"]),
        "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    watch = (inputs.folder, folder / "around")
    before = listing(*watch)
    command = segment_command(
        *inputs.arguments(), "--out", str(out), "--jobs", str(jobs), "--config", str(config), "--json"
    )
    ran = watched(command, env=environment, cwd=places["work"])
    touched = [name for name in differences(before, listing(*watch)) if FONTS not in name]
    return ran, json.loads(ran.out), touched


def judged(inputs: Inputs, folder: Path, *, jobs: int) -> dict[str, Any]:
    """Two runs with a number of jobs, and what must hold of them."""
    out = folder / f"out-{jobs}"
    ran, summary, touched = run(inputs, folder, jobs=jobs)
    rows = {row["case"]: row for row in summary["cases"]}
    finished = sorted(name for name, row in rows.items() if row["status"] == "finished")
    failed = sorted(name for name, row in rows.items() if row["status"] == "failed")
    left = listing(out)
    again, second, touched_again = run(inputs, folder, jobs=jobs)
    written = [
        name for name in differences(left, listing(out)) if Path(name).name not in REWRITTEN
        and not name.endswith(".failure.json")
    ]  # fmt: skip
    scored = [
        len(found["pooled"]) * len(found["per_case"]) * len(found["per_patient"])
        for found in summary["agreement"]
    ]
    checks = {
        "exit status is 1": ran.status == again.status == EXPECTED_STATUS,
        f"{len(finished)} of {len(inputs.good)} good inputs have results": finished == sorted(inputs.good),
        f"{len(failed)} of {len(inputs.bad)} bad inputs have reasons": failed == sorted(inputs.bad)
        and all(rows[name]["error"] for name in failed),
        f"peak memory {ran.peak_mb:.0f} MB, below {MAX_PEAK_MB:.0f}": ran.peak_mb < MAX_PEAK_MB,
        f"outside of the results {len(touched + touched_again)} files were touched": not touched
        and not touched_again,
        "no traceback was printed": "Traceback" not in ran.err + again.err,
        "IoU pooled, by case and by patient, for both models": len(scored) == 2 and all(scored),
        f"the second run changed {len(written)} files of results": not written,
        "the second summary is the same": lasting(second) == lasting(summary)
        and json.loads((out / "summary.json").read_bytes()) == second,
    }
    return {
        "jobs": jobs, "seconds": round(ran.seconds, 1), "again_seconds": round(again.seconds, 1),
        "peak_mb": round(ran.peak_mb), "checks": checks, "agreement": summary["agreement"],
        "reasons": {name: rows[name]["error"] for name in failed},
        "unexpected": sorted(set(finished) ^ set(inputs.good)), "touched": touched, "written": written,
        "finished_seconds": {name: rows[name]["seconds"] for name in finished}, "said": ran.err[-2000:],
    }  # fmt: skip


def lasting(summary: dict[str, Any]) -> list[Any]:
    """What must not change from run to run: all but how much room a disk has that is said to be too small."""
    rows = [row | {"error": ""} if row["kind"] == "NoRoom" else row for row in summary["cases"]]
    return [rows, {name: value for name, value in summary.items() if name != "cases"}]


REWRITTEN = ("summary.json", "summary.csv", "index.html")


def show(found: dict[str, Any]) -> None:
    """What a person reads."""
    print(f"\n{found['jobs']} jobs: {found['seconds']} s, again {found['again_seconds']} s")
    for name, reason in found["reasons"].items():
        print(f"  {os.fsencode(name).decode('utf-8', 'backslashreplace'):14} {reason}".encode(
            "utf-8", "backslashreplace").decode())  # fmt: skip
    for part in found["agreement"]:
        for name, figure in part["pooled"].items():
            value = f"{figure['value']} [{figure['low']}, {figure['high']}]"
            print(f"  IoU of all pixels, {part['model']}, {name}: {value}")
    for sentence, held in found["checks"].items():
        print(f"{'held' if held else 'MISSED':7} {sentence}")
    for name in ("unexpected", "touched", "written"):
        if found[name]:
            print(f"        {name}: {', '.join(found[name][:10])}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    inputs = make_inputs(folder / "inputs", shared=arguments.shared.resolve())
    (folder / "config.toml").write_text("threads = 1\n")
    results = []
    for jobs in arguments.jobs:
        results.append(judged(inputs, folder, jobs=jobs))
        if not arguments.json:
            show(results[-1])
    if arguments.json:
        print(json.dumps(results, indent=1))
    raise SystemExit(0 if all(all(found["checks"].values()) for found in results) else 1)


if __name__ == "__main__":
    main()
