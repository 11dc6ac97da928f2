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

import wsiseg
from wsiseg.memory import keep_memory
from wsiseg.store import CaseStore

MODEL = "demo-breast8"
WINDOW = 512
BACKENDS = ("torch", "openvino", "onnxruntime")


def cpu_seconds(work: Callable[[], object]) -> float:
    """User and system seconds of this process that some work takes."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def holding_tissue(store: CaseStore) -> list[tuple[int, int]]:
    """Sides of the windows of WINDOW pixels in which the run of a store found tissue."""
    kept = store.ledger.read("tissue.npz")
    assert kept is not None
    with np.load(io.BytesIO(kept)) as arrays:
        tissue = arrays["tissue"]
    scale = np.array(store.geometry.shape) / tissue.shape

    def on_grid(start: int, stop: int, axis: int) -> slice:
        return slice(int(start / scale[axis]), int(np.ceil(stop / scale[axis])))

    height, width = store.geometry.shape
    return [
        (min(WINDOW, height - y), min(WINDOW, width - x))
        for y in range(0, height, WINDOW)
        for x in range(0, width, WINDOW)
        if tissue[
            on_grid(y, min(y + WINDOW, height), 0), on_grid(x, min(x + WINDOW, width), 1)
        ].any()
    ]  # fmt: skip


def forward(_: Path, store: CaseStore, *, backend: str, threads: int) -> dict[str, float]:
    """CPU seconds of bare passes over every window that holds tissue once, by a back end."""
    execution = {"backend": backend, "batch": 1, "window": (WINDOW, WINDOW), "threads": threads}
    with torch.inference_mode():
        network = wsiseg.load_predictor(MODEL, "cpu").for_execution(execution).network
        inputs = torch.randn(1, 3, WINDOW, WINDOW).contiguous(memory_format=torch.channels_last)
        windows = holding_tissue(store)
        network(inputs)

        def passes() -> None:
            for _ in windows:  # those at the border are as large as the others: a back end has one shape
                network(inputs)

        pixels = sum(rows * columns for rows, columns in windows)
        seconds = cpu_seconds(passes) * pixels / (len(windows) * WINDOW**2)
    return {"cpu_s": seconds, "tissue_windows": len(windows), "megapixels": pixels / 1e6}


def limit(slide: Path, store: CaseStore) -> dict[str, float]:
    """One decode of every tile, one write of the mask."""
    height, width = store.geometry.shape
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

    return {"decode_s": cpu_seconds(decode), "write_s": cpu_seconds(write)}


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
        **{backend: partial(forward, backend=backend, threads=int(threads)) for backend in BACKENDS},
    }
    print(json.dumps(works[name](Path(slide), wsiseg.open_store(store))))


if __name__ == "__main__":
    main()
