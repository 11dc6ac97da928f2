"""One temperature for a trained network, so that of what it says with 80 %, 80 % is right.

Source: Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional

from wsiseg.classes import VOID
from wsiseg.geometry import relative_to
from wsiseg.models.card import ModelCard
from wsiseg.predict import NetworkPredictor
from wsiseg.reliability import BINS, Reliability
from wsiseg.sources.cached import CachedSource
from wsiseg.training.cases import Case, Cases
from wsiseg.training.run import Run
from wsiseg.training.validation import has_one_size, windows_of

MOST_PX = 2_000_000
"""Labelled pixels that are looked at, about: of more, so many are drawn."""
PIECE_PX = 1 << 17
"""Of these, whose probabilities are in memory at a time."""
LOWEST, HIGHEST = 0.05, 20.0
"""Temperatures that are tried."""
METHOD = (
    "one temperature, of the lowest negative log-likelihood on labelled pixels of the validation cases; "
    f"calibration error over {BINS} bins of the confidence"
)


@dataclass(frozen=True)
class Labelled:
    """Pixels with a label, on the model's grid: scores (N, K) and class indices (N,)."""

    scores: Tensor
    truth: Tensor

    def _pieces(self, temperature: float) -> Iterator[tuple[Tensor, Tensor]]:
        """Scores by the temperature, and truth, of some pixels after others."""
        for start in range(0, len(self.truth), PIECE_PX):
            piece = slice(start, start + PIECE_PX)
            yield self.scores[piece].double() / temperature, self.truth[piece]

    def negative_log_likelihood(self, temperature: float) -> float:
        """Mean over the pixels, in nats."""
        parts = [
            functional.cross_entropy(scores, truth, reduction="sum").item()
            for scores, truth in self._pieces(temperature)
        ]
        return math.fsum(parts) / len(self.truth)

    def reliability(self, temperature: float) -> Reliability:
        """Confidence and share of right pixels, by bins."""
        total = Reliability.empty()
        for scores, truth in self._pieces(temperature):
            sure, chosen = scores.softmax(dim=1).max(dim=1)
            total += Reliability.of(sure.numpy(), pixels=np.ones(len(sure)), right=(chosen == truth).numpy())
        return total

    def figures(self, temperature: float) -> dict[str, float]:
        """For a card."""
        error = self.reliability(temperature).error
        assert error is not None  # there are pixels
        return {
            "negative log-likelihood": round(self.negative_log_likelihood(temperature), 4),
            "expected calibration error": round(error, 4),
        }


def calibrate(
    run: Run, network: nn.Module, cases: Cases, draft: ModelCard, device: torch.device
) -> tuple[ModelCard, dict[str, Any]]:
    """The card with the temperature of the validation cases, and what it is worth there and on test."""
    if not run.validation.calibrate:
        return draft, {}
    predictor = NetworkPredictor(draft, network.eval(), device=device)
    pixels = labelled_pixels(predictor, cases.validation, seed=run.seed)
    if not len(pixels.truth):
        return draft, {"not calibrated": "no labelled pixel of the validation cases could be read"}
    temperature = fit_temperature(pixels)
    figures: dict[str, Any] = {
        "method": METHOD,
        "temperature": temperature,
        "validation": {
            "pixels": len(pixels.truth),
            "before": pixels.figures(draft.temperature),
            "after": pixels.figures(temperature),
        },
    }
    unseen = labelled_pixels(predictor, cases.test, seed=run.seed) if cases.test else None
    if unseen is not None and len(unseen.truth):
        figures["test, not fitted on"] = {"pixels": len(unseen.truth), "after": unseen.figures(temperature)}
    return draft.model_copy(update={"temperature": temperature}), {"calibration": figures}


def labelled(cases: Sequence[Case]) -> int:
    """Pixels of some cases that have a label."""
    return sum(int(case.census.total.sum()) for case in cases)


def fit_temperature(pixels: Labelled) -> float:
    """The temperature of the lowest negative log-likelihood, to four decimals."""
    found = minimize_scalar(
        lambda power: pixels.negative_log_likelihood(math.exp(power)),
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return round(math.exp(found.x), 4)


def labelled_pixels(predictor: NetworkPredictor, cases: Sequence[Case], *, seed: int) -> Labelled:
    """Scores and truth of labelled pixels, MOST_PX of them at most; which ones, `seed` says."""
    share, rng = MOST_PX / max(1, labelled(cases)), np.random.default_rng(seed)
    parts = [_of_case(predictor.for_case(case.stats), case, share, rng) for case in cases]
    return Labelled(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _of_case(
    predictor: NetworkPredictor, case: Case, share: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Scores (N, K) and truth (N,) of a share of the labelled pixels of a case, window by window."""
    scores = [torch.empty(0, len(predictor.card.classes))]
    truth = [torch.empty(0, dtype=torch.int64)]
    plan = windows_of(predictor.card, case.shape, one_size=has_one_size(predictor.network))
    with CachedSource(case.source) as source:
        for window in plan.windows():
            source.forget(before=window.read[0].start)
            if not case.has_labels(window.core):
                continue
            pixels, core = source.read(window.read), relative_to(window.core, window.read)
            stated = case.truth(window.core)
            taken = (stated != VOID) & pixels.valid[core] & (rng.random(stated.shape) < share)
            made = predictor(np.array(pixels.values[None])).scores[0][(slice(None), *core)]
            scores.append(made[:, torch.from_numpy(taken)].T.cpu())
            truth.append(torch.from_numpy(stated[taken].astype(np.int64)))
    return torch.cat(scores), torch.cat(truth)
