"""One temperature for a trained network, so that of what it says with 80 %, 80 % is right.

Source: Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional

from wsiseg.classes import VOID
from wsiseg.errors import ManifestError, ModelError
from wsiseg.files import write_whole, writing
from wsiseg.geometry import relative_to
from wsiseg.manifest import read_manifest
from wsiseg.models.card import ModelCard, check_new_card, write_card
from wsiseg.models.zoo import card_path, load_card
from wsiseg.predict import NetworkPredictor, load_predictor
from wsiseg.progress import Progress, no_progress
from wsiseg.reliability import BINS, Reliability
from wsiseg.sources.cached import CachedSource
from wsiseg.training.cases import Case, Cases, check_splits, open_case
from wsiseg.training.run import Run
from wsiseg.training.sections import CardText, Data
from wsiseg.training.validation import has_one_size, windows_of

MOST_PX = 2_000_000
"""Labelled pixels that are looked at, about: of more, so many are drawn."""
PIECE_PX = 1 << 17
"""Of these, whose probabilities are in memory at a time."""
LOWEST, HIGHEST = 0.05, 20.0
"""Temperatures that are tried."""
METHOD = (
    "one temperature, of the lowest negative log-likelihood on labelled pixels of the {split} cases; "
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
    figures = _fit(predictor, cases.validation, split="validation", unseen=cases.test, seed=run.seed)
    if figures is None:
        return draft, {"not calibrated": "no labelled pixel of the validation cases could be read"}
    return draft.model_copy(update={"temperature": figures["temperature"]}), {"calibration": figures}


def calibrate_model(
    model: str | Path,
    card: Path,
    data: Data,
    *,
    split: str = "validation",
    device: str = "auto",
    trust_code: bool = False,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> ModelCard:
    """Write the card of a model with the temperature that the cases of a split give it, at `card` (.json).

    Its weights are copied beside the new card; masks stay as they are. Raises ModelError for a model
    without scores to divide or without a pixel size, ManifestError for cases that cannot be used.
    """
    known = load_card(model)
    if known.scores == "probabilities":
        raise ModelError(
            f"model {known.name} gives probabilities, which no temperature divides; calibrate its members"
        )
    if known.spacing is None:
        raise ModelError(f"the card of {known.name} states no pixel size; write its `spacing` there first")
    check_new_card(card, overwrite=overwrite)
    predictor = load_predictor(model, device, trust_code=trust_code)
    table = read_manifest(data.manifest, root=data.root)
    check_splits(table)
    grid = grid_of(known, data)

    def cases_of(wanted: str) -> list[Case]:
        return [open_case(grid, table, row) for row in table.cases if (row.split or "train") == wanted]

    cases = cases_of(split)
    unseen = [] if split == "test" else cases_of("test")
    figures = _fit(predictor, cases, split=split, unseen=unseen, seed=0, progress=progress)
    if figures is None:
        raise ManifestError(f"{data.manifest} has no labelled pixel in cases whose split is {split}")
    weights = card.with_suffix(Path(known.weights).suffix)
    made = known.model_copy(
        update={
            "name": card.stem,
            "weights": weights.name,
            "temperature": figures["temperature"],
            "quality": {**known.quality, "calibration": figures},
        }
    )
    with writing(card):
        card.parent.mkdir(parents=True, exist_ok=True)
        source = card_path(model).parent / known.weights
        if weights.resolve() != source.resolve():
            write_whole(weights, source.read_bytes())
        write_card(made, card)
    return made


def grid_of(card: ModelCard, data: Data) -> Run:
    """What of a run decides how cases are opened, from a card."""
    assert card.spacing is not None
    return Run(
        name="calibration",
        axes=card.axes,
        network=card.network,
        classes=card.classes,
        background=card.background,
        spacing=card.spacing,
        preprocessing=card.preprocessing,
        data=data.model_copy(update={"modalities": card.modalities}),
        card=CardText(training_data="", licence="", intended_use=""),
    )


def _fit(
    predictor: NetworkPredictor,
    cases: Sequence[Case],
    *,
    split: str,
    unseen: Sequence[Case],
    seed: int,
    progress: Progress = no_progress,
) -> dict[str, Any] | None:
    """The temperature that suits some cases and what it is worth, for a card; None where none has labels."""
    pixels = labelled_pixels(predictor, cases, seed=seed, progress=progress)
    if not len(pixels.truth):
        return None
    temperature = fit_temperature(pixels)
    figures: dict[str, Any] = {
        "method": METHOD.format(split=split),
        "temperature": temperature,
        split: {
            "cases": len(cases),
            "pixels": len(pixels.truth),
            "before": pixels.figures(predictor.card.temperature),
            "after": pixels.figures(temperature),
        },
    }
    others = labelled_pixels(predictor, unseen, seed=seed, progress=progress)
    if len(others.truth):
        figures["test, not fitted on"] = {
            "cases": len(unseen),
            "pixels": len(others.truth),
            "before": others.figures(predictor.card.temperature),
            "after": others.figures(temperature),
        }
    return figures


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


def labelled_pixels(
    predictor: NetworkPredictor, cases: Sequence[Case], *, seed: int, progress: Progress = no_progress
) -> Labelled:
    """Scores and truth of labelled pixels, MOST_PX of them at most; which ones, `seed` says."""
    share, rng = MOST_PX / max(1, labelled(cases)), np.random.default_rng(seed)
    shown = progress(iter(cases), total=len(cases), what="calibrate")
    parts = [_none(predictor.card)]
    parts += [_of_case(predictor.for_case(case.stats), case, share, rng) for case in shown]
    return Labelled(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _none(card: ModelCard) -> tuple[Tensor, Tensor]:
    return torch.empty(0, len(card.classes)), torch.empty(0, dtype=torch.int64)


def _of_case(
    predictor: NetworkPredictor, case: Case, share: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Scores (N, K) and truth (N,) of a share of the labelled pixels of a case, window by window."""
    none = _none(predictor.card)
    scores, truth = [none[0]], [none[1]]
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
