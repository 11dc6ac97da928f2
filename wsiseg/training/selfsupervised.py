"""What a network learns from slides without labels, before another run gives it labels.

From an image whose haematoxylin was taken out it says how much there was at each pixel, which needs the
shape of nuclei; and by how many quarter turns the patch was turned. Sources: Sahasrabudhe et al.,
Self-supervised nuclei segmentation in histopathological images using attention, MICCAI 2020, for tasks
made of the image alone; Gidaris et al., Unsupervised representation learning by predicting image
rotations, ICLR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from wsiseg.sources.base import Array
from wsiseg.training.augment.histology import to_rgb, to_stains
from wsiseg.training.losses import Parts, on_grid_of, outputs_of
from wsiseg.training.patches import Batch, PatchSampler
from wsiseg.training.run import Run

DENSE = 0.1
"""Amount of haematoxylin (skimage's units) that counts as 1."""
TURNS = 4
INNER = "network."
"""Before the names of the weights of the network inside a `Pretext`."""


def without_haematoxylin(image: Array) -> tuple[Array, NDArray[np.float32]]:
    """The image (3, y, x) without it, and how much there was (y, x)."""
    stains = to_stains(np.ascontiguousarray(image))
    amount = stains[0] / np.float32(DENSE)
    stains[0] = 0
    return to_rgb(stains), amount


class Pretext(nn.Module):
    """A network with two heads on its scores: an amount per pixel and the turn of the patch."""

    def __init__(self, network: nn.Module, *, classes: int) -> None:
        super().__init__()
        self.network = network
        self.amount = nn.Conv2d(classes, 1, 1)
        self.turn = nn.Linear(classes, TURNS)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        scores = outputs_of(self.network(inputs), ndim=2)[0]  # (B, K, y, x)
        return self.amount(scores)[:, 0], self.turn(scores.mean(dim=(2, 3)))  # (B, y, x), (B, 4)


@dataclass(frozen=True, eq=False)
class PretextSampler(PatchSampler):
    """Draws patches without haematoxylin, turned, with the amount and the turn as targets."""

    def batch(self, step: int) -> Batch:
        inputs, amounts, turns = [], [], []
        for index in range(self.run.patches.batch):
            rng = np.random.default_rng((self.run.seed, step, index))
            case, values, _ = self.draw(self.run.patch, rng)
            rest, amount = without_haematoxylin(values)
            turn = int(rng.integers(TURNS))
            inputs.append(self.inputs(np.rot90(rest, turn, axes=(1, 2)), case.stats, rng))
            amounts.append(torch.from_numpy(np.rot90(amount, turn).copy()))
            turns.append(turn)
        targets = {"haematoxylin": torch.stack(amounts), "rotation": torch.tensor(turns)}
        return Batch(torch.stack(inputs), targets)


class PretextObjective:
    """The weighted losses of both tasks."""

    def __init__(self, run: Run) -> None:
        assert run.pretext is not None
        self._weights = run.pretext

    def __call__(self, network: Any, made: Any, batch: Batch) -> Parts:
        amounts, turns = made
        truth = on_grid_of(amounts[:, None], batch.targets["haematoxylin"], network=network.network)
        parts = {
            "haematoxylin": self._weights.haematoxylin * functional.smooth_l1_loss(amounts.float(), truth),
            "rotation": self._weights.rotation
            * functional.cross_entropy(turns.float(), batch.targets["rotation"]),
        }
        return {name: value for name, value in parts.items() if getattr(self._weights, name)}
