"""A training run as one file: what is trained, on what, how, and what its card will say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from wsiseg.classes import BREAST8, MaskClass
from wsiseg.config import explain, first_error, read_mapping
from wsiseg.errors import ManifestError
from wsiseg.models.card import NetworkSpec, Preprocessing, Spacing
from wsiseg.models.zoo import zoo_names
from wsiseg.training.sections import (
    Augmentation,
    CardText,
    Data,
    Distil,
    Loss,
    Optimiser,
    Patches,
    Pretext,
    Schedule,
    Section,
    Start,
    Validation,
)

UNITS = {"yx": "micrometer", "zyx": "millimeter"}


class Run(Section):
    """Settings of a training run on pictures and slides (axes yx) or volumes (zyx)."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="name of the model that comes out")
    axes: Literal["yx", "zyx"] = Field("yx", description="yx for pictures and slides, zyx for volumes")
    network: NetworkSpec = Field(description="what is trained: name and arguments")
    classes: Literal["breast8"] | tuple[MaskClass, ...] = Field(
        "breast8", description="the classes of the masks: index, name and color each, or breast8"
    )
    background: int | None = Field(0, ge=0, description="class of glass or of what is outside; null: none")
    diagnoses: tuple[str, ...] = Field(
        (), description="what the second output says of a whole patch; names as in the manifest's diagnosis"
    )
    spacing: Spacing = Field(description="pixel size at which is trained; cases of another are resampled")
    preprocessing: Preprocessing = Field(description="from pixels to the network's input, as at inference")
    mask_resampling: Literal["nearest", "scores"] = Field(
        "nearest",
        description="how a mask returns to another pixel size: nearest, or scores (mixed, then the highest)",
    )
    out: Path = Field(Path(), description="folder for weights, card and log, relative to this file")
    data: Data = Field(description="the cases")
    patches: Patches = Field(default_factory=Patches, description="what a step sees")
    augmentation: Augmentation = Field(
        default_factory=Augmentation,
        description="how patches are varied",
    )
    losses: tuple[Loss, ...] = Field((Loss(),), min_length=1, description="what is minimised: their sum")
    optimiser: Optimiser = Field(default_factory=Optimiser, description="how weights move")
    schedule: Schedule = Field(default_factory=Schedule, description="how fast, by step")
    steps: int = Field(600, ge=1, description="steps of the optimiser, at most")
    average: float = Field(
        0.0, ge=0, lt=1, description="decay of the running mean of the weights, which is kept; 0: none"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="float32, or bfloat16: mixed precision, on a GPU only"
    )
    validation: Validation = Field(default_factory=Validation, description="scores while it trains")
    start: Start | None = Field(None, description="weights of another model to begin with")
    distil: Distil | None = Field(None, description="a trained network whose scores are learned, too")
    pretext: Pretext | None = Field(
        None, description="train without labels, to start another run from; annotations are not read"
    )
    checkpoint_every: int = Field(100, ge=1, description="steps between two states that a kill leaves")
    seed: int = Field(0, ge=0, description="of weights, patches and augmentation")
    threads: int | None = Field(None, ge=1, description="of the network on a CPU; null: torch's default")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    card: CardText = Field(description="what the card says besides")

    @property
    def mask_classes(self) -> tuple[MaskClass, ...]:
        """The classes of the masks."""
        return BREAST8 if self.classes == "breast8" else self.classes

    @property
    def patch(self) -> tuple[int, ...]:
        """Pixels of a patch, per axis."""
        size = self.patches.size
        return size if isinstance(size, tuple) else (size,) * len(self.axes)

    @property
    def channels(self) -> int:
        """Channels of the image."""
        return len(self.preprocessing.mean)

    @property
    def wanted_spacing(self) -> tuple[float, ...]:
        """Pixel size per axis."""
        value = self.spacing.value
        return value if isinstance(value, tuple) else (value,) * len(self.axes)

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        count = len(self.mask_classes)
        if [c.index for c in self.mask_classes] != list(range(count)):
            raise ValueError("classes must be numbered 0, 1, 2, ... in order")
        if self.background is not None and self.background >= count:
            raise ValueError(f"background {self.background} is not a class")
        lists: list[tuple[str, Any]] = [("patches.class_shares", self.patches.class_shares)]
        lists += [("losses.class_weights", loss.class_weights) for loss in self.losses]
        for name, values in lists:
            if isinstance(values, tuple) and len(values) != count:
                raise ValueError(f"{name} has {len(values)} values for {count} classes")
        return self

    @model_validator(mode="after")
    def _axes_fit(self) -> Self:
        count, patches = len(self.axes), self.patches
        if len(self.patch) != count or min(self.patch) < 8:
            raise ValueError(f"patches.size {self.patch} must be {count} sides of at least 8 pixels")
        if len(self.wanted_spacing) != count:
            raise ValueError(
                f"spacing {self.spacing.value} must have one entry per axis ({', '.join(self.axes)})"
            )
        if self.spacing.unit != UNITS[self.axes]:
            raise ValueError(f"the spacing of images with axes {self.axes} is in {UNITS[self.axes]}")
        if len(self.preprocessing.std) != self.channels:
            raise ValueError("preprocessing needs as many means as stds, one of each for every channel")
        if set(self.augmentation.flip) - set(self.axes):
            raise ValueError(f"augmentation.flip {self.augmentation.flip!r} must name axes of {self.axes!r}")
        if self.axes == "yx":
            if self.channels != 3:
                raise ValueError("preprocessing needs three means and three stds: pictures are RGB")
            if self.preprocessing.statistics == "case" and patches.glass_share:
                raise ValueError("bare glass is of no case: take glass_share out, or set statistics: card")
        elif patches.glass_share or self.augmentation.quarter_turns or self.pretext:
            raise ValueError("glass_share, quarter_turns and pretext are for pictures (axes: yx)")
        wrong = self.augmentation.mri if self.axes == "yx" else self.augmentation.histology
        if wrong is not None:
            raise ValueError(
                "augmentation.mri is for volumes (axes: zyx), augmentation.histology for pictures (axes: yx)"
            )
        return self

    @model_validator(mode="after")
    def _outputs_fit(self) -> Self:
        joint = any(loss.output == "diagnosis" for loss in self.losses)
        if joint != bool(self.diagnoses):
            raise ValueError("diagnoses and a loss with output: diagnosis belong together; give both or none")
        if self.distil and self.pretext:
            raise ValueError("distil and pretext are two ways to learn; give one of them")
        if joint and self.patches.mosaic:
            raise ValueError("a mosaic is made of several cases and has no diagnosis: set mosaic: false")
        if self.patches.glass_share and not (self.patches.mosaic and self.background is not None):
            raise ValueError("glass_share is of a mosaic's pieces: it needs mosaic: true and a background")
        if self.pretext and len(set(self.patch)) != 1:
            raise ValueError(f"pretext turns patches: their sides must be equal, got {self.patch}")
        return self


