"""The sections of a run file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, model_validator

MAX_ZOOM = 16.0


class Section(BaseModel):
    """A part of a run file: an unknown key in it is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Section):
    """The cases and how they are read."""

    manifest: Path = Field(description="CSV of cases, relative to this file")
    root: Path | None = Field(None, description="folder of the manifest's paths, relative to this file")
    modalities: tuple[str, ...] = Field(
        (), description="channels of a volume that is a folder with a file for each"
    )
    allow_empty_classes: bool = Field(
        False, description="train although a class has no pixel in the cases trained on"
    )
    allow_upsampling: bool = Field(
        False, description="enlarge pictures that are coarser than the run's spacing"
    )


class Patches(Section):
    """What a step sees."""

    size: int | tuple[int, ...] = Field(256, description="sides, pixels: one for all axes or one each")
    batch: int = Field(8, ge=1, description="patches a step")
    balanced: float = Field(
        0.0, ge=0, le=1, description="share of patches centred on a pixel of a class that is drawn first"
    )
    class_shares: tuple[NonNegativeFloat, ...] | None = Field(
        None, description="how often each class is drawn for that, relative; null: all alike"
    )
    case_power: float = Field(
        0.0,
        ge=0,
        le=1,
        description="cases are drawn by their pixels of that class to this power; 0: all alike",
    )
    mosaic: bool = Field(
        False, description="patches made of pieces of several cases, so that what is near decides"
    )
    min_piece: int = Field(64, ge=8, description="smallest side of a mosaic's pieces, pixels")
    glass_share: float = Field(0.0, ge=0, lt=1, description="share of a mosaic's pieces that are bare glass")
    workers: int = Field(0, ge=0, le=64, description="threads that make patches ahead; 0: none")

    @model_validator(mode="after")
    def _something_drawn(self) -> Self:
        if self.class_shares is not None and not sum(self.class_shares):
            raise ValueError("patches.class_shares are all 0; at least one class must be drawn")
        return self


class Histology(Section):
    """How H&E pixels are varied."""

    stain_jitter: float = Field(
        0.0, ge=0, lt=1, description="amounts of stain are multiplied by 1 - this, up to 1 / that; 0: none"
    )
    stain_vectors: tuple[Literal["ruifrok-hed", "ruifrok-he", "macenko-he"], ...] = Field(
        ("ruifrok-hed",), min_length=1, description="colours of the stains; of several, one is drawn a patch"
    )
    stain_turn: float = Field(
        0.0, ge=0, le=0.2, description="standard deviation added to the stains' unit vectors of density"
    )
    stain_offset: float = Field(
        0.02, ge=0, le=1, description="optical density that is added to every stain, at most"
    )
    white_point: float = Field(
        0.0, ge=0, le=1, description="optical density that is added to every channel, at most"
    )
    degraded: float = Field(
        0.5, ge=0, le=1, description="share of patches that are blurred, and, drawn anew, compressed"
    )
    blur_px: float = Field(
        0.0, ge=0, le=16, description="largest standard deviation of the blur, pixels; 0: none"
    )
    jpeg_quality: int | None = Field(None, ge=5, le=100, description="lowest JPEG quality; null: none")


class Mri(Section):
    """How intensities of a volume are varied."""

    bias_field: float = Field(
        0.0, ge=0, le=1, description="largest coefficient of a smooth field (exponent of degree 3)"
    )
    gamma: float = Field(1.0, ge=1, le=5, description="largest exponent of the input, or 1 by it; 1: none")
    intensity_jitter: float = Field(
        0.0, ge=0, lt=1, description="relative change of contrast, and offset, of the input"
    )
    noise: float = Field(0.0, ge=0, description="largest standard deviation added to the input")


class Augmentation(Section):
    """How a patch is varied; the truth goes along."""

    flip: str = Field("", pattern="^z?y?x?$", description="axes along which an image may be mirrored")
    quarter_turns: bool = Field(False, description="turn pictures by 0, 90, 180 or 270 degrees")
    warped: float = Field(1.0, ge=0, le=1, description="share of patches that are turned freely and zoomed")
    rotation_deg: float = Field(0.0, ge=0, le=180, description="largest free turn, round each axis")
    zoom: tuple[float, float] = Field((1.0, 1.0), description="range of magnification")
    zoom_each_axis: bool = Field(False, description="draw the magnification for every axis anew")
    histology: Histology | None = Field(None, description="of H&E pictures")
    mri: Mri | None = Field(None, description="of volumes")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not 0 < self.zoom[0] <= self.zoom[1] <= MAX_ZOOM:
            raise ValueError(f"augmentation.zoom {self.zoom} must rise between 0 and {MAX_ZOOM}")
        return self


