"""How time and memory grow with an image: slides of one width and more and more rows, volumes of all sizes.

    python -m benchmarks.scale FOLDER [--upto 1] [--threads 1] [--volumes 256]

Slides are 10,000 pixels wide and synthetic: 1,280 rows of real crops, repeated, as tiles that are encoded
once; a third of them is tissue, so that figures are not those of benchmarks.speed. From 0.016 to 10
gigapixels each is segmented by `wsiseg segment --image none` in a process of its own; what a slide of
512 x 512 takes counts as start-up and is taken off. The exponent is the slope of a straight line through
the logarithms of CPU seconds and pixels. Volumes are one real volume, repeated.

What is measured stays in FOLDER/measured.json, so that a run that was stopped goes on; after a change of the
program take another folder.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import tifffile
from PIL import Image

from benchmarks.slide import TILE, mosaic
from benchmarks.speed import measure
from wsiseg.demo import SAMPLES

WIDTH, PERIOD = 10_000, 1280
GIGAPIXELS = (0.016, 0.12, 1.0, 10.0)
SIDES = (64, 128, 256, 512, 1024)
START_SIDE = 512
MAX_EXPONENT, MAX_GROWTH = 1.02, 1.1
MODEL = {"slide": "demo-breast8", "volume": "hippocampus"}


def make_tall(path: Path, *, height: int, width: int = WIDTH) -> Path:
    """A tiled JPEG TIFF of the first PERIOD rows of a mosaic, again and again; nothing if it is there."""
    if path.exists():
        return path
    image = mosaic(height=PERIOD, width=width)
    across, down = -(-width // TILE), PERIOD // TILE
    padded = np.full((PERIOD, across * TILE, 3), 243, np.uint8)
    padded[:, :width] = image
    encoded = [
        jpeg(padded[y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE])
        for y in range(down)
        for x in range(across)
    ]

    def tiles() -> Iterator[bytes]:
        for number in range(-(-height // TILE)):
            start = number % down * across
            yield from encoded[start : start + across]

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.tif")
    with tifffile.TiffWriter(partial, bigtiff=True) as writer:
        writer.write(
            tiles(), shape=(height, width, 3), dtype=np.uint8, tile=(TILE, TILE), compression="jpeg",
            photometric="ycbcr", subsampling=(2, 2), metadata=None, resolution=(2e4, 2e4),
            resolutionunit="CENTIMETER",
        )  # fmt: skip
    partial.rename(path)
    return path


def jpeg(pixels: np.ndarray[Any, Any]) -> bytes:
    """A tile as a JPEG of its own."""
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "jpeg", quality=85, subsampling="4:2:0")
    return written.getvalue()


def make_volume(path: Path, *, side: int) -> Path:
    """A volume of side^3 voxels: the shipped one, repeated along every axis."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        sample = sorted((SAMPLES / "msd-hippocampus" / "images").glob("*.nii.gz"))[0]
        loaded: Any = nibabel.load(sample)
        voxels = np.asarray(loaded.dataobj)
        times = [-(-side // n) for n in voxels.shape]
        whole = np.tile(voxels, times)[:side, :side, :side].astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(whole, loaded.affine), path)
    return path


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of the line of least squares through the logarithms.

    >>> round(exponent([1, 10, 100], [2, 20, 200]), 6)
    1.0
    """
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


class Kept:
    """Figures by name in a file, measured where they are missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}

    def segment(self, name: str, image: Path, out: Path, *, kind: str, threads: int) -> dict[str, float]:
        """CPU seconds, seconds of the wall and peak memory of `wsiseg segment`."""
        name = f"{name}, threads {threads}"
        if name not in self._known:
            shutil.rmtree(out, ignore_errors=True)
            config = out.parent / "config.toml"
            config.write_text(f"threads = {threads}\n")
            taken = measure(
                sys.executable, "-m", "wsiseg", "segment", str(image), "--out", str(out), "--image", "none",
                "--model", MODEL[kind], "--device", "cpu", "--config", str(config),
            )  # fmt: skip
            self._known[name] = {"cpu_s": taken.cpu_s, "wall_s": taken.wall_s, "peak_mb": taken.peak_mb}
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(self._known, indent=1))
            partial.replace(self._path)
            shutil.rmtree(out, ignore_errors=True)
        return self._known[name]


def table(title: str, start: float, rows: dict[str, tuple[float, dict[str, float]]]) -> float:
    """Print rows (size, measured) by name; returns the exponent."""
    print(f"\n{title:24} {'CPU s':>9} {'less start':>11} {'wall s':>9} {'peak MB':>9} {'M/CPU s':>9}")
    for name, (size, taken) in rows.items():
        own = taken["cpu_s"] - start
        print(
            f"{name:24} {taken['cpu_s']:9.1f} {own:11.1f} {taken['wall_s']:9.1f} {taken['peak_mb']:9.0f} "
            f"{size / own / 1e6:9.2f}"
        )
    sizes, own_s = zip(*((size, taken["cpu_s"] - start) for size, taken in rows.values()), strict=True)
    return exponent(sizes, own_s)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--upto", type=float, default=1.0, choices=GIGAPIXELS[1:], help="gigapixels of the largest slide"
    )
    parser.add_argument(
        "--volumes", type=int, default=256, choices=SIDES[2:], help="side of the largest volume"
    )
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    kept = Kept(folder / "measured.json")
    threads = {"threads": given.threads}
    tiny = make_tall(folder / "start.tif", height=START_SIDE, width=START_SIDE)
    kept.segment(
        "warm", tiny, folder / "out", kind="slide", **threads
    )  # compiled parts are kept from here on
    start = kept.segment("start", tiny, folder / "out", kind="slide", **threads)["cpu_s"]
    slides = {}
    for size in GIGAPIXELS:
        if size <= given.upto:
            height = round(size * 1e9 / WIDTH)
            slide = make_tall(folder / f"{height}.tif", height=height)
            taken = kept.segment(f"{WIDTH} x {height}", slide, folder / "out", kind="slide", **threads)
            slides[f"{WIDTH} x {height}"] = (size * 1e9, taken)
    volumes = {}
    for side in SIDES:
        if side <= given.volumes:
            volume = make_volume(folder / f"{side}.nii.gz", side=side)
            taken = kept.segment(f"{side}^3", volume, folder / "out", kind="volume", **threads)
            volumes[f"{side}^3"] = (float(side**3), taken)
    slope = table("slides (pixels)", start, slides)
    peaks = [taken["peak_mb"] for size, taken in slides.values() if size >= GIGAPIXELS[1] * 1e9]
    checks = {f"slides: exponent {slope:.3f}, at most {MAX_EXPONENT}": slope <= MAX_EXPONENT}
    if len(peaks) > 1:
        grown = max(peaks) / min(peaks)
        checks[f"peak memory of slides of one width: {grown:.2f} x, at most {MAX_GROWTH}"] = (
            grown <= MAX_GROWTH
        )
    if volumes:  # small ones are start-up, and little else
        first = kept.segment("volume start", make_volume(folder / "32.nii.gz", side=32), folder / "out",
                             kind="volume", **threads)["cpu_s"]  # fmt: skip
        slope = table("volumes (voxels)", first, {n: v for n, v in volumes.items() if v[0] >= 128**3})
        checks[f"volumes: exponent {slope:.3f}, at most {MAX_EXPONENT}"] = slope <= MAX_EXPONENT
    for sentence, held in checks.items():
        print(f"{'held' if held else 'MISSED':7} {sentence}")
    raise SystemExit(0 if all(checks.values()) else 1)


if __name__ == "__main__":
    main()
