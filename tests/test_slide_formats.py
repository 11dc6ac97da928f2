"""Formats that OpenSlide reads: bounds, companion files, and what its version does not support."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from tests.conftest import SLIDE, random_image
from tests.czi_files import write_czi
from tests.images import Rgb, around, assert_reads, rgb_last
from wsiseg.errors import UnreadableSource
from wsiseg.files import companions, fingerprint
from wsiseg.sources import open_source


def test_a_mirax_slide_without_its_folder_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "slide.mrxs"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    says = r"slide\.mrxs is one part of a MIRAX slide; its folder slide with Slidedat\.ini is not beside it"
    with pytest.raises(UnreadableSource, match=says):
        open_source(path)
    (tmp_path / "slide").mkdir()
    (tmp_path / "slide" / "Slidedat.ini").write_text("[GENERAL]", encoding="utf-8")
    with pytest.raises(UnreadableSource, match=r"slide is the folder of a MIRAX slide; name the \.mrxs file"):
        open_source(tmp_path / "slide")
    with pytest.raises(UnreadableSource, match=r"slide\.mrxs cannot be opened as a slide: Key file does not"):
        open_source(path)


def write_vms(folder: Path, rgb: Rgb, *, name: str = "slide") -> Path:
    """A Hamamatsu VMS slide of one JPEG with restart markers, its map and its macro."""
    for part in ("", "_map", "_macro"):
        Image.fromarray(rgb).save(
            folder / f"{name}{part}.jpg", quality=95, subsampling=0, restart_marker_blocks=4
        )
    (folder / f"{name}.opt").write_bytes(b"")
    lines = [
        "[Virtual Microscope Specimen]",
        "NoLayers=1",
        "NoJpegColumns=1",
        "NoJpegRows=1",
        f"ImageFile={name}.jpg",
        f"MapFile={name}_map.jpg",
        f"OptimisationFile={name}.opt",
        f"MacroImage={name}_macro.jpg",
        f"PhysicalWidth={rgb.shape[1] * 250}",
        f"PhysicalHeight={rgb.shape[0] * 400}",
    ]
    path = folder / f"{name}.vms"
    path.write_text("\r\n".join(lines), encoding="utf-8")
    return path


def test_a_vms_slide_is_read_and_belongs_to_its_companions(tmp_path: Path) -> None:
    rgb = rgb_last(random_image((128, 256), seed=51) // 64 * 64)
    path = write_vms(tmp_path, rgb, name="Schnitt ä")
    (tmp_path / "other.jpg").write_bytes(b"")
    source = open_source(path)
    assert source.format == "OpenSlide hamamatsu"
    assert source.geometry.shape == (128, 256)
    np.testing.assert_allclose(source.geometry.spacing, (0.4, 0.25))
    stored = np.asarray(Image.open(tmp_path / "Schnitt ä.jpg").convert("RGB"))
    off = source.read(source.geometry.whole).values.astype(int) - np.moveaxis(stored, -1, 0)
    assert np.abs(off).max() <= 4
    assert [file.name for file in companions(path)] == [
        "Schnitt ä.jpg", "Schnitt ä.opt", "Schnitt ä_macro.jpg", "Schnitt ä_map.jpg",
    ]  # fmt: skip
    before = fingerprint(path)
    (tmp_path / "Schnitt ä.opt").write_bytes(b"longer")
    assert fingerprint(path) != before
    (tmp_path / "Schnitt ä_map.jpg").unlink()
    with pytest.raises(UnreadableSource, match=r"cannot be opened as a slide: .*_map\.jpg: No such file"):
        open_source(path)


def test_a_vms_file_names_no_companions_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"")
    (tmp_path / "s").mkdir()
    path = tmp_path / "s" / "s.vms"
    path.write_text("ImageFile=../secret\nMapFile=\nno equals sign\nA=.\n", encoding="utf-8")
    assert companions(path) == []
    assert set(fingerprint(path)) == {"sha256"}


def test_a_slide_in_one_file_has_no_companions() -> None:
    assert companions(SLIDE) == []
    for name in ("none.mrxs", "none.vms", "slide.ndpi"):
        assert companions(SLIDE.with_name(name)) == []


BGR24, GRAY8 = 3, 0
READ: list[tuple[int, Callable[[Rgb], Any]]] = [
    (0, lambda block: block.tobytes()),
    (5, lambda block: imagecodecs.zstd_encode(block.tobytes())),
]


@pytest.mark.parametrize(("compression", "encode"), READ, ids=["uncompressed", "zstd"])
def test_a_czi_slide_is_read(tmp_path: Path, compression: int, encode: Callable[[Rgb], bytes]) -> None:
    image = random_image((64, 96), seed=52)
    source = open_source(write_czi(tmp_path / "s.czi", image, compression=compression, encode=encode))
    assert source.format == "OpenSlide zeiss"
    np.testing.assert_allclose(source.geometry.spacing, (0.4, 0.25))
    for region in around((64, 96)):
        assert_reads(source, image, region)


@pytest.mark.parametrize(
    ("compression", "pixel_type", "what"),
    [(4, BGR24, "JPEG XR compression"), (1, BGR24, "JPEG compression"), (0, GRAY8, "Pixel type GRAY8")],
)
def test_the_kinds_of_czi_that_openslide_does_not_support_are_named(
    tmp_path: Path, compression: int, pixel_type: int, what: str
) -> None:
    image = random_image((64, 96), seed=53)
    path = write_czi(tmp_path / "s.czi", image, compression=compression, encode=bytes, pixel_type=pixel_type)
    says = rf"s\.czi cannot be opened as a slide: {what} is not supported by OpenSlide [\d.]+; convert"
    with pytest.raises(UnreadableSource, match=says):
        open_source(path)
