"""CPU seconds and memory of the main job, beside what nothing can beat and beside MONAI.

    python -m benchmarks.speed FOLDER [--quick]

On a slide of 10,000 x 12,000 pixels made of real crops, in one run, in turn:

  limit    the network's bare forward passes over every pixel once (windows of 512 without overlap), one
           decode of every tile, one write of the mask
  segment  `wsiseg segment --image none`, the whole process from its start to its end
  windowed the same with `--executor windowed`
  image    what `--image full` adds to it
  monai    MONAI's sliding_window_inference over the array in memory, 512 windows, 25 % overlap, one
           window at a time; as it comes, and with this program's allocator and memory format

All with the same torch and threads, limit and segment with the same allocator and memory format too.
CPU seconds are user + system; the yardsticks' leave out start-up, decoding for MONAI, and argmax.
"""

from __future__ import annotations

import argparse
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
from benchmarks.yardsticks import MODEL

WIDTH, HEIGHT = 10_000, 12_000
MONAI = {"monai": "(c) MONAI, inference only", "monai-tuned": "    with our allocator, layout"}
MAX_OF_LIMIT, MAX_OF_MONAI, MAX_PEAK_MB, MAX_GROWTH = 1.15, 0.5, 1400.0, 1.05


@dataclass(frozen=True)
class Measured:
    """One process: CPU seconds, peak memory, and what it printed as JSON."""

    cpu_s: float
    peak_mb: float
    said: dict[str, float]


def measure(*command: str) -> Measured:
    """Run a command to its end; its last line may be a JSON object with figures of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
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
    return Measured(cpu, peak_kb / 1024, said)


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


def show(name: str, values: list[float], *, limit: float, peak: float | None) -> None:
    median = statistics.median(values)
    spread = f"{min(values):.1f} to {max(values):.1f}"
    memory = f"{peak:7.0f} MB" if peak else ""
    print(f"{name:28} {median:8.1f}   {spread:>16}   {median / limit:6.2f} x   {memory}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="a slide of a tenth of the height, without the tall one"
    )
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    height = HEIGHT // 10 if arguments.quick else HEIGHT
    print(f"making a slide of {WIDTH} x {height} pixels", flush=True)
    slide = make_slide(folder / f"mosaic-{height}.tif", height=height, width=WIDTH)
    config = folder / "config.toml"
    config.write_text(f"threads = {arguments.threads}\n")
    out = folder / "none"
    runs: dict[str, list[Measured]] = {name: [] for name in ("limit", "segment", "windowed", "image", *MONAI)}
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
        runs["segment"].append(segment(slide, out, config, "none"))
        runs["limit"].append(part("limit", slide, out, arguments.threads))
        runs["windowed"].append(segment(slide, folder / "windowed", config, "none", "--executor", "windowed"))
        runs["image"].append(segment(slide, folder / "full", config, "full"))
        for name in MONAI:
            runs[name].append(part(name, slide, out, arguments.threads))
    said = [m.said["cpu_s"] for m in runs["limit"]]
    limit, monai = statistics.median(said), statistics.median(m.said["cpu_s"] for m in runs["monai"])
    whole = [m.cpu_s for m in runs["segment"]]
    peak = max(m.peak_mb for m in runs["segment"])
    print(f"\n{'CPU seconds':28} {'median':>8}   {'range':>16}   of (a)     peak memory")
    show("(a) limit", said, limit=limit, peak=None)
    for name in ("forward_s", "decode_s", "write_s"):
        show(f"      {name[:-2]}", [m.said[name] for m in runs["limit"]], limit=limit, peak=None)
    show("(b) wsiseg segment", whole, limit=limit, peak=peak)
    show(
        "    with windows", [m.cpu_s for m in runs["windowed"]], limit=limit,
        peak=max(m.peak_mb for m in runs["windowed"]),
    )  # fmt: skip
    added = [a.cpu_s - b.cpu_s for a, b in zip(runs["image"], runs["segment"], strict=True)]
    show("    what --image full adds", added, limit=limit, peak=max(m.peak_mb for m in runs["image"]))
    for name, title in MONAI.items():
        peak_mb = max(m.peak_mb for m in runs[name])
        show(title, [m.said["cpu_s"] for m in runs[name]], limit=limit, peak=peak_mb)
    ours = statistics.median(whole)
    checks = {
        f"(b) is {ours / limit:.2f} x (a), at most {MAX_OF_LIMIT}": ours <= MAX_OF_LIMIT * limit,
        f"(b) is {ours / monai:.2f} x (c), less than {MAX_OF_MONAI}": ours < MAX_OF_MONAI * monai,
        f"peak {peak:.0f} MB, at most {MAX_PEAK_MB:.0f}": peak <= MAX_PEAK_MB,
    }
    if not arguments.quick:
        print("a slide four times as high", flush=True)
        tall = make_slide(
            folder / f"mosaic-{4 * height}.tif", height=4 * height, width=WIDTH, period_px=height
        )
        tall_peak = segment(tall, folder / "tall", config, "none").peak_mb
        checks[f"peak {tall_peak:.0f} MB, {tall_peak / peak:.2f} x, at most {MAX_GROWTH}"] = (
            tall_peak <= MAX_GROWTH * peak
        )
    for sentence, held in checks.items():
        print(f"{'held' if held else 'MISSED':7} {sentence}")
    raise SystemExit(0 if all(checks.values()) else 1)


if __name__ == "__main__":
    main()
