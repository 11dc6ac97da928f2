"""Files may be called what they like, as long as the name is UTF-8."""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wsiseg
from tests.cases import CROPS, NAMES, SMALL, mask_of, write_tiff
from tests.images import Rgb
from tests.slide_files import write_dicom_slide
from wsiseg.batch.segment import segment_folder
from wsiseg.cli import main
from wsiseg.errors import UnreadableSource
from wsiseg.names import LONGEST_CASE, case_name
from wsiseg.sources import open_source

COMPOSED = "Größe é"
SLIDES = {
    "spaces and umlauts": "Träger 7 – Schnitt (2)",
    "emoji": "脳 🧠🔬",
    "decomposed": unicodedata.normalize("NFD", COMPOSED),
    "long": "x" * 251,
    "long with two bytes a letter": "ä" * 125,
    "signs of markup and of formulas": "[HE] :smile: a$_$b {c} 100%",
}


@pytest.fixture(scope="module")
def crop() -> Rgb:
    picture = Image.open(CROPS / "images" / f"{NAMES[0]}.png").convert("RGB")
    return np.asarray(picture)[:96, :128]


@pytest.mark.parametrize("kind", SLIDES)
def test_a_slide_of_any_name_is_segmented_reported_and_drawn(tmp_path: Path, crop: Rgb, kind: str) -> None:
    path = write_tiff(tmp_path / f"{SLIDES[kind]}.tif", crop)
    report = wsiseg.segment(path, tmp_path / "out", "breast-tissue3", **SMALL)
    assert mask_of(report).shape == (96, 128)
    case = case_name(path)
    assert (report.case, Path(report.store).name) == (case, f"{case}.ome.zarr")
    written = json.loads(Path(report.report).read_text("utf-8"))
    assert written["case"] == case
    assert written["input"]["name"] == path.name
    with Image.open(report.overlay) as picture:
        assert min(picture.size) > 100
    again = wsiseg.segment(path, tmp_path / "out", "breast-tissue3", **SMALL)
    assert again.status == "already complete"


def test_names_of_cases_are_composed_and_fit_into_a_file_name(tmp_path: Path) -> None:
    assert (
        case_name(Path(f"{SLIDES['decomposed']}.svs")) == COMPOSED == case_name(Path(f"{COMPOSED}.ome.zarr"))
    )
    assert case_name(Path("x" * LONGEST_CASE + ".svs")) == "x" * LONGEST_CASE
    long = [case_name(Path("ä" * 123 + end + ".tif")) for end in "ab"]
    assert all(len(name.encode()) <= LONGEST_CASE and name.startswith("ä" * 100) for name in long)
    assert long[0] != long[1]
    assert case_name(Path(f"{long[0]}.ome.zarr")) == long[0]


def test_folders_named_by_a_uid_keep_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "1.2.840.7").mkdir()
    (tmp_path / "scan.ome.zarr").mkdir()
    (tmp_path / "scan.zarr").mkdir()
    assert case_name(tmp_path / "1.2.840.7") == "1.2.840.7"
    assert case_name(tmp_path / "scan.ome.zarr") == "scan" == case_name(tmp_path / "scan.zarr")
    assert case_name(tmp_path / "scan.v2.svs") == "scan.v2"


def test_a_dicom_slide_of_any_name_is_read(tmp_path: Path, crop: Rgb) -> None:
    image = np.moveaxis(crop, -1, 0)
    for name in SLIDES.values():
        path = write_dicom_slide(tmp_path / name / f"{name}.dcm", image)
        for given in (path, path.parent):
            source = open_source(given)
            np.testing.assert_array_equal(source.read(source.geometry.whole).values, image)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path, crop: Rgb) -> None:
    try:
        path = write_tiff(tmp_path / os.fsdecode(b"latin\xe4.tif"), crop)
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    says = r"latin\\xe4\.tif has a name that is not UTF-8; rename it"
    with pytest.raises(UnreadableSource, match=says):
        open_source(path)
    # In a batch it is a case like the others, and all that is written of it is UTF-8.
    summary = segment_folder([path.parent], tmp_path / "out", **SMALL)
    row = next(row for row in summary.cases if row.kind == "UnreadableSource")
    assert (row.case, Path(row.input).name) == (r"latin\xe4", r"latin\xe4.tif")
    assert re.search(says, row.error)
    assert r"latin\xe4" in (tmp_path / "out" / "summary.csv").read_text("utf-8")
    assert r"latin\xe4" in (tmp_path / "out" / "index.html").read_text("utf-8")


def test_the_command_line_prints_names_as_they_are(
    tmp_path: Path, crop: Rgb, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiff(tmp_path / f"{SLIDES['signs of markup and of formulas']}.tif", crop)
    (tmp_path / "s.toml").write_text("core = 64\nhalo = 16\n", encoding="utf-8")
    out = tmp_path / "[/out]"
    words = ["segment", str(path), "--out", str(out), "--config", str(tmp_path / "s.toml")]
    monkeypatch.setattr(sys, "argv", ["wsiseg", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capfd.readouterr()
    assert not ended.value.code, printed.err
    assert f"{path.stem}: segmented" in printed.out
    assert f"mask    {out}/{path.stem}.ome.zarr" in printed.out
    assert f"{path.stem} tissue" in printed.err
