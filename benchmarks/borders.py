"""Where the mask of windows differs from that of one exact pass: along the windows' borders.

    python -m benchmarks.borders SLIDE PICTURE.png [--model NAME]

Prints the share of equal pixels and how near the differing ones lie to a border of the windows'
cores, beside how near all pixels lie; draws them in red over the two masks' common grey.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

import wsiseg
from wsiseg.report import Report

NEAR_PX = 64
PICTURE_PX = 1200
RED, GRID = (214, 39, 40), (90, 140, 220)


def mask(slide: Path, **options: Any) -> tuple[NDArray[np.uint8], Report]:
    """The mask before the tissue filter, and its report."""
    with tempfile.TemporaryDirectory() as out:
        report = wsiseg.segment(slide, out, image="none", tissue_filter=False, **options)
        return np.asarray(wsiseg.open_store(report.store).mask()[:]), report


def distances(shape: tuple[int, ...], *, core: tuple[int, ...]) -> NDArray[np.float32]:
    """Pixels from each pixel's centre to the nearest border of a window's core, the image's included."""
    near = np.full(shape, np.inf, np.float32)
    for axis, (n, c) in enumerate(zip(shape, core, strict=True)):
        borders = np.array([*range(0, n, c), n])
        along = np.abs(np.arange(n)[:, None] + 0.5 - borders).min(axis=1).astype(np.float32)
        near = np.minimum(near, np.expand_dims(along, tuple(a for a in range(len(shape)) if a != axis)))
    return near


def draw(found: NDArray[np.uint8], differs: NDArray[np.bool_], *, core: tuple[int, ...], path: Path) -> None:
    """Differing pixels in red, made big enough to be seen, over the mask in greys; borders in blue."""
    step = max(1, -(-max(found.shape) // PICTURE_PX))
    grey = (255 - 14 * found[::step, ::step].astype(int)).clip(120, 255).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, axis=2)
    for axis, c in enumerate(core):
        lines = np.arange(c, found.shape[axis], c) // step
        picture[(slice(None),) * axis + (lines,)] = GRID
    grown = ndimage.maximum_filter(differs, size=2 * step + 1)[::step, ::step]
    picture[grown] = RED
    Image.fromarray(picture).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--model", default="demo-breast8")
    arguments = parser.parse_args()
    exact, report = mask(arguments.slide, model=arguments.model, executor="streaming")
    found, by_windows = mask(arguments.slide, model=arguments.model, executor="windowed")
    core = tuple(by_windows.execution["core"])
    differs, near = exact != found, distances(exact.shape, core=core)
    band, halo = report.execution["band"], by_windows.execution["halo"][0]
    print(f"{arguments.slide.name}: streaming in bands of {band} rows, windows of {core[0]} + 2 x {halo}")
    again, by_overlap = report.work.repeated_share, by_windows.work.repeated_share
    print(f"pixels computed again: streaming {again:.2%}, windows {by_overlap:.2%}")
    print(f"equal {1 - differs.mean():.4%}, {int(differs.sum())} pixels differ")
    if differs.any():
        print(f"{'':32} differing   all")
        print(f"{'mean distance to a border, px':32} {near[differs].mean():9.0f}   {near.mean():.0f}")
        share, chance = (near[differs] <= NEAR_PX).mean(), (near <= NEAR_PX).mean()
        print(f"{f'within {NEAR_PX} px of a border':32} {share:9.1%}   {chance:.1%}")
    draw(exact, differs, core=core, path=arguments.picture)
    print(f"picture {arguments.picture}")


if __name__ == "__main__":
    main()
