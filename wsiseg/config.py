"""Settings of a segmentation: every policy default lives here; the core takes explicit values."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wsiseg.bounded import LARGEST_SETTINGS, in_short, parse_settings, read_bounded, shown
from wsiseg.errors import UsageError

Model = TypeVar("Model", bound=BaseModel)
Views = Literal["none", "flips", "flips and turns"]
"""Of a window, for a mean over them."""
Backend = Literal["torch", "openvino", "onnxruntime"]
"""What computes a network."""
Precision = Literal["float32", "bfloat16", "float16"]
"""Of a network's numbers."""


class AnnotationRules(BaseModel):
    """How drawn marks become class indices; of images and volumes of class indices it says nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    class_names: Path | None = Field(
        None, description="table of what names in annotations mean: CSV (annotation,class) or YAML"
    )
    annotation_overlap: Literal["later", "smaller"] = Field(
        "later", description="which of two marks counts where they overlap: the later, or the smaller one"
    )
    unannotated: Literal["ignore", "background"] = Field(
        "ignore", description="what lies in no mark: counts nowhere, or is the class called background"
    )
    annotation_units: Literal["pixels", "micrometres"] = Field(
        "pixels", description="unit of the marks' corners: level-0 pixels, or micrometres"
    )
    annotation_frame: Literal["level0", "bounds"] = Field(
        "level0", description="where the marks' (0, 0) lies: at level 0's corner, or at that of the bounds"
    )


DRAWN = AnnotationRules()
"""As marks are read unless something else is asked for."""


class SegmentConfig(AnnotationRules):
    """How one case is segmented. Everything here is stored with the mask."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    mpp: float | None = Field(None, gt=0, description="level-0 pixel size in µm, overrides the file")
    executor: Literal["auto", "streaming", "windowed"] = Field(
        "auto",
        description="how rows are computed: in one exact pass, in windows, or whichever the model allows",
    )
    backend: Literal["auto", "torch", "openvino", "onnxruntime"] = Field(
        "auto",
        description="what computes the network: torch, or in windows on a CPU what is the fastest there",
    )
    precision: Precision = Field("float32", description="of the network's numbers; float16 on GPUs only")
    memory: int | None = Field(None, gt=0, description="memory that streaming may take, MB")
    image: Literal["full", "model", "none"] = Field(
        "full", description="stored image: level 0, the model's resolution, or none"
    )
    confidence: bool = Field(
        False, description="also store how probable the mask's class is, for every pixel"
    )
    exact: bool = Field(False, description="halo as large as the receptive field")
    taper: int | None = Field(
        None, ge=0, description="half-width of the cross-fade over core borders, pixels; None: the model's"
    )
    trust_code: bool = Field(False, description="run code that the model's card names")
    keep_identifiers: bool = Field(
        False, description="put what the file says of patient, specimen and hospital into the report"
    )
    structure: bool = Field(
        False, description="also count how the tissue of a slide is built: areas, boundaries, layers, pieces"
    )
    tissue_filter: bool = Field(True, description="skip glass and set it to background")
    allow_upsampling: bool = Field(False, description="accept a slide coarser than the model")
    views: Views = Field(
        "none",
        description="mirrored (and in a plane turned) views of a window, whose probabilities are averaged",
    )
    core: int | None = Field(None, gt=0, description="kept part of a window, pixels per axis, at most")
    halo: int | None = Field(None, ge=0, description="context round the core, pixels per axis")
    batch: int = Field(1, ge=1, le=4096, description="windows per forward pass")
    readers: int = Field(2, ge=1, le=256, description="threads that read ahead")
    threads: int | None = Field(None, ge=1, le=1024, description="threads of the network on a CPU")
    slab: int | None = Field(None, gt=0, description="rows per slab of the level-0 mask, a multiple of chunk")
    chunk: int | None = Field(
        None, ge=16, le=8192, description="side of a stored chunk of the mask; None: 512, for volumes 64"
    )
    tissue_grid_um: float = Field(8.0, gt=0, description="pixel size of the tissue mask, µm")
    limit_s: float | None = Field(
        None, gt=0, description="what a case of a batch may take, s; None: any time"
    )
    lease_s: float = Field(
        60.0, ge=1, description="a process that gives no sign of life for so long has lost its case, s"
    )
    cache: Path | None = Field(
        None, description="folder for copies of inputs in object stores; None: in the user's cache folder"
    )
    cache_gb: float = Field(100.0, gt=0, description="what those copies may take, GB")
    tissue_margin_um: float = Field(50.0, ge=0, description="dilation of the tissue mask, µm")


def read_mapping(path: Path) -> dict[str, Any]:
    """Contents of a TOML or YAML file as a mapping. Raises UsageError."""
    try:
        text = read_bounded(path, most=LARGEST_SETTINGS).decode("utf-8")
        data = parse_settings(text, toml=path.suffix == ".toml")
    except OSError as err:
        raise UsageError(f"cannot read {path}: {err.strerror}") from None
    except ValueError as err:
        raise UsageError(f"{path} is not valid TOML or YAML: {in_short(err)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"{path} must hold settings by name, found {type(data).__name__}")
    for key in data:
        if not isinstance(key, str):
            raise UsageError(f"{path} has {shown(key)} where a setting's name should stand")
    return data


def first_error(err: ValidationError) -> Any:
    """The mistake to tell first: an unknown key is often the reason why another is missing."""
    return min(err.errors(), key=lambda error: error["type"] != "extra_forbidden")


def explain(err: ValidationError, *, known: list[str]) -> str:
    """One line for the first mistake that pydantic found, naming the known keys if one is unknown."""
    first = first_error(err)
    where = ".".join(str(part) for part in first["loc"])
    if not where:
        return str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"unknown setting {shown(where)}; known are: {', '.join(known)}"
    return f"setting {where!r} = {shown(first.get('input'))}: {first['msg']}"


def make_config(options: dict[str, Any], *, file: Path | None = None) -> SegmentConfig:
    """Settings from a file, overridden by the `options` that are not None. Raises UsageError."""
    given = {name: value for name, value in options.items() if value is not None}
    merged = (read_mapping(file) if file else {}) | given
    return _valid(SegmentConfig, merged)


def make_rules(options: dict[str, Any]) -> AnnotationRules:
    """Rules of annotations; what is None is left open. Raises UsageError."""
    return _valid(AnnotationRules, {name: value for name, value in options.items() if value is not None})


def _valid(model: type[Model], values: dict[str, Any]) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as err:
        raise UsageError(explain(err, known=sorted(model.model_fields))) from None
