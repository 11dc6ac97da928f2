"""Finished stores of masks that a test makes itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.test_store import finished, make_plan
from wsiseg.classes import MaskClass
from wsiseg.store import CaseStore

COLORS = ((255, 255, 255), (130, 0, 130), (255, 150, 255), (0, 255, 0))
NAMES = ("background", "epithelium", "stroma", "=blood")
CLASSES = tuple(MaskClass(index=n, name=NAMES[n], color=COLORS[n]) for n in range(4))


def store_of(path: Path, mask: NDArray[np.uint8], **changes: Any) -> CaseStore:
    """A finished store of a mask of CLASSES, (y, x) with pixels of 0.5 x 0.25 µm unless told otherwise."""
    plan = {"shape": mask.shape, "classes": CLASSES, "slab_rows": 32, "chunk": 16, **changes}
    return finished(path, make_plan(**plan), mask)


def blobs(shape: tuple[int, ...], *, values: int = 4, seed: int = 0, side: int = 7) -> NDArray[np.uint8]:
    """Patches of classes with some single pixels in them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, values, [-(-n // side) for n in shape], np.uint8)
    for axis in range(len(shape)):
        coarse = coarse.repeat(side, axis=axis)
    mask = coarse[tuple(slice(0, n) for n in shape)].copy()
    single = rng.random(shape) < 0.05
    mask[single] = rng.integers(0, values, int(single.sum()), np.uint8)
    return mask
