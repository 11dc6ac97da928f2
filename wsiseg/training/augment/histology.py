"""How stain, scanner and storage change H&E pixels."""

from __future__ import annotations

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import hed_from_rgb, rgb_from_hed
from torch.nn import functional

from wsiseg.training.sections import Histology

Rgb = NDArray[np.uint8]
Stains = NDArray[np.float32]

_FAINTEST = 1e-6
_DENSITY = (np.log(np.maximum(np.arange(256) / 255, _FAINTEST)) / np.log(_FAINTEST)).astype(np.float32)
"""Optical density by pixel value, 1 for black."""
_TO_HED, _TO_RGB = (np.array(m.T, np.float32, order="C") for m in (hed_from_rgb, rgb_from_hed))


def vary(image: Rgb, how: Histology, rng: np.random.Generator) -> Rgb:
    """An image (3, y, x) with other stain, sharpness and compression."""
    if how.stain_jitter:
        image = jitter_stain(image, rng, strength=how.stain_jitter)
    if how.blur_px and rng.random() < how.degraded:
        image = blur(image, sigma_px=float(rng.uniform(0, how.blur_px)))
    if how.jpeg_quality is not None and rng.random() < how.degraded:
        image = compress(image, quality=int(rng.integers(how.jpeg_quality, 101)))
    return image


def _mix(matrix: Stains, values: Stains) -> Stains:
    """Sums over channels, by torch: it keeps to the threads that it was given."""
    made = torch.from_numpy(matrix) @ torch.from_numpy(values).flatten(1)
    return made.view(values.shape).numpy()


def to_stains(image: Rgb) -> Stains:
    """Amounts of haematoxylin, eosin and residual (3, y, x), as `skimage.color.rgb2hed` has them.

    Source: Ruifrok & Johnston, Quantification of histochemical staining by color deconvolution, 2001.
    """
    return np.maximum(_mix(_TO_HED, np.take(_DENSITY, image)), np.float32(0))


def to_rgb(stains: Stains) -> Rgb:
    """The image (3, y, x) of amounts of stain, as `skimage.color.hed2rgb` has it."""
    density = _mix(_TO_RGB * np.float32(np.log(_FAINTEST)), stains)
    made = np.exp(density, out=density)
    made *= 255
    return np.clip(np.rint(made, out=made), 0, 255, out=made).astype(np.uint8)


def jitter_stain(image: Rgb, rng: np.random.Generator, *, strength: float) -> Rgb:
    """Amounts of haematoxylin, eosin and residual changed by up to `strength` (relative).

    Source: Tellez et al., Whole-slide mitosis detection in H&E breast histology using PHH3 as a
    reference, IEEE TMI 2018, section III-C.
    """
    scale, offset = rng.uniform(-strength, strength, size=(2, 3, 1, 1)).astype(np.float32)
    return to_rgb(to_stains(image) * (1 + scale) + offset * np.float32(0.05))


def blur(image: Rgb, *, sigma_px: float) -> Rgb:
    """Convolved with a Gaussian, borders mirrored."""
    reach = min(int(np.ceil(3 * sigma_px)), *(n - 1 for n in image.shape[1:]))
    if reach < 1:
        return image
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma_px) ** 2)
    line = line / line.sum()
    x = torch.from_numpy(np.ascontiguousarray(image)).float()[:, None]  # (3, 1, y, x)
    x = functional.pad(x, (reach,) * 4, mode="reflect")
    x = functional.conv2d(functional.conv2d(x, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))
    return x[:, 0].round().clamp(0, 255).to(torch.uint8).numpy()


def compress(image: Rgb, *, quality: int) -> Rgb:
    """As it comes back from a JPEG of some quality (0..100)."""
    stored = imagecodecs.jpeg8_encode(np.ascontiguousarray(np.moveaxis(image, 0, -1)), level=quality)
    return np.moveaxis(imagecodecs.jpeg8_decode(stored), -1, 0)
