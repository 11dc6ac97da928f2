"""CPU seconds and memory of the main job, beside what nothing can beat and beside MONAI.

    python -m benchmarks.speed FOLDER [--quick] [--rounds 2]

On a slide of 10,000 x 12,000 pixels made of real crops, in one run, in turn:

  floor     the network's bare forward passes over every window of 512 that holds tissue, once, by the fastest
            back end that is installed; one decode of every tile; one write of the mask
  segment   `wsiseg segment --image none`, the whole process, less its start-up
  start-up  the same on a slide of 512 x 512 pixels
  windowed  segment with `--executor windowed`
  image     what `--image full` adds to it
  monai     MONAI's sliding_window_inference over the array in memory, 512 windows, 25 % overlap, one window
            at a time; as it comes, and with this program's allocator and memory format

at one thread, and segment once more with two. CPU seconds are user + system; MONAI's leave out start-up,
decoding and argmax.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.slide import make_slide
from benchmarks.yardsticks import BACKENDS, MODEL, WINDOW

WIDTH, HEIGHT = 10_000, 12_000
MONAI = {"monai": "(c) MONAI, inference only", "monai-tuned": "    with our allocator, layout"}
MAX_OF_FLOOR, MAX_OF_MONAI, MAX_PEAK_MB = 1.2, 1 / 3, 1400.0
MAX_WALL, MAX_START_S = 0.65, 3.0


@dataclass(frozen=True)
class Measured:
    """One process: CPU and wall seconds, peak memory, and what it printed as JSON."""

    cpu_s: float
    wall_s: float
    peak_mb: float
    said: dict[str, float]


def measure(*command: str) -> Measured:
    """Run a command to its end; its last line may be a JSON object with figures of its own."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(["/usr/bin/env", *command], stdout=subprocess.PIPE, text=True)
    peak_kb = 0
    while process.poll() is None:
        peak_kb = max(peak_kb, high_water_kb(process.pid))
        time.sleep(0.02)
    assert process.stdout is not None
    lines = process.stdout.read().strip().splitlines()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return Measured(cpu, time.perf_counter() - begun, peak_kb / 1024, said)


