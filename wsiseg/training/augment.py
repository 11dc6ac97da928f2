"""Variations of a patch that leave its truth valid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.color import hed2rgb, rgb2hed

Rgb = NDArray[np.uint8]
Indices = NDArray[np.uint8]


def flip_and_turn(image: Rgb, truth: Indices, rng: np.random.Generator) -> tuple[Rgb, Indices]:
    """One of the eight symmetries of the square, the same for image (y, x, 3) and truth (y, x)."""
    turns = int(rng.integers(4))
    image, truth = np.rot90(image, turns), np.rot90(truth, turns)
    if rng.integers(2):
        image, truth = image[:, ::-1], truth[:, ::-1]
    return image, truth


def jitter_stain(image: Rgb, rng: np.random.Generator, *, strength: float) -> Rgb:
    """Amounts of haematoxylin, eosin and residual changed by up to `strength` (relative).

    Source: Tellez et al., Whole-slide mitosis detection in H&E breast histology using PHH3 as a
    reference, IEEE TMI 2018, section III-C.
    """
    stains = rgb2hed(image)
    scale = rng.uniform(1 - strength, 1 + strength, size=3)
    offset = rng.uniform(-strength, strength, size=3) * 0.05
    return np.asarray(np.round(hed2rgb(stains * scale + offset) * 255), np.uint8)
