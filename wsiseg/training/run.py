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


class _Run(BaseModel):
    """What every run says, whatever its images are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="name of the model that comes out")
    manifest: Path = Field(description="CSV of cases, relative to this file")
    root: Path | None = Field(None, description="folder of the manifest's paths, relative to this file")
    out: Path = Field(Path(), description="folder for weights and cards, relative to this file")
    network: NetworkSpec
    background: int | None = 0
    spacing: Spacing
    preprocessing: Preprocessing
    seed: int = 0
    threads: int | None = Field(None, ge=1)

    training_data: str
    licence: str
    intended_use: str
    limits: tuple[str, ...] = ()

    def _check(self, *, count: int, wanted: dict[str, Any], zoom: tuple[float, float]) -> None:
        """Raises ValueError for arguments of the network other than `wanted`, and for impossible values."""
        for name, value in wanted.items():
            allowed = value if isinstance(value, tuple) else (value,)
            if self.network.arguments.get(name, allowed[0]) not in allowed:
                raise ValueError(
                    f"the network's {name} must be {value} for this trainer, "
                    f"got {self.network.arguments[name]}"
                )
        if not 0 < zoom[0] <= zoom[1] <= MAX_ZOOM:
            raise ValueError(f"zoom {zoom} must rise between 0 and {MAX_ZOOM}")
        if self.background is not None and self.background >= count:
            raise ValueError(f"background {self.background} is not a class")


class RunFile(_Run):
    """Settings of a training run on pictures and slides."""

    axes: Literal["yx"] = "yx"
    classes: Literal["breast8"] | tuple[MaskClass, ...] = "breast8"

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
    leave_one_patient_out: bool = Field(
        False, description="also train without each patient in turn, and score"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        count = len(self.mask_classes)
        wanted = {"classes": count, "variant": ("A", "B"), "ndim": 2, "channels": 3}
        self._check(count=count, wanted=wanted, zoom=self.zoom)
        if self.network.name == "espnet3d" and "ndim" not in self.network.arguments:
            raise ValueError("espnet3d is for volumes: add axes: zyx to the run, or ndim: 2 to its arguments")
        if self.patch % 8:
            raise ValueError(f"patch {self.patch} must be a multiple of 8")
        if not len(self.preprocessing.mean) == len(self.preprocessing.std) == 3:
            raise ValueError("preprocessing needs three means and three stds")
        if isinstance(self.spacing.value, tuple):
            raise ValueError("the spacing of pictures is one number, in micrometer")
        if self.preprocessing.statistics == "case":
            raise ValueError("this trainer takes mean and std from the run file: statistics must be card")
        return self

    @property
    def mask_classes(self) -> tuple[MaskClass, ...]:
        """The classes of the masks."""
        return BREAST8 if self.classes == "breast8" else self.classes


class VolumeRun(_Run):
    """Settings of a training run on volumes (z, y, x) of one channel."""

    axes: Literal["zyx"]
    classes: tuple[MaskClass, ...] = Field(min_length=2)

    patch: tuple[int, int, int] = Field((40, 56, 40), description="voxels of a training patch, z, y, x")
    batch: int = Field(4, ge=1, description="patches a step")
    steps: int = Field(600, ge=1)
    learning_rate: float = Field(3e-3, gt=0, description="peak of the one-cycle schedule")
    weight_decay: float = Field(1e-2, ge=0)
    average: float = Field(0.0, ge=0, lt=1, description="decay of the running mean of the weights; 0: none")
    flip: str = Field("", pattern="^z?y?x?$", description="axes along which a volume may be mirrored")
    warped: float = Field(0.0, ge=0, le=1, description="share of patches that are turned and zoomed")
    rotation_deg: float = Field(0.0, ge=0, le=180, description="largest turn round each axis")
    zoom: tuple[float, float] = Field((1.0, 1.0), description="range of random magnification, each axis")
    intensity_jitter: float = Field(0.0, ge=0, lt=1, description="relative change of contrast, and offset")
    noise: float = Field(0.0, ge=0, description="standard deviation added to the network's input")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self._check(
            count=len(self.classes),
            wanted={"classes": len(self.classes), "channels": 1, "ndim": 3, "refinement": False},
            zoom=self.zoom,
        )
        if self.network.name != "espnet3d":
            raise ValueError(f"volumes are trained with espnet3d, got {self.network.name}")
        for name in ("classes", "channels", "refinement"):
            if name not in self.network.arguments:
                raise ValueError(f"the network's {name} must be among its arguments")
        if [c.index for c in self.classes] != list(range(len(self.classes))):
            raise ValueError("classes must be numbered 0, 1, 2, ... in order")
        if min(self.patch) < 8 or any(n % 8 for n in self.patch):
            raise ValueError(f"patch {self.patch} must be multiples of 8")
        if not len(self.preprocessing.mean) == len(self.preprocessing.std) == 1:
            raise ValueError("preprocessing needs one mean and one std: volumes of one channel are trained")
        if self.spacing.unit != "millimeter":
            raise ValueError("the spacing of volumes is in millimeter")
        return self

    @property
    def mask_classes(self) -> tuple[MaskClass, ...]:
        """The classes of the masks."""
        return self.classes


AnyRun = RunFile | VolumeRun


def read_run(path: Path) -> AnyRun:
    """The run in a YAML file, its paths made absolute; `axes: zyx` in it means volumes.

    Raises UsageError, ManifestError.
    """
    data = read_mapping(path)
    kind = VolumeRun if data.get("axes") == "zyx" else RunFile
    try:
        run: AnyRun = kind(**data)
    except ValidationError as err:
        raise ManifestError(f"{path}: {explain(err, known=list(kind.model_fields))}") from None
    folder = path.resolve().parent
    paths: dict[str, Any] = {"manifest": folder / run.manifest, "out": folder / run.out}
    if run.root is not None:
        paths["root"] = folder / run.root
    return run.model_copy(update=paths)


def write_run(run: AnyRun, path: Path) -> None:
    """Store a run beside its weights, without the folders of the machine it ran on."""
    data = run.model_dump(mode="json", exclude={"manifest", "root", "out"})
    data["manifest"] = run.manifest.name
    path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