def high_water_kb(pid: int) -> int:
    """Peak resident memory so far of a process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)


def segment(slide: Path, out: Path, config: Path, image: str, *options: str) -> Measured:
    """The command that a user types."""
    shutil.rmtree(out, ignore_errors=True)
    return measure(
        sys.executable, "-m", "wsiseg", "segment", str(slide), "--out", str(out),
        "--model", MODEL, "--image", image, "--config", str(config), *options,
    )  # fmt: skip


def part(name: str, slide: Path, out: Path, threads: int) -> Measured:
    """One of the yardsticks, in a process of its own; it says its CPU seconds without start-up."""
    store = out / f"{slide.stem}.ome.zarr"
    return measure(sys.executable, "-m", "benchmarks.yardsticks", name, str(slide), str(store), str(threads))


def show(name: str, values: list[float], *, floor: float, peak: float | None = None) -> None:
    spread = f"{min(values):.1f} to {max(values):.1f}"
    memory = f"{peak:7.0f} MB" if peak else ""
    median = statistics.median(values)
    print(f"{name:32} {median:8.1f}   {spread:>16}   {median / floor:6.2f} x   {memory}")


def available() -> list[str]:
    return [b for b in BACKENDS if importlib.util.find_spec(b) is not None]


def gather(folder: Path, *, height: int, rounds: int) -> dict[str, list[Measured]]:
    """All of it in turn, by name."""
    slide = make_slide(folder / f"mosaic-{height}.tif", height=height, width=WIDTH)
    tiny = make_slide(folder / "mosaic-tiny.tif", height=WINDOW, width=WINDOW)
    config, two = folder / "config.toml", folder / "two.toml"
    config.write_text("threads = 1\n")
    two.write_text("threads = 2\n")
    out = folder / "none"
    runs: dict[str, list[Measured]] = {}

    def add(name: str, measured: Measured) -> None:
        runs.setdefault(name, []).append(measured)

    segment(tiny, folder / "tiny", config, "none")  # fills the caches of the disk and of compiled parts
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        add("start", segment(tiny, folder / "tiny", config, "none"))
        add("segment", segment(slide, out, config, "none"))
        add("limit", part("limit", slide, out, 1))
        for backend in available():
            add(backend, part(backend, slide, out, 1))
        add("windowed", segment(slide, folder / "windowed", config, "none", "--executor", "windowed"))
        add("image", segment(slide, folder / "full", config, "full"))
        for name in MONAI:
            add(name, part(name, slide, out, 1))
        add("two", segment(slide, folder / "two", two, "none"))
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a slide of a tenth of the height")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    height = HEIGHT // 10 if arguments.quick else HEIGHT
    print(f"slides of {WIDTH} x {height} pixels, in turn", flush=True)
    runs = gather(folder, height=height, rounds=arguments.rounds)

    def cpu(name: str) -> list[float]:
        return [m.said.get("cpu_s", m.cpu_s) for m in runs[name]]

    def peak(name: str) -> float:
        return max(m.peak_mb for m in runs[name])

    median = statistics.median
    fastest = min(available(), key=lambda b: median(cpu(b)))
    rest = {name: [m.said[f"{name}_s"] for m in runs["limit"]] for name in ("decode", "write")}
    floor = median(cpu(fastest)) + sum(median(values) for values in rest.values())
    start = median(cpu("start"))
    ours = [seconds - start for seconds in cpu("segment")]
    tissue = runs[fastest][0].said["megapixels"] / (WIDTH * height / 1e6)
    print(f"\n{'CPU seconds':32} {'median':>8}   {'range':>16}   of (a)     peak memory")
    show(f"(a) floor, forward by {fastest}", [floor], floor=floor)
    for backend in available():
        show(f"      forward, {backend}", cpu(backend), floor=floor)
    for name, values in rest.items():
        show(f"      {name}", values, floor=floor)
    show("(b) wsiseg segment", ours, floor=floor, peak=peak("segment"))
    show("    its start-up, left out", cpu("start"), floor=floor, peak=peak("start"))
    show("    with windows", [s - start for s in cpu("windowed")], floor=floor, peak=peak("windowed"))
    added = [a - b for a, b in zip(cpu("image"), cpu("segment"), strict=True)]
    show("    what --image full adds", added, floor=floor, peak=peak("image"))
    for name, title in MONAI.items():
        show(title, cpu(name), floor=floor, peak=peak(name))
    # Start-up is left out of both, and is the same with two threads.
    start_wall = median(m.wall_s for m in runs["start"])
    wall, two = (median(values) for values in ([m.wall_s - start_wall for m in runs["two"]], cpu("two")))
    print(f"two threads: {wall:.1f} s of the wall, {two - start:.1f} CPU s")
    print(f"windows of {WINDOW} with tissue are {100 * tissue:.0f} % of the slide")
    mine, theirs = median(ours), median(cpu("monai"))
    checks = {
        f"(b) is {mine / floor:.2f} x (a), at most {MAX_OF_FLOOR}": mine <= MAX_OF_FLOOR * floor,
        f"(b) is {mine / theirs:.2f} x (c), at most {MAX_OF_MONAI:.2f}": mine <= MAX_OF_MONAI * theirs,
        f"peak {peak('segment'):.0f} MB, at most {MAX_PEAK_MB:.0f}": peak("segment") <= MAX_PEAK_MB,
        f"two threads: wall is {wall / (two - start):.2f} x CPU, at most {MAX_WALL}": (
            wall <= MAX_WALL * (two - start)
        ),
        f"start-up takes {start_wall:.1f} s, at most {MAX_START_S}": start_wall <= MAX_START_S,
    }
    for sentence, held in checks.items():
        print(f"{'held' if held else 'MISSED':7} {sentence}")
    raise SystemExit(0 if all(checks.values()) else 1)


if __name__ == "__main__":
    main()
