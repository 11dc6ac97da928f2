"""Streaming against plain windows, in one process, in turn: CPU seconds over the same pixels.

    python -m benchmarks.streaming [--side 4096] [--rounds 3] [--threads 1] [--device cpu]

  windows 512          the bare network over windows of 512 pixels without any overlap
  windows 1024 + 64    the same over cores of 1024 with 64 pixels round them
  streaming            the executor, for some heights of bands

All on a mosaic of real crops, with the same torch operations, threads, allocator and memory format,
each with its argmax. On a GPU seconds are those of the wall. Whether the masks are equal is said too:
streaming is held against one pass over the whole image, counting float ties.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import wsiseg
from benchmarks.slide import mosaic
from wsiseg.execute.streaming import Streaming
from wsiseg.geometry import Geometry
from wsiseg.memory import keep_memory
from wsiseg.predict import NetworkPredictor
from wsiseg.sources.array import ArraySource
from wsiseg.sources.cached import CachedSource

MODEL = "demo-breast8"
BANDS = (32, 64, 128, 256)
MAX_OF_PLAIN = 1.08
Mask = NDArray[np.uint8]


def predict(predictor: NetworkPredictor, pixels: NDArray[np.uint8]) -> Mask:
    """The mask of some pixels (3, y, x) in one forward pass."""
    with torch.inference_mode():
        on_device = torch.from_numpy(pixels)[None].to(predictor.device)
        best: Mask = (
            predictor.outputs(predictor.inputs(on_device))
            .scores[0]
            .max(dim=0)
            .indices.to(torch.uint8)
            .cpu()
            .numpy()
        )
    return best


def windows(predictor: NetworkPredictor, image: NDArray[np.uint8], *, core: int, halo: int) -> Mask:
    """Plain windows, stitched by their cores; outside is white."""
    side = image.shape[1]
    around = np.pad(image.transpose(1, 2, 0), ((halo, halo), (halo, halo), (0, 0)), constant_values=255)
    mask = np.empty((side, side), np.uint8)
    for y in range(0, side, core):
        for x in range(0, side, core):
            window = np.ascontiguousarray(around[y : y + core + 2 * halo, x : x + core + 2 * halo])
            found = predict(predictor, window.transpose(2, 0, 1))
            mask[y : y + core, x : x + core] = found[halo : halo + core, halo : halo + core]
    return mask


def streaming(predictor: NetworkPredictor, image: NDArray[np.uint8], *, band: int) -> Mask:
    """The executor as the pipeline runs it, without a file."""
    shape = image.shape[1:]
    geometry = Geometry(axes="yx", shape=shape, spacing=(0.5, 0.5), unit="micrometer")
    executor = Streaming(predictor, shape, band=band)
    with CachedSource(ArraySource(image, geometry)) as source:
        rows = executor.run(source, first_row=0, wanted=lambda region: True)
        return np.concatenate([piece.mask for piece in forgetting(rows, source, executor)])


def forgetting(rows: Iterator[Any], source: CachedSource, executor: Streaming) -> Iterator[Any]:
    for piece in rows:
        source.forget(before=executor.first_row_read(piece.rows.stop))
        yield piece


def seconds(work: Callable[[], Mask], device: torch.device) -> float:
    """CPU seconds of some work; on a GPU those of the wall until it is done."""
    if device.type == "cuda":
        start = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    keep_memory()
    torch.set_num_threads(arguments.threads)
    predictor = wsiseg.load_predictor(MODEL, arguments.device)
    image = mosaic(height=arguments.side, width=arguments.side).transpose(2, 0, 1)
    plain, wider = "windows 512", "windows 1024 + 64"
    works: dict[str, Callable[[], Mask]] = {
        plain: lambda: windows(predictor, image, core=512, halo=0),
        wider: lambda: windows(predictor, image, core=1024, halo=64),
    }
    for band in BANDS:
        works[f"streaming, bands of {band}"] = lambda band=band: streaming(predictor, image, band=band)  # type: ignore[misc]
    print(f"{arguments.side} x {arguments.side} pixels, {arguments.threads} threads, {predictor.device}")
    whole = predict(predictor, image)
    for name, work in works.items():
        differing = int((work() != whole).sum())
        share = 100 * differing / whole.size
        print(f"{name:28} {differing:8} pixels differ from one pass over the whole ({share:.4f} %)")
    measured: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(arguments.rounds):
        for name, work in works.items():
            measured[name].append(seconds(work, predictor.device))
    print(f"\n{'seconds':28} {'median':>8}   {'range':>14}   of windows 512")
    medians = {name: statistics.median(values) for name, values in measured.items()}
    for name, values in measured.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{name:28} {medians[name]:8.2f}   {spread:>14}   {medians[name] / medians[plain]:.3f} x")
    best, name = min((m, n) for n, m in medians.items() if n.startswith("streaming"))
    to_plain, to_wider = best / medians[plain], best / medians[wider]
    checks = {
        f"{name}: {to_plain:.3f} x {plain}, at most {MAX_OF_PLAIN}": to_plain <= MAX_OF_PLAIN,
        f"{name}: {to_wider:.3f} x {wider}, less than 1": to_wider < 1,
    }
    for sentence, held in checks.items():
        print(f"{'held' if held else 'MISSED':7} {sentence}")
    raise SystemExit(0 if all(checks.values()) else 1)


if __name__ == "__main__":
    main()
