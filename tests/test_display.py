"""Tables of scores fit a terminal of 80 columns with every figure whole."""

from __future__ import annotations

import numpy as np
import pytest

from wsiseg.classes import MaskClass
from wsiseg.display import print_scores, print_volume_scores
from wsiseg.groups import ClassGroup
from wsiseg.metrics import ClassScore, ConfusionMatrix, Scores, score
from wsiseg.volume_scores import RegionScore, volume_scores

LONG = "necrotic and non-enhancing tumour core"
NAMES = ("background", LONG, "oedema", "never there")
CLASSES = tuple(MaskClass(index=i, name=n, color=(9 * i, 0, 0)) for i, n in enumerate(NAMES))


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def table_of(capfd: pytest.CaptureFixture[str]) -> tuple[list[list[str]], str]:
    """Cells of the rows that have figures, and all that was printed."""
    out = capfd.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith(("│", "┃"))]
    assert all(len(line) <= 80 for line in rows)
    assert "…" not in out
    return [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in rows], out


def test_the_table_of_a_volume_fits_and_is_whole(capfd: pytest.CaptureFixture[str]) -> None:
    truth = np.zeros((12, 100, 110), np.uint8)
    truth[2:9, 5:90, 10:100] = 1
    truth[9:11, 5:90, 10:100] = 2
    prediction = truth.copy()
    prediction[2, 5:40, 10:100] = 0
    group = ClassGroup(name="whole tumour", indices=(1, 2))
    scores = volume_scores(
        truth, prediction, classes=CLASSES, groups=(group,), spacing_mm=(5.5, 2.5, 2.0), background=0
    )
    print_volume_scores(scores)
    cells, out = table_of(capfd)
    figures = [row[1:] for row in cells if row[1]]

    def shown(r: RegionScore) -> list[str]:
        overlap = ["absent" if f is None else f"{f:.4f}" for f in (r.dice, r.iou)]
        distances = (r.hausdorff_95_mm, r.average_surface_distance_mm)
        return [
            *overlap,
            *("-" if d is None else f"{d:.2f}" for d in distances),
            f"{r.truth_ml:.3f}",
            f"{r.predicted_ml:.3f}",
        ]

    assert figures == [
        ["Dice", "IoU", "HD95 mm", "ASD mm", "truth ml", "pred. ml"],
        *(shown(r) for r in (*scores.classes, *scores.groups)),
    ]
    assert figures[2][4] == "1472.625"
    assert "".join(row[0] for row in cells).replace(" ", "").count(LONG.replace(" ", "")) == 1
    assert f"background {scores.mean_dice:.4f}; 132000 voxels counted, 0 void" in out


def test_the_table_of_a_slide_fits_and_is_whole(capfd: pytest.CaptureFixture[str]) -> None:
    counts = np.array([[123456789, 9, 9, 0], [9, 98765432, 9, 0], [9, 9, 1234567890, 0], [0] * 4], np.int64)
    scores: Scores = score(ConfusionMatrix(counts), CLASSES)
    print_scores(scores)
    cells, _ = table_of(capfd)
    figures = [row[1:] for row in cells if row[1]]

    def shown(c: ClassScore) -> list[str]:
        rates = [f"{f:.4f}" for f in (c.iou, c.dice, c.precision, c.recall) if f is not None]
        return [*(rates or ["absent", "absent", "", ""]), str(c.truth_pixels), str(c.predicted_pixels)]

    assert figures[1:] == [shown(c) for c in scores.classes]
    assert figures[3][-1] == "1234567908"
