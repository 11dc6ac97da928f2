"""The model card: everything that inference needs to know, and what a user must know to trust it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from wsiseg.bounded import LARGEST_RECORD, in_short, read_bounded
from wsiseg.classes import MaskClass
from wsiseg.errors import ModelError
from wsiseg.files import write_whole
from wsiseg.groups import ClassGroup, check_groups

RESEARCH_USE = "research use only, not for diagnosis"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSpec(_Frozen):
    """Which network, built with which arguments."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _no_options(self) -> Self:
        if "trust_code" in self.arguments:
            raise ValueError("trust_code is the user's to give, not a card's")
        return self


class Preprocessing(_Frozen):
    """From pixels as read to the network's input: (pixel - mean) / std * factor, per channel.

    Of a case, `mean` and `std` are those of its foreground ("zscore"), or where its lowest intensity
    lies and how far the highest is from there ("minmax"), or the same of two percentiles, beyond which
    intensities are cut off ("percentiles").
    """

    channel_order: Literal["RGB", "BGR"] = "RGB"
    statistics: Literal["card", "case"] = Field(
        "card", description="mean and std from this card, or from the foreground of each case"
    )
    method: Literal["zscore", "minmax", "percentiles"] = Field("zscore", description="of a case's statistics")
    percentiles: tuple[float, float] = (0.5, 99.5)
    foreground: Literal["tissue", "stained", "nonzero"] = Field(
        "tissue",
        description="tissue: all pixels of the regions that have tissue; stained: of these, the pixels that "
        "are not as bright as glass; nonzero: what is 0 counts in no statistics and is 0 for the network "
        "too, and where all channels are 0 the mask is background",
    )
    mean: tuple[float, ...] = Field((0.0, 0.0, 0.0), description="in channel_order, as the file has them")
    std: tuple[PositiveFloat, ...] = Field((255.0, 255.0, 255.0), description="in channel_order")
    factor: float = Field(1.0, description="applied last")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"percentiles {self.percentiles} must rise between 0 and 100")
        return self


class Spacing(_Frozen):
    """Pixel size that the network was trained at."""

    value: PositiveFloat | tuple[PositiveFloat, ...] = Field(description="of all axes, or one each")
    unit: Literal["micrometer", "millimeter"] = "micrometer"
    assumed: bool = Field(False, description="True where the training data did not state it")


class HaloAgreement(_Frozen):
    """Share of a mask that equals the mask of one window over the whole image."""

    core: int
    halo: int
    agreement: float = Field(ge=0, le=1)