class Loss(Section):
    """One loss on one output of the network."""

    kind: Literal["cross-entropy", "dice", "dice-cross-entropy", "focal"] = Field(
        "cross-entropy",
        description="cross-entropy, dice, dice-cross-entropy or focal; dice leaves the background out",
    )
    output: int | Literal["diagnosis"] = Field(
        0, description="which output it is on: 0 the mask, 1, 2, ... auxiliary masks, or diagnosis"
    )
    weight: float = Field(1.0, gt=0, description="factor of this loss in the sum")
    class_weights: Literal["inverse-log", "equal"] | tuple[NonNegativeFloat, ...] = Field(
        "inverse-log",
        description="of cross-entropy and focal: inverse-log (1 / ln(c + share)), equal, or a list",
    )
    c: float = Field(1.10, gt=1, description="c of inverse-log")
    gamma: float = Field(2.0, ge=0, description="exponent of focal")

    @model_validator(mode="after")
    def _known_output(self) -> Self:
        if isinstance(self.output, int) and self.output < 0:
            raise ValueError(f"losses.output {self.output} must be 0, 1, 2, ... or diagnosis")
        if self.output == "diagnosis" and self.kind != "cross-entropy":
            raise ValueError(f"a diagnosis is learned by cross-entropy, not by {self.kind}")
        return self


class Optimiser(Section):
    """How weights move."""

    kind: Literal["adam", "sgd", "adamw"] = Field(
        "adamw", description="adamw, adam (ESPNet's) or sgd (EdgeNets', Y-Net's, WACV'18's)"
    )
    learning_rate: float = Field(3e-3, gt=0, description="highest of the schedule, for the last layer")
    weight_decay: float = Field(5e-4, ge=0, description="pull towards 0; adam and sgd add it to the gradient")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of adam and adamw")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    nesterov: bool = Field(False, description="of sgd, as WACV'18 had it")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of all gradients; null: any")
    depth_factor: float = Field(
        1.0, gt=0, le=1e4, description="how many times faster the last layer learns than the first"
    )


class Schedule(Section):
    """The learning rate by step, as a share of the highest."""

    kind: Literal["one-cycle", "constant", "step", "poly", "hybrid", "cosine"] = Field(
        "one-cycle",
        description="one-cycle, constant, step (ESPNet's), poly, hybrid (EdgeNets', base x 5) or cosine",
    )
    every: int = Field(1000, ge=1, description="of step: steps between two falls")
    factor: float = Field(0.5, gt=0, le=1, description="of step: what is left after a fall")
    power: float = Field(0.9, gt=0, description="of poly: exponent of the share of steps that remain")
    warmup: int = Field(0, ge=0, description="of cosine: steps in which the rate rises from near 0")
    floor: float = Field(0.0, ge=0, lt=1, description="of cosine: share at the end")


class Validation(Section):
    """Scores of the cases whose split is validation, and the end of a training."""

    every: int = Field(0, ge=0, description="steps between two scores; 0: once, at the end")
    score: Literal["mean IoU", "mean Dice"] = Field(
        "mean IoU",
        description="what counts as better: mean IoU or mean Dice of classes in the truth but the background",
    )
    keep: Literal["last", "best"] = Field("last", description="last or best: which weights are kept")
    patience: PositiveInt | None = Field(
        None, description="scores in a row without a better one after which training ends; null: never"
    )
    calibrate: bool = Field(
        False, description="fit the card's temperature on these cases once trained; masks stay as they are"
    )
    test: bool = Field(True, description="score the cases whose split is test, once, at the end")
    leave_one_patient_out: bool = Field(
        False, description="also train without each patient in turn, and score on that patient"
    )

    @model_validator(mode="after")
    def _scores_to_choose_from(self) -> Self:
        if not self.every and (self.keep == "best" or self.patience is not None):
            raise ValueError("validation.keep best and validation.patience need validation.every")
        return self


class Unfreeze(Section):
    """Layers that begin to learn."""

    step: int = Field(ge=1, description="from this step on")
    layers: tuple[str, ...] = Field(min_length=1, description="names of layers, or of parts of the network")


class Start(Section):
    """Weights of another model to begin with, and what of the network learns when."""

    card: str = Field(description="name of a shipped model, or path of a card relative to this file")
    freeze: tuple[str, ...] = Field((), description="layers, or parts such as encoder, that do not learn")
    unfreeze: tuple[Unfreeze, ...] = Field((), description="frozen layers that learn from a step on")


class Distil(Section):
    """A larger network to learn from: what it says of a patch is a second truth."""

    teacher: str = Field(description="name of a shipped model, or path of a card relative to this file")
    temperature: float = Field(
        4.0,
        gt=0,
        description="by which scores of both are divided: the higher, the more unlikely classes count",
    )
    weight: float = Field(1.0, gt=0, description="in the sum of the losses")


class Pretext(Section):
    """What is learned from slides without labels, with the weight of each task in the loss."""

    haematoxylin: float = Field(1.0, ge=0, description="amount of haematoxylin, from the image without it")
    rotation: float = Field(0.25, ge=0, description="by how many quarter turns a patch was turned")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.haematoxylin + self.rotation:
            raise ValueError("pretext needs a task: haematoxylin and rotation are both 0")
        return self


class CardText(Section):
    """What the card says besides what was measured."""

    training_data: str = Field(description="what was trained on, with its licence")
    licence: str = Field(description="of the weights")
    intended_use: str = Field(description="what the model is for")
    limits: tuple[str, ...] = Field((), description="what the model cannot do, one sentence each")
