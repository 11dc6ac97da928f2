"""What the main job is held against, each in a process of its own: see benchmarks.speed."""

from __future__ import annotations

import io
import json
import resource
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import zarr
from PIL import Image

import wsiseg
from wsiseg.predict import keep_memory
from wsiseg.store import CaseStore

MODEL = "demo-breast8"
CORE = 1024


def cpu_seconds(work: Callable[[], object]) -> float:
    """User and system seconds of this process that some work takes."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def tissue_cores(store: CaseStore) -> tuple[list[tuple[slice, slice]], int, float]:
    """Cores of the windows that touch tissue, the number of all windows, and the share of tissue."""
    kept = store.read_file("tissue.png")
    assert kept is not None
    grid = np.asarray(Image.open(io.BytesIO(kept))) > 0
    height, width = store.geometry.shape
    cores = [
        (slice(y, min(y + CORE, height)), slice(x, min(x + CORE, width)))
        for y in range(0, height, CORE)
        for x in range(0, width, CORE)
    ]

    def touches(core: tuple[slice, slice]) -> bool:
        part = tuple(
            slice(s.start * n // m, -(-s.stop * n // m))
            for s, n, m in zip(core, grid.shape, (height, width), strict=True)
        )
        return bool(grid[part].any())

    return [core for core in cores if touches(core)], len(cores), float(grid.mean())


def limit(slide: Path, store: CaseStore) -> dict[str, float]:
    """Bare forward without overlap, one decode, one write."""
    cores, count, share = tissue_cores(store)
    network = wsiseg.load_network(MODEL).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = torch.randn(1, 3, CORE, CORE).contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        for core in cores:
            height, width = (-(-(s.stop - s.start) // 8) * 8 for s in core)
            with torch.inference_mode():
                network(inputs[..., :height, :width].contiguous(memory_format=torch.channels_last))

    source = wsiseg.open_source(slide)
    blocks = {
        (y, x)
        for core in cores
        for y in range(core[0].start // source.block[0], -(-core[0].stop // source.block[0]))
        for x in range(core[1].start // source.block[1], -(-core[1].stop // source.block[1]))
    }

    def decode() -> None:
        for y, x in sorted(blocks):
            block = tuple(
                slice(i * b, min((i + 1) * b, n))
                for i, b, n in zip((y, x), source.block, source.geometry.shape, strict=True)
            )
            source.read(block)

    mask = np.asarray(store.mask()[:])
    copy = store.path.parent / "copy.zarr"
    shutil.rmtree(copy, ignore_errors=True)
    target = zarr.create_array(
        copy, shape=mask.shape, dtype="uint8", chunks=(512, 512), shards=store.mask().shards, fill_value=0,
        compressors=store.mask().compressors,
    )  # fmt: skip

    def write() -> None:
        target[:] = mask

    forward_s, decode_s, write_s = cpu_seconds(forward), cpu_seconds(decode), cpu_seconds(write)
    return {
        "cpu_s": forward_s + decode_s + write_s,
        "forward_s": forward_s,
        "decode_s": decode_s,
        "write_s": write_s,
        "windows": len(cores),
        "all_windows": count,
        "tissue": share,
    }


def monai(slide: Path, store: CaseStore, *, tuned: bool = False) -> dict[str, float]:
    """MONAI over the whole array in memory; decoding and the argmax are not counted.

    `tuned` gives it this program's memory format; without, tensors are as torch makes them.
    """
    from monai.inferers.utils import sliding_window_inference

    source = wsiseg.open_source(slide)
    pixels = source.read(source.geometry.whole).values
    image = torch.from_numpy(np.ascontiguousarray(pixels)).to(torch.float32).div_(128).sub_(1)[None]
    del pixels
    network = wsiseg.load_network(MODEL)
    layout = torch.channels_last if tuned else torch.contiguous_format
    network.to(memory_format=layout)  # type: ignore[call-overload]

    def predict(window: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = network(window.contiguous(memory_format=layout))
        return scores

    def infer() -> None:
        with torch.inference_mode():
            sliding_window_inference(image, (512, 512), 1, predict, overlap=0.25)

    return {"cpu_s": cpu_seconds(infer)}


def main() -> None:
    name, slide, store, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    if name != "monai":
        keep_memory()
    works: dict[str, Callable[[Path, CaseStore], dict[str, float]]] = {
        "limit": limit,
        "monai": monai,
        "monai-tuned": partial(monai, tuned=True),
    }
    print(json.dumps(works[name](Path(slide), wsiseg.open_store(store))))


if __name__ == "__main__":
    main()