class WindowSpec(_Frozen):
    """How to cut an image for this network, in pixels of its own spacing."""

    output_stride: int = Field(ge=1)
    output_scale: int = Field(1, ge=1, description="input pixels per score, 8 for ESPNet-C")
    receptive_field: tuple[int, int] | None = Field(
        description="exact reach before and after a pixel; None: every pixel of the window matters"
    )
    exact_halo: int | None = Field(
        description="larger reach rounded up to the output stride; None: no halo is exact"
    )
    size: int | None = Field(
        None, gt=0, description="side of the only window that the network is for: core + 2 x halo"
    )
    sides: tuple[PositiveInt, ...] | None = Field(
        None,
        description="of the patches from which a network that sees all of its window has learned, per axis: "
        "its windows are as large, unless other ones are asked for",
    )
    output_region: tuple[int, int] | None = Field(
        None, description="first pixel of a window that gets scores, and how many do; None: all of them"
    )
    core: int = Field(1024, gt=0)
    halo: int | None = Field(None, ge=0, description="default; None: not measured, exact_halo serves")
    taper: int = Field(0, ge=0, description="default half-width of the cross-fade over core borders")
    measured_on: str = Field("", description="image and settings of the table below")
    agreement: tuple[HaloAgreement, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.halo is None and self.exact_halo is None:
            raise ValueError("a network for which no halo is exact needs a halo")
        side = self.core + 2 * (self.halo or 0)
        if self.sides is not None and (self.receptive_field is not None or self.size is not None):
            raise ValueError("sides are for a network that sees all of its window, of any size")
        if self.size is not None:
            check_size(self.size, core=self.core, halo=self.halo or 0)
        if self.output_region is not None:
            first, count = self.output_region
            if first < 0 or count < 1 or first + count > side:
                raise ValueError(f"output_region {self.output_region} lies outside a window of {side} pixels")
        return self


def check_size(size: int, *, core: int, halo: int) -> None:
    """Raises ValueError where core and halo do not make a window of `size` pixels."""
    if core + 2 * halo != size:
        raise ValueError(
            f"the network takes windows of {size} pixels only; core {core} + 2 x halo {halo} makes "
            f"{core + 2 * halo}"
        )


class ModelCard(_Frozen):
    """What a model is. Stored as JSON beside its weights."""

    name: str
    version: str = "1"
    network: NetworkSpec
    weights: str = Field(description="file name of the safetensors beside this card")
    sha256: str = Field(description="of the weights file")
    axes: Literal["yx", "zyx"] = "yx"
    channels: int = Field(3, gt=0)
    modalities: tuple[str, ...] = Field((), description="of a volume: what its channels are, in order")
    classes: tuple[MaskClass, ...]
    groups: tuple[ClassGroup, ...] = Field((), description="regions made of several classes, to be scored")
    diagnoses: tuple[str, ...] = Field(
        (), description="what the network's second output says of a whole window, one probability each"
    )
    background: int | None = Field(0, ge=0, description="class of glass; None: no tissue filter")
    spacing: Spacing | None = Field(None, description="None: pixels are used as they are")
    preprocessing: Preprocessing
    windows: WindowSpec
    scores: Literal["logits", "log-probabilities", "probabilities"] = "logits"
    temperature: float = Field(
        1.0, gt=0, description="by which scores are divided before they become probabilities (calibration)"
    )
    mask_resampling: Literal["nearest", "scores"] = Field(
        "nearest",
        description="how the mask comes to the image's own grid where that is another: the class of the "
        "nearest pixel, or of the highest score after linear interpolation",
    )
    training_data: str
    licence: str
    quality: dict[str, Any] = Field(default_factory=dict, description="measured figures")
    intended_use: str
    limits: tuple[str, ...] = Field((), description="what the model cannot do")
    notice: str = RESEARCH_USE

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if [c.index for c in self.classes] != list(range(len(self.classes))):
            raise ValueError("classes must be numbered 0, 1, 2, ... in order")
        if self.background is not None and self.background >= len(self.classes):
            raise ValueError(f"background {self.background} is not a class")
        if Path(self.weights).name != self.weights or self.weights in ("", ".."):
            raise ValueError(f"weights {self.weights!r} must be a file name beside the card")
        check_groups(self.groups, self.classes)
        if self.modalities and len(self.modalities) != self.channels:
            raise ValueError(f"{len(self.modalities)} modalities are named for {self.channels} channels")
        if not len(self.preprocessing.mean) == len(self.preprocessing.std) == self.channels:
            raise ValueError(f"mean and std must have {self.channels} values")
        return self

    @property
    def identity(self) -> str:
        """Hash of everything on the card that decides the mask, the weights included."""
        decisive = self.model_dump_json(
            include={"network", "sha256", "axes", "channels", "classes", "background",
                     "spacing", "preprocessing", "scores"}
        )  # fmt: skip
        # What only some networks have counts where it is there: other cards keep their identity.
        special = (self.diagnoses, self.windows.output_scale, self.windows.output_region)
        if special != ((), 1, None):
            decisive += json.dumps(special)
        if self.mask_resampling != "nearest":
            decisive += self.mask_resampling
        return hashlib.sha256(decisive.encode()).hexdigest()


def read_card(path: Path) -> ModelCard:
    """The card in a JSON file. Raises ModelError."""
    try:
        return ModelCard.model_validate_json(read_bounded(path, most=LARGEST_RECORD))
    except OSError as err:
        raise ModelError(f"cannot read the model card {path}: {err.strerror}") from None
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(p) for p in first["loc"]) or "the card"
        said = in_short(f"{where}: {first['msg']}")
        raise ModelError(f"{path} is not a valid model card: {said}") from None
    except ValueError as err:
        raise ModelError(f"{path} is not a valid model card: {err}") from None


def check_new_card(path: Path, *, overwrite: bool) -> None:
    """Raises ModelError where no card can be written at a path, or one is there and is to stay."""
    if path.suffix != ".json":
        raise ModelError(f"a card is a .json file, got {path}")
    if path.exists() and not (overwrite and path.is_file()):
        raise ModelError(f"{path} is there already; use --overwrite to replace it, or another --out")


def write_card(card: ModelCard, path: Path) -> None:
    """Write a card as indented JSON."""
    write_whole(path, (card.model_dump_json(indent=2) + "\n").encode())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