def read_run(path: Path) -> Run:
    """The run in a YAML or TOML file, its paths made absolute. Raises UsageError, ManifestError."""
    try:
        run = Run(**read_mapping(path))
    except ValidationError as err:
        known = known_keys(Run, first_error(err)["loc"])
        raise ManifestError(f"{path}: {explain(err, known=known)}") from None
    folder = path.resolve().parent
    data = {"manifest": folder / run.data.manifest}
    if run.data.root is not None:
        data["root"] = folder / run.data.root
    changes: dict[str, Any] = {"out": folder / run.out, "data": run.data.model_copy(update=data)}
    if run.start is not None and run.start.card not in zoo_names():
        changes["start"] = run.start.model_copy(update={"card": str(folder / run.start.card)})
    if run.distil is not None and run.distil.teacher not in zoo_names():
        changes["distil"] = run.distil.model_copy(update={"teacher": str(folder / run.distil.teacher)})
    return run.model_copy(update=changes)


def known_keys(model: type[BaseModel], place: tuple[Any, ...]) -> list[str]:
    """Names of the settings of the section in which a place (section, ..., key) lies."""
    fields = model.model_fields
    for part in place[:-1]:
        inner = fields[part].annotation if part in fields else None
        found = section_of(inner)
        if found is not None:
            fields = found.model_fields
    return list(fields)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The first model inside an annotation such as `Start | None` or `tuple[Loss, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (section_of(a) for a in getattr(annotation, "__args__", ()))
    return next((m for m in inner if m is not None), None)


def portable(run: Run) -> dict[str, Any]:
    """A run as plain values, without the folders of the machine it runs on."""
    data = run.model_dump(mode="json", exclude={"out": True, "data": {"root"}})
    data["data"]["manifest"] = run.data.manifest.name
    if run.start is not None:
        data["start"]["card"] = Path(run.start.card).name
    if run.distil is not None:
        data["distil"]["teacher"] = Path(run.distil.teacher).name
    return data


def write_run(run: Run, path: Path) -> None:
    """Store a run beside its weights."""
    path.write_text(yaml.safe_dump(portable(run), sort_keys=False, allow_unicode=True), encoding="utf-8")
