"""Megapixels a second on a GPU: what the network alone does, what decoding alone does, and the whole job.

    python -m benchmarks.gpu FOLDER [--slides 20] [--device cuda] [--model espnet-card.json] [--height 12000]
                                    [--precision float16]

On a slide of 10,000 x 12,000 pixels made of the shipped crops, in one run, in turn:

  forward   bare passes of the network over as many pixels, from memory of the device, in windows of 2048
  decode    every tile of the slide once, by a thread a core
  pipeline  `wsiseg.segment` without a stored image, slide after slide; the first is left out, since it starts
            everything

and what the pipeline reaches of the slower of the two others. Needs torch, numpy, zarr, numcodecs, tifffile
and imagecodecs beside the project.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import wsiseg
from benchmarks.slide import make_slide
from wsiseg.memory import keep_memory
from wsiseg.predict import load_predictor

WIDTH, HEIGHT = 10_000, 12_000
WINDOW, PASSES = 2048, 20
MODEL = "demo-breast8"


def forward(model: str, device: torch.device, *, precision: Any) -> float:
    """Megapixels a second of the bare network."""
    predictor = load_predictor(model, str(device), precision=precision)
    network = predictor.network
    pixels = torch.randint(0, 256, (1, 3, WINDOW, WINDOW), dtype=torch.uint8, device=device)
    with torch.inference_mode():
        inputs = predictor.inputs(pixels)

    def passes(count: int) -> float:
        begun = time.perf_counter()
        with torch.inference_mode():
            for _ in range(count):
                network(inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    passes(3)  # algorithms are chosen, memory is taken
    return PASSES * WINDOW**2 / 1e6 / passes(PASSES)


def decode(slide: Path) -> float:
    """Megapixels a second of decoding, by a thread a core with a file of its own each."""
    threads = os.cpu_count() or 1
    sources = [wsiseg.open_source(slide) for _ in range(threads)]
    height, width = sources[0].geometry.shape
    down, across = sources[0].block

    def share(number: int) -> None:
        for y in range(number * down, height, threads * down):
            for x in range(0, width, across):
                rows, columns = slice(y, min(y + down, height)), slice(x, min(x + across, width))
                sources[number].read((rows, columns))

    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, range(threads)))
    return height * width / 1e6 / (time.perf_counter() - begun)


def pipeline(
    slide: Path, folder: Path, *, model: str, device: str, precision: str, count: int
) -> list[float]:
    """Seconds of each slide, and of what each stage took of the last."""
    seconds = []
    for number in range(count):
        shutil.rmtree(folder, ignore_errors=True)
        begun = time.perf_counter()
        report = wsiseg.segment(slide, folder, model, device=device, precision=precision, image="none")
        seconds.append(time.perf_counter() - begun)
        print(f"slide {number + 1} of {count}: {seconds[-1]:.2f} s", flush=True)
    print("stages of the last, s:", json.dumps(report.seconds))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slides", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--height", type=int, default=HEIGHT)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    given = parser.parse_args()
    keep_memory()
    device = torch.device(given.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(
        f"{card}, {os.cpu_count()} cores, torch {torch.__version__}, model {given.model}, {given.precision}",
        flush=True,
    )
    slide = make_slide(given.folder / f"mosaic-{given.height}.tif", height=given.height, width=WIDTH)
    rates = {"forward": forward(given.model, device, precision=given.precision), "decode": decode(slide)}
    seconds = pipeline(
        slide, given.folder / "gpu", model=given.model, device=given.device, precision=given.precision,
        count=given.slides,
    )  # fmt: skip
    steady = seconds[1:] or seconds
    rates["pipeline"] = WIDTH * given.height / 1e6 / statistics.median(steady)
    for name, rate in rates.items():
        print(f"{name:10} {rate:9.1f} Mpx/s")
    limit = min(rates["forward"], rates["decode"])
    print(f"pipeline is {rates['pipeline'] / limit:.2f} of the slower of forward and decode (aim: 0.8)")


if __name__ == "__main__":
    main()
