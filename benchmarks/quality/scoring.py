"""What a trained network finds on the held-out cases, case by case."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import wsiseg
from benchmarks.quality.prepare import REPOSITORY, Cases, read_dots
from benchmarks.quality.recipes import Benchmark
from benchmarks.quality.results import CaseValues
from wsiseg.manifest import CaseRow, read_manifest
from wsiseg.metrics import ConfusionMatrix
from wsiseg.predict import NetworkPredictor, Outputs, Predictor
from wsiseg.training.cases import Case, open_case
from wsiseg.training.run import Run
from wsiseg.training.validation import has_one_size, masks
from wsiseg.volume_scores import volume_scores

HELD_OUT, CROPS = "held out", "crops of another lab"
TISSUE_AT_DOTS = (1, 2, 3)
"""Lymphocyte, epithelium, stroma: the classes among which the highest score at a dot decides."""
AREAS = (2, 3)
"""Epithelium, stroma: among which it decides on areas, where no outline says lymphocyte."""
BREAST8_AREAS = {1: 2, 2: 2, 3: 3, 4: 3}
"""Of the eight-class crops: epithelium, benign or malignant, and stroma, normal or desmoplastic."""
PASSES = 5

Indices = NDArray[np.uint8]


def score_cases(
    benchmark: Benchmark, card: Path, run: Run, *, cases: Cases, shared: Path
) -> list[CaseValues]:
    """What the model of a card finds on each held-out case, on the CPU."""
    predictor = wsiseg.load_predictor(card, "cpu")
    manifest = read_manifest(cases.manifest, root=cases.root)
    rows = [row for row in manifest.cases if row.split == "test"]
    make: dict[str, Callable[[Case, NetworkPredictor], CaseValues]] = {
        "pixels": pixels,
        "volumes": volumes,
        "dots": lambda case, model: dots(case, model, root=shared / "data" / "brca-m2c"),
    }
    found = [make[benchmark.kind](open_case(run, manifest, row), predictor) for row in rows]
    return found + (crops(run, predictor) if benchmark.kind == "dots" else [])


class Among:
    """A predictor that chooses among some classes only."""

    def __init__(self, predictor: Predictor, classes: Sequence[int]) -> None:
        self.card = predictor.card
        self._predictor = predictor
        self._others = [c.index for c in predictor.card.classes if c.index not in classes]

    def __call__(self, images: Indices) -> Outputs:
        outputs = self._predictor(images)
        others = torch.tensor(self._others, dtype=torch.long, device=outputs.scores.device)
        return Outputs(outputs.scores.index_fill(1, others, -torch.inf))


def predicted(
    case: Case, predictor: NetworkPredictor, *, among: Sequence[int] | None = None
) -> tuple[Indices, Indices, float]:
    """Truth and mask of a case, highest score `among` some classes (None: all), and the CPU seconds."""
    before = time.process_time()
    model: Predictor = predictor.for_case(case.stats)
    if among is not None:
        model = Among(model, among)
    pieces = list(masks(model, case, one_size=has_one_size(predictor.network)))
    truth, mask = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return truth, mask, time.process_time() - before


def pixels(case: Case, predictor: NetworkPredictor) -> CaseValues:
    """Counts of the pixels of a picture."""
    truth, mask, spent = predicted(case, predictor)
    return _counts(case.row, HELD_OUT, spent, truth, mask, num_classes=len(predictor.card.classes))


def dots(case: Case, predictor: NetworkPredictor, *, root: Path) -> CaseValues:
    """Counts of the dots of a patch, by the mask's class at the pixel of each."""
    _, mask, spent = predicted(case, predictor, among=TISSUE_AT_DOTS)
    places, truth = read_dots(root, case.row.case)
    found = mask[places[:, 0], places[:, 1]]
    return _counts(case.row, HELD_OUT, spent, truth - 1, found - 1, num_classes=len(TISSUE_AT_DOTS))


def crops(run: Run, predictor: NetworkPredictor) -> list[CaseValues]:
    """Counts of the pixels of the shipped eight-class crops that are epithelium or stroma."""
    root = REPOSITORY / "wsiseg" / "samples" / "ynet-breast8"
    manifest = read_manifest(REPOSITORY / "data_manifests" / "ynet-breast8.csv", root=root)
    eight = run.model_copy(update={"classes": "breast8"})
    table = np.full(256, 255, np.uint8)
    table[list(BREAST8_AREAS)] = list(BREAST8_AREAS.values())
    made = []
    for row in manifest.cases:
        case = open_case(eight, manifest, row)
        outlined, mask, spent = predicted(case, predictor, among=AREAS)
        truth = table[outlined]
        truth[truth != 255] -= 1
        made.append(_counts(row, CROPS, spent, truth, mask - 1, num_classes=len(TISSUE_AT_DOTS)))
    return made


def volumes(case: Case, predictor: NetworkPredictor) -> CaseValues:
    """Scores of every structure of a volume."""
    truth, mask, spent = predicted(case, predictor)
    scores = volume_scores(
        truth,
        mask,
        classes=predictor.card.classes,
        spacing_mm=case.grid.spacing,
        background=predictor.card.background,
    )
    rows = [
        [r.dice, r.hausdorff_95_mm, r.volume_difference_ml, r.relative_volume_difference]
        for r in scores.classes
        if r.indices != (predictor.card.background,)
    ]
    return _values(case.row, HELD_OUT, spent, [[_rounded(value) for value in row] for row in rows])


def forward_seconds(card: Path, window: Sequence[int], *, channels: int) -> float:
    """CPU seconds of the bare network for a million pixels, the median of some passes over a window."""
    network: Any = wsiseg.load_network(card)
    layout = torch.channels_last if len(window) == 2 else torch.channels_last_3d
    network = network.to(memory_format=layout)
    image = torch.randn(1, channels, *window).contiguous(memory_format=layout)
    spent = []
    with torch.inference_mode():
        for _ in range(PASSES + 1):
            before = time.process_time()
            network(image)
            spent.append(time.process_time() - before)
    return statistics.median(spent[1:]) / (image.numel() / channels / 1e6)  # the first pays for its memory


def _counts(
    row: CaseRow, part: str, spent: float, truth: Indices, mask: Indices, *, num_classes: int
) -> CaseValues:
    matrix = ConfusionMatrix.of(truth=truth, prediction=mask, num_classes=num_classes)
    return _values(row, part, spent, matrix.counts.tolist())


def _values(row: CaseRow, part: str, spent: float, values: list[list[float | None]]) -> CaseValues:
    return CaseValues(case=row.case, patient=row.patient, part=part, cpu_s=round(spent, 4), values=values)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
