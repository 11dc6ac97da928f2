"""All networks in one table: what they weigh, what a megapixel costs, how far they see.

    python -m benchmarks.models [--page docs/models.md]

Parameters, multiply-accumulates and features are counted without computing anything. CPU seconds are
user + system of a forward pass over one window, channels last, in turn with all others in one run, and
given per million pixels (voxels) as a multiple of ESPNet A with q = 3. The peak is that of a process of
its own, of which what the program and the network take before the pass is shown apart.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import wsiseg
from benchmarks.speed import high_water_kb
from wsiseg.memory import keep_memory
from wsiseg.models.facts import Facts, network_facts
from wsiseg.models.importing import window_spec

CLASSES = 8
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Entry:
    """One row: a network and the window on which it is timed."""

    title: str
    name: str
    arguments: dict[str, Any]
    window: tuple[int, ...]
    channels: int = 3

    def build(self) -> torch.nn.Module:
        torch.manual_seed(0)
        network = wsiseg.build_network(self.name, **self.arguments).eval()
        return network.to(memory_format=FORMATS[len(self.window)])  # type: ignore[call-overload, no-any-return]


def entries() -> list[Entry]:
    """The family, and what others use for the same job."""
    flat, box = (512, 512), (96, 96, 96)
    eight = {"classes": CLASSES}
    others = {"in_channels": 3, "out_channels": CLASSES}
    unet = {"channels": [32, 64, 128, 256], "strides": [2, 2, 2], "num_res_units": 2, "norm": "batch"}
    return [
        Entry("ESPNet A, q = 3", "espnet", {**eight, "q": 3}, flat),
        Entry("ESPNet A, q = 5", "espnet", {**eight, "q": 5}, flat),
        Entry("ESPNet A, q = 8", "espnet", {**eight, "q": 8}, flat),
        Entry("ESPNet B, q = 8", "espnet", {**eight, "q": 8, "variant": "B"}, flat),
        Entry("ESPNet-C, q = 3", "espnet", {**eight, "q": 3, "variant": "C"}, flat),
        *(
            Entry(f"ESPNetv2, s = {scale}", "espnetv2", {**eight, "scale": scale}, flat)
            for scale in (0.5, 1.0, 1.25, 1.5, 2.0)
        ),
        Entry("Y-Net C1", "ynet", {**eight}, (384, 384)),
        Entry("Y-Net C1, 5 diagnoses", "ynet", {**eight, "diagnoses": 5}, (384, 384)),
        Entry("Y-Net D1", "ynet", {**eight, "encoder": "D1"}, (384, 384)),
        Entry("MRSeg (WACV'18)", "mrseg", eight, (384, 384)),
        Entry("SegNet", "segnet", eight, flat),
        Entry("MONAI UNet, 32 to 256", "monai:UNet", {"spatial_dims": 2, **others, **unet}, flat),
        Entry("3D-ESPNet", "espnet3d", {}, box, channels=4),
        Entry("3D-ESPNet, no refinement", "espnet3d", {"refinement": False}, box, channels=4),
    ]


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def timed(entry: Entry, network: torch.nn.Module) -> float:
    """CPU seconds per million pixels of one pass."""
    image = torch.randn(1, entry.channels, *entry.window)
    image = image.contiguous(memory_format=FORMATS[len(entry.window)])
    pixels = image.numel() / entry.channels
    with torch.inference_mode():
        before = cpu_seconds()
        network(image)
        return (cpu_seconds() - before) / (pixels / 1e6)


def peak_of(number: int) -> tuple[float, float]:
    """Peak memory in MB before and in a pass, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.models", "--peak", str(number)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, within = json.loads(said.splitlines()[-1])
    return before, within


def say_peak(entry: Entry) -> None:
    network = entry.build()
    before = high_water_kb(os.getpid()) / 1024
    timed(entry, network)
    print(json.dumps([before, high_water_kb(os.getpid()) / 1024]))


def context(entry: Entry) -> str:
    """How far the network sees, in words for the table."""
    spec = window_spec(entry.build(), ndim=len(entry.window))
    if spec.receptive_field is not None:
        return f"{sum(spec.receptive_field) + 1} (streams, stride {spec.output_stride})"
    return f"window of {spec.size}" if spec.size else "whole window"


def row(entry: Entry, facts: Facts, *, ratio: float, peak: tuple[float, float]) -> str:
    window = " x ".join(map(str, entry.window))
    cells = (
        entry.title, f"{facts.parameters:,}", f"{facts.gmacs_per_megapixel:.2f}", f"{ratio:.2f}",
        f"{facts.activation_mb_per_megapixel:.0f}", f"{peak[1] - peak[0]:.0f}", context(entry), window,
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


HEAD = """\
| network | parameters | GMACs per Mpx | CPU seconds per Mpx, of the first | MB of features alive per Mpx | \
peak of a pass, MB | sees, pixels | window |
|---|---|---|---|---|---|---|---|"""
PAGE = """\
# The networks

Made by `python -m benchmarks.models --page docs/models.md`: random weights, {classes} classes (3D-ESPNet: 4),
one thread of one CPU ({capability}), torch {version}, median of {rounds} passes in turn. Counts are exact;
times are ratios within this one run; Mpx is a million pixels, for volumes a million voxels. The peak counts
what a pass over one window adds to the process.

{table}

"Sees" is the width of the exact receptive field; such networks stream over a whole slide in one pass. The
others need to see their whole window: they run in windows of one size with a cross-fade, and no halo makes
that exact.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    every = entries()
    if arguments.peak is not None:
        say_peak(every[arguments.peak])
        return
    networks = [entry.build() for entry in every]
    seconds: list[list[float]] = [[] for _ in every]
    for number in range(arguments.rounds + 1):
        for entry, network, found in zip(every, networks, seconds, strict=True):
            spent = timed(entry, network)
            if number:  # the first pass pays for fresh memory
                found.append(spent)
        print(f"round {number} of {arguments.rounds}", file=sys.stderr, flush=True)
    medians = [statistics.median(found) for found in seconds]
    lines = [HEAD]
    for number, entry in enumerate(every):
        facts = network_facts(entry.build(), entry.window, channels=entry.channels)
        lines.append(row(entry, facts, ratio=medians[number] / medians[0], peak=peak_of(number)))
        print(lines[-1], flush=True)
    if arguments.page:
        page = PAGE.format(
            classes=CLASSES, capability=torch.backends.cpu.get_cpu_capability(), version=torch.__version__,
            rounds=arguments.rounds, table="\n".join(lines),
        )  # fmt: skip
        arguments.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
