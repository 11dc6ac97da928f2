"""OME-Zarr 0.5 metadata, built and checked by ome-zarr-models.

Levels are halved by whole pixels, so the centre of the first pixel moves by (2^n - 1) / 2 pixels of
level 0: that is each level's translation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ome_zarr_models.v05.image import ImageAttrs
from ome_zarr_models.v05.image_label import ImageLabelAttrs
from ome_zarr_models.v05.labels import LabelsAttrs

from wsiseg.classes import VOID, MaskClass

VERSION = "0.5"
VOID_RGBA = [128, 128, 128, 255]


def _multiscale(
    *, name: str, paths: Sequence[str], axes: str, spacing: Sequence[float], unit: str, channels: bool
) -> dict[str, Any]:
    lead = 1 if channels else 0
    described = [{"name": "c", "type": "channel"}] if channels else []
    described += [{"name": a, "type": "space", "unit": unit} for a in axes]
    datasets = []
    for level, path in enumerate(paths):
        factor = 2**level
        scale = [1.0] * lead + [s * factor for s in spacing]
        move = [0.0] * lead + [s * (factor - 1) / 2 for s in spacing]
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if level:
            transforms.append({"type": "translation", "translation": move})
        datasets.append({"path": path, "coordinateTransformations": transforms})
    return {"name": name, "axes": described, "datasets": datasets}


def image_metadata(
    *, name: str, paths: Sequence[str], axes: str, spacing: Sequence[float], unit: str, channels: bool
) -> dict[str, Any]:
    """The "ome" attribute of a multiscale image; RGB colours for viewers where it has channels."""
    scale = _multiscale(name=name, paths=paths, axes=axes, spacing=spacing, unit=unit, channels=channels)
    checked = ImageAttrs.model_validate({"version": VERSION, "multiscales": [scale]})
    data = _dump(checked)
    if channels and axes == "yx":
        window = {"min": 0, "max": 255, "start": 0, "end": 255}
        colors = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}
        data["omero"] = {
            "channels": [
                {"label": label, "color": color, "active": True, "window": window}
                for label, color in colors.items()
            ]
        }
    return data


def label_group_metadata(names: Sequence[str]) -> dict[str, Any]:
    """The "ome" attribute of the group of labels."""
    return _dump(LabelsAttrs.model_validate({"version": VERSION, "labels": list(names)}))


def label_metadata(
    *,
    name: str,
    levels: int,
    axes: str,
    spacing: Sequence[float],
    unit: str,
    classes: Sequence[MaskClass],
) -> dict[str, Any]:
    """The "ome" attribute of a label image, with colours and class names."""
    scale = _multiscale(
        name=name,
        paths=[str(n) for n in range(levels)],
        axes=axes,
        spacing=spacing,
        unit=unit,
        channels=False,
    )
    colors = [{"label-value": c.index, "rgba": [*c.color, 255]} for c in classes]
    names = [{"label-value": c.index, "class": c.name} for c in classes]
    label = {
        "colors": [*colors, {"label-value": VOID, "rgba": VOID_RGBA}],
        "properties": [*names, {"label-value": VOID, "class": "void"}],
        "source": {"image": "../../"},
    }
    checked = ImageLabelAttrs.model_validate(
        {"version": VERSION, "multiscales": [scale], "image-label": label}
    )
    return _dump(checked)


def _dump(model: Any) -> dict[str, Any]:
    data: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    return data
