"""Which executor a case gets, a network that cannot be streamed, and a slide higher than a window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tests.cases import CROPS, NAMES, write_tiff
from wsiseg.config import SegmentConfig
from wsiseg.execution import (
    choose_execution,
)
from wsiseg.models.card import ModelCard
from wsiseg.models.zoo import load_card

CPU = torch.device("cpu")
SLIDE_SHAPE = (30000, 20000)
TALL, BAND, SLAB = (2800, 72), 64, 64
PLAIN: dict[str, Any] = {
    "model": "demo-breast8",
    "threads": 1, "chunk": 32, "slab": SLAB, "image": "none", "tissue_filter": False,
}  # fmt: skip


def choose(
    card: ModelCard,
    shape: tuple[int, ...] = SLIDE_SHAPE,
    *,
    before: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    return choose_execution(card, SegmentConfig(**options), shape, device=CPU, before=before or {})


class Pooled(nn.Module):
    """Scores that depend on the mean of the whole image."""

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, classes, 1)
        self.context = nn.AdaptiveAvgPool2d(1)
        self.mix = nn.Conv2d(3, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.score(image) + self.mix(self.context(image))
        return scores


def tall_slide(folder: Path) -> Path:
    """A narrow slide that is higher than a window: tissue above and below, glass between."""
    scene = np.full((*TALL, 3), 243, np.uint8)
    for number, top in enumerate((0, 190, 380, 2400, 2610)):
        crop = np.asarray(Image.open(CROPS / "images" / f"{NAMES[number % 3]}.png"))
        scene[top : top + 190] = crop[100:290, 100:172]
    return write_tiff(folder / "tall.tif", scene)


def memory_for_band(shape: tuple[int, int], *, band: int) -> int:
    """The least memory, MB, with which the shipped model streams an image in bands that high."""
    card = load_card("demo-breast8")
    return next(mb for mb in range(600, 900) if choose(card, shape, memory=mb).get("band") == band)
