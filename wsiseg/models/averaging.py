"""Networks whose probabilities are means: over several networks, and over views of the image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiseg.config import Views


def first_output(made: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The scores of a network that may put out more than these."""
    return made[0] if isinstance(made, tuple | list) else made


class Ensemble(nn.Module):
    """Mean over networks of softmax(scores / temperature): probabilities (B, K, *axes).

    Source: Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep
    Ensembles, 2017, section 2.4; temperatures: Guo et al., On Calibration of Modern Neural Networks,
    2017, section 4.2. Raises ValueError for fewer than two members, or temperatures that do not fit.
    """

    def __init__(self, members: Sequence[nn.Module], *, temperatures: Sequence[float]) -> None:
        super().__init__()
        if len(members) < 2 or len(temperatures) != len(members):
            raise ValueError(
                f"{len(members)} members and {len(temperatures)} temperatures: two or more of each"
            )
        if min(temperatures) <= 0:
            raise ValueError(f"temperatures {tuple(temperatures)} must be positive")
        self.members = nn.ModuleList(members)
        self.temperatures = tuple(temperatures)

    def forward(self, pixels: Tensor) -> Tensor:
        parts = [
            functional.softmax(first_output(member(pixels)) / temperature, dim=1)
            for member, temperature in zip(self.members, self.temperatures, strict=True)
        ]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total / len(parts)


class OverViews(nn.Module):
    """Mean of a network's probabilities over mirrored (and, in a plane, turned) views of its window.

    `views`: "flips" along every subset of the axes, or "flips and turns": all 8 of a plane. Every view
    is brought back before the mean, so that a network that does not mind them gives what it gave. Scores
    become probabilities by softmax(scores / temperature); None where they are probabilities. Raises
    ValueError for turns of a volume, whose axes differ.
    """

    def __init__(self, network: nn.Module, *, views: Views, axes: int, temperature: float | None) -> None:
        super().__init__()
        if views == "flips and turns" and axes != 2:
            raise ValueError("turns are for pictures; volumes take flips")
        self.network = network
        self._temperature = temperature
        spatial = range(2, 2 + axes)
        turns = (0, 1) if views == "flips and turns" else (0,)
        subsets = itertools.chain.from_iterable(itertools.combinations(spatial, n) for n in range(axes + 1))
        # A quarter turn and the flips make all 8 views of a square.
        self._views = [(turn, flips) for flips in subsets for turn in turns]

    def forward(self, pixels: Tensor) -> Tensor:
        total: Tensor | None = None
        for turn, flips in self._views:
            view = pixels.flip(flips) if flips else pixels
            view = torch.rot90(view, turn, (2, 3)) if turn else view
            scores = first_output(self.network(view))
            made = scores if self._temperature is None else (scores / self._temperature).softmax(dim=1)
            made = torch.rot90(made, -turn, (2, 3)) if turn else made
            made = made.flip(flips) if flips else made
            total = made if total is None else total + made
        assert total is not None
        return total / len(self._views)
