"""Cards by the name of a shipped model or by path; nothing here needs torch."""

from __future__ import annotations

from pathlib import Path

from wsiseg.errors import ModelError
from wsiseg.models.card import ModelCard, read_card

ZOO = Path(__file__).parent.parent / "zoo"
DEFAULT_MODELS = {"yx": "breast-tissue3", "zyx": "hippocampus"}
"""The shipped model for each kind of input, by its axes."""


def zoo_names() -> list[str]:
    """Names of the shipped models."""
    return sorted(path.stem for path in ZOO.glob("*.json"))


def card_path(model: str | Path) -> Path:
    """Path of a card given by zoo name or path. Raises ModelError if there is none."""
    shipped = ZOO / f"{model}.json"
    if str(model) in zoo_names():
        return shipped
    path = Path(model)
    if path.suffix == ".safetensors":
        path = path.with_suffix(".json")
    if path.suffix == ".json" and path.is_file():
        return path
    raise ModelError(
        f"unknown model {str(model)!r}: neither a shipped model ({', '.join(zoo_names())}) "
        "nor the path of a card (.json)"
    )


def load_card(model: str | Path) -> ModelCard:
    """The card of a model. Raises ModelError."""
    return read_card(card_path(model))
