"""The metadata that we write are valid OME-Zarr 0.5, and say where the pixels of each level lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr
from ome_zarr_models.v05.image import Image, ImageAttrs
from ome_zarr_models.v05.image_label import ImageLabel, ImageLabelAttrs
from ome_zarr_models.v05.labels import Labels, LabelsAttrs
from pydantic import ValidationError
from zarr.storage import MemoryStore

from wsiseg.classes import BREAST8, VOID
from wsiseg.ngff import VOID_RGBA, image_metadata, label_group_metadata, label_metadata

CASES = [("yx", (0.5, 0.25), "micrometer"), ("zyx", (2.0, 0.5, 0.25), "millimeter")]


def image_of(axes: str, spacing: tuple[float, ...], unit: str, *, channels: bool) -> dict[str, Any]:
    return image_metadata(
        name="slide", paths=["0", "1", "2"], axes=axes, spacing=spacing, unit=unit, channels=channels
    )


def label_of(axes: str, spacing: tuple[float, ...], unit: str) -> dict[str, Any]:
    return label_metadata(name="tissue", levels=3, axes=axes, spacing=spacing, unit=unit, classes=BREAST8)


def group_of(ome: dict[str, Any], *, shape: tuple[int, ...], axes: str) -> zarr.Group:
    """A group in memory with arrays halved from level to level."""
    group = zarr.open_group(MemoryStore(), mode="w")
    group.attrs["ome"] = ome
    for level in range(3):
        small = tuple(-(-n // 2**level) if n > 3 else n for n in shape)
        group.create_array(
            str(level), data=np.zeros(small, np.uint8), chunks=small, dimension_names=list(axes)
        )
    return group


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize(("axes", "spacing", "unit"), CASES)
def test_images_are_valid(axes: str, spacing: tuple[float, ...], unit: str, channels: bool) -> None:
    ome = image_of(axes, spacing, unit, channels=channels)
    attributes = ImageAttrs.model_validate(ome)
    assert attributes.version == "0.5"
    assert ("omero" in ome) == (channels and axes == "yx")
    shape = (*(3,) * channels, *(20, 31, 42)[-len(axes) :])
    image = Image.from_zarr(group_of(ome, shape=shape, axes="c" * channels + axes))
    assert [d.path for d in image.ome_attributes.multiscales[0].datasets] == ["0", "1", "2"]


@pytest.mark.parametrize(("axes", "spacing", "unit"), CASES)
def test_labels_are_valid(axes: str, spacing: tuple[float, ...], unit: str) -> None:
    ome = label_of(axes, spacing, unit)
    ImageLabelAttrs.model_validate(ome)
    shape = (20, 31, 42)[-len(axes) :]
    group = group_of(ome, shape=shape, axes=axes)
    assert ImageLabel.from_zarr(group).ome_attributes.version == "0.5"


def test_the_group_of_labels_is_valid_and_names_them() -> None:
    ome = label_group_metadata(["tissue"])
    assert LabelsAttrs.model_validate(ome).labels == ["tissue"]
    root = zarr.open_group(MemoryStore(), mode="w")
    root.attrs["ome"] = ome
    inner = root.create_group("tissue")
    inner.attrs["ome"] = label_of("yx", (0.5, 0.25), "micrometer")
    for level in range(3):
        small = np.zeros((8 >> level, 12 >> level), np.uint8)
        inner.create_array(str(level), data=small, dimension_names=["y", "x"])
    assert Labels.from_zarr(root).ome_attributes.labels == ["tissue"]


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize(("axes", "spacing", "unit"), CASES)
def test_every_level_lies_on_the_same_extent(
    axes: str, spacing: tuple[float, ...], unit: str, channels: bool
) -> None:
    """The corner of pixel 0 of each level is the corner of the image: centre minus half a pixel."""
    (scale,) = image_of(axes, spacing, unit, channels=channels)["multiscales"]
    assert [a["name"] for a in scale["axes"]] == [*("c" * channels), *axes]
    assert [a.get("unit") for a in scale["axes"]] == [*((None,) * channels), *((unit,) * len(axes))]
    for level, dataset in enumerate(scale["datasets"]):
        found = {t["type"]: np.array(t[t["type"]]) for t in dataset["coordinateTransformations"]}
        size = found["scale"]
        move = found.get("translation", np.zeros_like(size))
        if channels:
            assert (size[0], move[0]) == (1.0, 0.0)
            size, move = size[1:], move[1:]
        np.testing.assert_allclose(size, np.array(spacing) * 2**level)
        # Pixel 0's centre is at half a pixel of level 0 in every level's frame of level-0 centres.
        np.testing.assert_allclose(move - size / 2, -np.array(spacing) / 2)


def test_colours_and_names_of_all_classes_and_of_void_are_stated() -> None:
    label = label_of("yx", (0.5, 0.25), "micrometer")["image-label"]
    colors = {c["label-value"]: c["rgba"] for c in label["colors"]}
    names = {p["label-value"]: p["class"] for p in label["properties"]}
    assert colors == {**{c.index: [*c.color, 255] for c in BREAST8}, VOID: VOID_RGBA}
    assert names == {**{c.index: c.name for c in BREAST8}, VOID: "void"}
    assert label["source"] == {"image": "../../"}


def test_channels_are_shown_as_red_green_and_blue() -> None:
    shown = image_of("yx", (0.5, 0.25), "micrometer", channels=True)["omero"]["channels"]
    assert [(c["label"], c["color"]) for c in shown] == [
        ("red", "FF0000"),
        ("green", "00FF00"),
        ("blue", "0000FF"),
    ]
    assert all(c["window"] == {"min": 0, "max": 255, "start": 0, "end": 255} for c in shown)


def test_spacing_of_another_length_than_the_axes_is_refused() -> None:
    with pytest.raises(ValidationError, match="scale"):
        image_metadata(
            name="x", paths=["0"], axes="zyx", spacing=(0.5, 0.25), unit="micrometer", channels=False
        )
