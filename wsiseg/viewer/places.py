"""Where what belongs to a result lies: its image, its annotations, the report beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsiseg.batch.discovery import MARKS
from wsiseg.batch.outcome import read_outcome
from wsiseg.classes import MaskClass
from wsiseg.config import DRAWN, AnnotationRules
from wsiseg.names import SUFFIX, case_name
from wsiseg.report import Report
from wsiseg.store import CaseStore


@dataclass(frozen=True)
class Places:
    """Where to look for what belongs to the results: images (of stores without one), annotations."""

    images: Path | None = None
    truth: Path | None = None
    rules: AnnotationRules = DRAWN
    """How annotations that are drawn marks are read."""


def own_name(store: Path) -> str:
    """Of the case of a store, without the folders that it lies in."""
    return store.name.removesuffix(SUFFIX)


def paired(place: Path | None, store: Path) -> Path | None:
    """What is named itself, or the file of a folder that has the name of a store's case."""
    if place is None or not place.is_dir() or place.suffix == ".zarr":
        return place
    own = own_name(store)
    marks = {f"{own}{suffix}" for suffix in MARKS}
    others = (p for p in inside(place) if p.resolve() != store.resolve())
    return next((p for p in others if p.name in marks or (p.suffix != ".zarr" and case_name(p) == own)), None)


def inside(folder: Path) -> Iterator[Path]:
    """Files and .zarr folders below a folder, in the order of their names."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.suffix == ".zarr" or entry.is_file():
            yield entry
        elif entry.is_dir() and not entry.is_symlink():
            yield from inside(entry)


def layer_names(store: CaseStore, places: Places) -> list[str]:
    """What a case can show, by name and in order, without opening any of it."""
    has = {
        "confidence": store.plan.confidence,
        "image": store.plan.image_shape is not None or paired(places.images, store.path) is not None,
        "mask": True,
        "truth": paired(places.truth, store.path) is not None,
    }
    return [name for name, there in has.items() if there]


def report_of(store: Path) -> Report | None:
    """What the run said, if it still lies beside the store."""
    found = read_outcome(store.parent, own_name(store))
    return found if isinstance(found, Report) else None


def class_facts(classes: Sequence[MaskClass], report: Report | None) -> list[dict[str, Any]]:
    """Each class with its share and its area or volume, None where no report says it."""
    sizes = {size.index: size for size in report.classes} if report else {}
    return [
        {
            "index": c.index,
            "name": c.name,
            "color": list(c.color),
            "share": sizes[c.index].share if c.index in sizes else None,
            "area_mm2": sizes[c.index].area_mm2 if c.index in sizes else None,
            "volume_ml": sizes[c.index].volume_ml if c.index in sizes else None,
        }
        for c in classes
    ]
