"""A training run as one file: what is trained, on what, how, and what its card will say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wsiseg.classes import BREAST8, MaskClass
from wsiseg.config import explain, read_mapping
from wsiseg.errors import ManifestError
from wsiseg.models.card import NetworkSpec, Preprocessing, Spacing

MAX_ZOOM = 16.0


class RunFile(BaseModel):
    """Settings of a training run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="name of the model that comes out")
    manifest: Path = Field(description="CSV of cases, relative to this file")
    root: Path | None = Field(None, description="folder of the manifest's paths, relative to this file")
    out: Path = Field(Path(), description="folder for weights and cards, relative to this file")
    network: NetworkSpec
    classes: Literal["breast8"] | tuple[MaskClass, ...] = "breast8"
    background: int | None = 0
    spacing: Spacing
    preprocessing: Preprocessing

    patch: int = Field(256, ge=8, description="side of a training patch, pixels")
    batch: int = Field(8, ge=1, description="patches a step")
    steps: int = Field(600, ge=1)
    learning_rate: float = Field(3e-3, gt=0, description="peak of the one-cycle schedule")
    weight_decay: float = Field(5e-4, ge=0)
    class_weight_c: float = Field(1.10, gt=1, description="c of the class weights 1 / ln(c + f)")
    zoom: tuple[float, float] = Field((1.0, 1.0), description="range of random magnification")
    stain_jitter: float = Field(0.0, ge=0, lt=1, description="relative change of stain amounts")
    min_piece: int = Field(64, ge=8, description="smallest side of a mosaic's pieces, pixels")
    glass_share: float = Field(0.0, ge=0, lt=1, description="share of pieces that are bare glass")
    seed: int = 0
    threads: int | None = Field(None, ge=1)
    leave_one_patient_out: bool = Field(
        False, description="also train without each patient in turn, and score"
    )

    training_data: str
    licence: str
    intended_use: str
    limits: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        arguments, count = self.network.arguments, len(self.mask_classes)
        wanted = {"classes": count, "variant": ("A", "B"), "ndim": 2, "channels": 3}
        for name, value in wanted.items():
            allowed = value if isinstance(value, tuple) else (value,)
            if arguments.get(name, allowed[0]) not in allowed:
                raise ValueError(
                    f"the network's {name} must be {value} for this trainer, got {arguments[name]}"
                )
        if not 0 < self.zoom[0] <= self.zoom[1] <= MAX_ZOOM:
            raise ValueError(f"zoom {self.zoom} must rise between 0 and {MAX_ZOOM}")
        if self.patch % 8:
            raise ValueError(f"patch {self.patch} must be a multiple of 8")
        if self.background is not None and self.background >= count:
            raise ValueError(f"background {self.background} is not a class")
        if not len(self.preprocessing.mean) == len(self.preprocessing.std) == 3:
            raise ValueError("preprocessing needs three means and three stds")
        if self.preprocessing.statistics == "case":
            raise ValueError("this trainer takes mean and std from the run file: statistics must be card")
        return self

    @property
    def mask_classes(self) -> tuple[MaskClass, ...]:
        """The classes of the masks."""
        return BREAST8 if self.classes == "breast8" else self.classes


def read_run(path: Path) -> RunFile:
    """The run in a YAML file, its paths made absolute. Raises UsageError, ManifestError."""
    data = read_mapping(path)
    try:
        run = RunFile(**data)
    except ValidationError as err:
        raise ManifestError(f"{path}: {explain(err, known=list(RunFile.model_fields))}") from None
    folder = path.resolve().parent
    paths: dict[str, Any] = {"manifest": folder / run.manifest, "out": folder / run.out}
    if run.root is not None:
        paths["root"] = folder / run.root
    return run.model_copy(update=paths)


def write_run(run: RunFile, path: Path) -> None:
    """Store a run beside its weights, without the folders of the machine it ran on."""
    data = run.model_dump(mode="json", exclude={"manifest", "root", "out"})
    data["manifest"] = run.manifest.name
    path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
