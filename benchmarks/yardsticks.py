"""What the main job is held against, each in a process of its own: see benchmarks.speed."""

from __future__ import annotations

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

import wsiseg
from wsiseg.memory import keep_memory
from wsiseg.store import CaseStore

MODEL = "demo-breast8"
WINDOW = 512
"""At which the bare forward pass is fastest on a CPU."""


def cpu_seconds(work: Callable[[], object]) -> float:
    """User and system seconds of this process that some work takes."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def limit(slide: Path, store: CaseStore) -> dict[str, float]:
    """Bare forward over every pixel once, one decode, one write."""
    height, width = store.geometry.shape
    network = wsiseg.load_network(MODEL).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = torch.randn(1, 3, WINDOW, WINDOW).contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        for y in range(0, height, WINDOW):
            for x in range(0, width, WINDOW):
                rows, columns = (-(-min(WINDOW, n) // 8) * 8 for n in (height - y, width - x))
                with torch.inference_mode():
                    network(inputs[..., :rows, :columns].contiguous(memory_format=torch.channels_last))

    source = wsiseg.open_source(slide)

    def decode() -> None:
        down, across = source.block
        for y in range(0, height, down):
            for x in range(0, width, across):
                source.read((slice(y, min(y + down, height)), slice(x, min(x + across, width))))

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
