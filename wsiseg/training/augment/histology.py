"""How stain, scanner and storage change H&E pixels."""

from __future__ import annotations

from collections.abc import Sequence

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import hed_from_rgb, rgb_from_hed
from torch.nn import functional

from wsiseg.training.sections import Histology

Rgb = NDArray[np.uint8]
Stains = NDArray[np.float32]
Matrix = NDArray[np.float64]

_FAINTEST = 1e-6
_DENSITY = (np.log(np.maximum(np.arange(256) / 255, _FAINTEST)) / np.log(_FAINTEST)).astype(np.float32)
"""Optical density by pixel value, 1 for black."""
_ABSORBED = -np.log((np.arange(256) + 1) / 256).astype(np.float32)
"""The same as a natural logarithm that is finite for black."""
_TO_HED, _TO_RGB = (np.array(m.T, np.float32, order="C") for m in (hed_from_rgb, rgb_from_hed))


def vary(image: Rgb, how: Histology, rng: np.random.Generator) -> Rgb:
    """An image (3, y, x) with other stain, sharpness and compression."""
    if how.stain_jitter:
        image = jitter_stain(image, how, rng)
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


def _unit(vectors: Matrix) -> Matrix:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _with_residual(haematoxylin: Sequence[float], eosin: Sequence[float]) -> Matrix:
    """Two stains and what neither of them can be."""
    return _unit(np.array([haematoxylin, eosin, np.cross(haematoxylin, eosin)]))


STAINS: dict[str, Matrix] = {
    "ruifrok-hed": _unit(rgb_from_hed),
    "ruifrok-he": _with_residual(*rgb_from_hed[:2]),
    "macenko-he": _with_residual((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581)),
}
"""Optical density of red, green and blue of three stains each, one a row.

Sources: Ruifrok & Johnston 2001 (with DAB, as in skimage, or what is left); the reference that
implementations of Macenko et al., ISBI 2009, share.
"""


def jitter_stain(image: Rgb, how: Histology, rng: np.random.Generator) -> Rgb:
    """One linear map of the optical densities of all pixels.

    Amounts of three stains change by a factor, drawn evenly on a logarithmic scale, and an offset; the
    stains' colours and the white of the slide move. After Tellez et al., Whole-slide mitosis detection in
    H&E breast histology using PHH3 as a reference, IEEE TMI 2018, section III-C, which has the first two.
    """
    vectors = STAINS[how.stain_vectors[int(rng.integers(len(how.stain_vectors)))]]
    others = _unit(vectors + rng.normal(0, how.stain_turn, vectors.shape))
    amounts = (1 - how.stain_jitter) ** rng.uniform(-1, 1, 3)
    added = rng.uniform(-1, 1, 3) * how.stain_offset @ others
    added += rng.uniform(-1, 1, 3) * how.white_point
    matrix = np.linalg.inv(vectors) @ np.diag(amounts) @ others
    density = _mix(matrix.T.astype(np.float32), np.take(_ABSORBED, image))
    density += added.astype(np.float32)[:, None, None]
    made = np.exp(-density, out=density) * 256 - 1
    return np.asarray(np.clip(np.rint(made), 0, 255), np.uint8)


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
