"""Names and numbers of patients in a file's metadata reach nothing that the program writes or says."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image, ImageDraw

import wsiseg
from tests.cases import SMALL
from tests.conftest import espnet3d_card, random_image
from tests.images import rgb_last
from tests.slide_files import write_dicom_slide
from tests.volume_files import affine_of, random_voxels, write_series
from wsiseg.cli import main
from wsiseg.sources.identifiers import read_identifiers

MARK = "DOE^JANE-4711"
INFO = ("wsiseg", "info")
OPTIONS: dict[str, Any] = {**SMALL, "tissue_filter": False, "device": "cpu", "threads": 1}
DICOM: dict[str, Any] = dict.fromkeys(
    (
        "PatientName", "PatientID", "OtherPatientIDs", "PatientComments", "AccessionNumber", "StudyID",
        "StudyDescription", "SeriesDescription", "InstitutionName", "ReferringPhysicianName", "OperatorsName",
        "StationName", "DeviceSerialNumber", "ContainerIdentifier", "BarcodeValue", "ImageComments",
        "ProtocolName", "LabelText", "Manufacturer", "ManufacturerModelName",
    ),
    MARK,
)  # fmt: skip


def svs(folder: Path) -> Path:
    """Like Aperio's, with a label and a macro that bear the name too."""
    image = rgb_last(random_image((200, 300)))
    label = Image.new("RGB", (160, 60), "white")
    ImageDraw.Draw(label).text((5, 5), MARK)
    said = f"Aperio Image Library v11\r\n300x200 (256x256) |MPP = 0.5|Patient = {MARK}|BarCode = {MARK}"
    path = folder / "case.svs"
    shared: dict[str, Any] = {"photometric": "rgb", "metadata": None, "software": MARK}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, tile=(64, 64), compression="jpeg", description=said, **shared)
        for kind in ("label", "macro"):
            writer.write(np.asarray(label), description=f"Aperio {MARK}\r\n{kind} 160x60", **shared)
    return path


def ome_tiff(folder: Path) -> Path:
    path = folder / "case.ome.tif"
    said = {"Name": MARK, "Description": MARK, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "axes": "YXS"}
    image = rgb_last(random_image((200, 300)))
    extra = [(315, "s", 0, MARK, True), (33432, "s", 0, MARK, True), (316, "s", 0, MARK, True)]
    tifffile.imwrite(path, image, photometric="rgb", tile=(64, 64), metadata=said, extratags=extra)
    assert path.read_bytes().count(MARK.encode()) == 5
    return path


def dicom_slide(folder: Path) -> Path:
    image = random_image((200, 300))
    write_dicom_slide(folder / "case" / "0.dcm", image, **DICOM)
    write_dicom_slide(folder / "case" / "1.dcm", image[:, :90, :120], kind="LABEL", **DICOM)
    return folder / "case"


def dicom_series(folder: Path) -> Path:
    write_series(folder / "case", random_voxels((24, 20, 16)), affine_of(), **DICOM)
    return folder / "case"


def nifti(folder: Path) -> Path:
    image = nib.Nifti1Image(random_voxels((24, 20, 16)), affine_of())
    header: Any = image.header
    header.set_xyzt_units("mm")
    for name in ("descrip", "aux_file", "db_name", "intent_name", "data_type"):
        header[name] = MARK.encode()[: header.template_dtype[name].itemsize]
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", MARK.encode()))
    nib.save(image, folder / "case.nii.gz")
    return folder / "case.nii.gz"


INPUTS = {f.__name__: f for f in (svs, ome_tiff, dicom_slide, dicom_series, nifti)}


def unpacked(path: Path) -> Iterator[bytes]:
    """Bytes of a file, and what is compressed in it."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".gz":
        yield gzip.decompress(data)
    if path.suffix == ".png":
        with Image.open(path) as picture:
            yield repr(picture.info).encode()
    for found in re.finditer(rb"\x78[\x01\x9c\xda]", data):
        try:
            yield zlib.decompressobj().decompress(data[found.start() :], 1 << 20)
        except zlib.error:
            continue


def places(folder: Path) -> list[str]:
    """Files below a folder whose name, bytes or values hold the mark, or the part that NIfTI keeps."""
    marks = [MARK.encode(), MARK[:10].encode(), MARK.encode("utf-16-le")]
    found = [
        str(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and any(
            mark in data for data, mark in itertools.product((str(path).encode(), *unpacked(path)), marks)
        )
    ]
    for path in folder.rglob("zarr.json"):
        node = zarr.open(path.parent, mode="r")
        if MARK in json.dumps(dict(node.attrs)):
            found.append(f"{path} as zarr")
    return found


def model_for(name: str, folder: Path) -> str:
    return str(espnet3d_card(folder, channels=1)) if name in ("dicom_series", "nifti") else "demo-breast8"


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.slow
def test_no_byte_of_the_results_and_no_word_said_names_the_patient(
    name: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = INPUTS[name](tmp_path)
    assert places(tmp_path)  # the search finds what is there
    (tmp_path / "model").mkdir()
    model, out = model_for(name, tmp_path / "model"), tmp_path / "out"
    config = tmp_path / "settings.toml"
    slow = {k: v for k, v in OPTIONS.items() if name not in ("dicom_series", "nifti") or k not in SMALL}
    config.write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in slow.items()), encoding="utf-8")
    command = ["wsiseg", "segment", str(path), "--out", str(out), "--model", model, "--config", str(config)]
    told = []
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for words in ([*command, "--confidence"], [*INFO, str(path)], [*INFO, str(path), "--json"]):
            monkeypatch.setattr("sys.argv", words)
            with pytest.raises(SystemExit) as ended:
                main()
            told += list(capfd.readouterr())
            assert ended.value.code == 0, told
    said = [*told, *(str(w.message) for w in caught), *(r.getMessage() for r in caplog.records)]
    assert [text for text in said if MARK in text or MARK[:10] in text] == []
    assert list(out.rglob("*.report.json"))
    assert places(out) == []

    report = wsiseg.segment(path, out, model, config=config, confidence=True, keep_identifiers=True)
    assert report.status == "already complete"  # nothing of the mask depends on it
    assert report.identifiers is not None
    assert MARK in " ".join(report.identifiers.values())
    assert places(out) == [str(report.report)]
    again = wsiseg.segment(path, out, model, config=config, confidence=True)
    assert again.identifiers is None
    assert places(out) == []


@pytest.mark.parametrize(
    ("name", "key"),
    [("svs", "aperio.Patient"), ("ome_tiff", "page 0 Artist"), ("dicom_slide", "PatientName"),
     ("dicom_series", "SeriesDescription"), ("nifti", "descrip")],
)  # fmt: skip
def test_what_a_file_says_of_the_patient_is_told_who_asks(name: str, key: str, tmp_path: Path) -> None:
    assert read_identifiers(INPUTS[name](tmp_path))[key] == MARK
