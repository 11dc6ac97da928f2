"""How coil, contrast and grain change the intensities of an MRI."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsiseg.training.sections import Mri

Voxels = NDArray[np.float32]


@cache
def _transforms() -> Any:
    # It takes seconds to import, and not every training needs it.
    return importlib.import_module("monai.transforms")


def vary_voxels(values: Voxels, how: Mri, rng: np.random.Generator) -> Voxels:
    """Voxels (C, z, y, x) as read, under a smooth field of sensitivity that all channels share."""
    if not how.bias_field:
        return values
    field = _transforms().RandBiasField(prob=1.0, coeff_range=(-how.bias_field, how.bias_field))
    field.set_random_state(seed=int(rng.integers(2**32)))
    # Of ones it gives the field itself, which the channels of one scan have in common.
    made = field(torch.ones(1, *values.shape[1:]))
    return np.asarray(values * np.asarray(made), np.float32)


def vary_inputs(inputs: Tensor, how: Mri, rng: np.random.Generator) -> Tensor:
    """The network's input (C, z, y, x) with other contrast, offset, gamma and grain."""
    if how.gamma > 1:
        exponent = float(np.exp(rng.uniform(-1, 1) * np.log(how.gamma)))
        inputs = torch.as_tensor(np.asarray(_transforms().AdjustContrast(exponent)(inputs)))
    contrast, offset = rng.uniform(-1, 1, size=2) * how.intensity_jitter
    inputs = inputs * (1 + contrast) + offset
    if how.noise:
        grain = rng.standard_normal(inputs.shape, dtype=np.float32)
        inputs = inputs + torch.from_numpy(grain) * (how.noise * rng.random())
    return inputs.float()
