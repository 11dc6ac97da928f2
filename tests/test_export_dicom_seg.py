"""DICOM segmentations: highdicom reads back the mask, and nobody's name is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest

import wsiseg
import wsiseg.export.command
import wsiseg.export.dicomseg
from tests.conftest import random_image
from tests.slide_files import item, write_dicom_slide
from tests.stores import blobs, store_of
from tests.test_volumes import affine_of
from tests.volume_files import write_series
from wsiseg.classes import VOID
from wsiseg.errors import SourceError, StoreError, UsageError
from wsiseg.export.command import export_store
from wsiseg.files import fingerprint
from wsiseg.sources import image_files
from wsiseg.sources.dicom_headers import reference_headers
from wsiseg.sources.volume import VolumeSource
from wsiseg.store import CaseStore

MEASURES = [item(PixelMeasuresSequence=[item(PixelSpacing=["0.0004", "0.00025"], SliceThickness="0.001")])]
PRIVATE: dict[str, Any] = {
    "PatientName": "Doe^Jane", "PatientID": "P-4711", "PatientBirthDate": "19700101",
    "ContainerIdentifier": "S-77", "PatientComments": "a comment", "StudyDescription": "a description",
    "SpecimenDescriptionSequence": [item(SpecimenIdentifier="S-77-1")], "AccessionNumber": "A-12",
}  # fmt: skip


def slide_store(folder: Path, path: Path, shape: tuple[int, int]) -> CaseStore:
    mask = blobs(shape, side=20)
    mask[:30, :40] = VOID
    inputs = {"input": fingerprint(path, files=image_files(path)), "settings": {}}
    return store_of(folder / "s.ome.zarr", mask, inputs=inputs)


def test_a_slides_segmentation_is_its_mask_and_names_nobody(tmp_path: Path) -> None:
    slide = write_dicom_slide(
        tmp_path / "in" / "a.dcm",
        random_image((600, 700)),
        SharedFunctionalGroupsSequence=MEASURES,
        **PRIVATE,
    )
    store = slide_store(tmp_path, slide, (600, 700))
    done = export_store(store.path, to="dicom-seg", out=tmp_path / "seg.dcm", input=slide)
    assert done.details["frames"] == [1, 600, 700]
    assert done.details["segments"]["stroma"] == 3
    found = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert found.SegmentationType == "LABELMAP"
    expected = np.asarray(store.mask()[:]).astype(int) + 1
    expected[expected == VOID + 1] = 0
    np.testing.assert_array_equal(found.get_total_pixel_matrix(combine_segments=True), expected)
    source = pydicom.dcmread(slide)
    assert found.StudyInstanceUID == source.StudyInstanceUID
    assert found.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert [found.get_segment_description(n + 1).segment_label for n in range(4)] == [
        c.name for c in store.plan.classes
    ]
    data = (tmp_path / "seg.dcm").read_bytes()
    for secret in (b"Doe", b"4711", b"19700101", b"S-77", b"A-12", b"a comment", b"a description"):
        assert secret not in data


def test_the_segmentation_of_a_series_has_a_frame_for_every_slice(tmp_path: Path) -> None:
    voxels = np.zeros((6, 5, 4), np.int16)
    affine = affine_of((0, 1, 2), (-1, -1, 1))
    common = {"StudyInstanceUID": "1.2.9", "FrameOfReferenceUID": "1.2.10", "SliceThickness": "1"}
    write_series(tmp_path / "in", voxels, affine, PatientName="Doe", **common)
    source = wsiseg.open_source(tmp_path / "in")
    assert isinstance(source, VolumeSource)
    mask = blobs(source.geometry.shape, side=2)
    store = store_of(
        tmp_path / "v.ome.zarr",
        mask,
        inputs={"input": fingerprint(tmp_path / "in"), "settings": {}},
        axes="zyx",
        spacing=source.geometry.spacing,
        unit="millimeter",
    )
    export_store(store.path, to="dicom-seg", out=tmp_path / "seg.dcm", input=tmp_path / "in")
    found = highdicom.seg.segread(tmp_path / "seg.dcm")
    stored = source.native.to_native(mask).T  # (slices, rows, columns)
    paths = sorted(
        (tmp_path / "in").iterdir(), key=lambda p: float(pydicom.dcmread(p).ImagePositionPatient[2])
    )
    uids = [pydicom.dcmread(p).SOPInstanceUID for p in paths]
    frames = found.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(frames, stored.astype(int) + 1)
    assert b"Doe" not in (tmp_path / "seg.dcm").read_bytes()


def test_what_a_segmentation_cannot_be_made_of_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = write_dicom_slide(tmp_path / "in" / "a.dcm", random_image((600, 700)))
    store = slide_store(tmp_path, slide, (600, 700))
    out = tmp_path / "seg.dcm"
    with pytest.raises(UsageError, match="refers to the images that it is of; name the slide"):
        export_store(store.path, to="dicom-seg", out=out)
    with monkeypatch.context() as patch:
        lacking = reference_headers(slide)
        del lacking[0].StudyInstanceUID
        patch.setattr(wsiseg.export.command, "reference_headers", lambda path: lacking)
        with pytest.raises(StoreError, match="does not say what a segmentation needs: .*StudyInstanceUID"):
            export_store(store.path, to="dicom-seg", out=out, input=slide)
    with pytest.raises(UsageError, match="the name of a DICOM file ends in .dcm"):
        export_store(store.path, to="dicom-seg", out=tmp_path / "seg.seg", input=slide)
    assert not out.exists()
    (tmp_path / "p.png").write_bytes(b"no DICOM")
    other = store_of(
        tmp_path / "o.ome.zarr", blobs((600, 700)), inputs={"input": fingerprint(tmp_path / "p.png")}
    )
    with pytest.raises(SourceError, match="is neither a DICOM slide nor a DICOM series"):
        export_store(other.path, to="dicom-seg", out=out, input=tmp_path / "p.png")
    monkeypatch.setattr(wsiseg.export.command, "MOST_PIXELS", 100)
    with pytest.raises(UsageError, match="has 420000 pixels and a DICOM segmentation of at most 100"):
        export_store(store.path, to="dicom-seg", out=out, input=slide)
    monkeypatch.setattr(wsiseg.export.command, "MOST_PIXELS", 1 << 20)
    monkeypatch.setattr(wsiseg.export.dicomseg, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs the package highdicom"):
        export_store(store.path, to="dicom-seg", out=out, input=slide)


def test_images_that_lie_in_other_files_than_a_segmentation_refers_to_are_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        write_dicom_slide(tmp_path / "parts" / f"{number}.dcm", random_image((60, 70)), part=(number, 2))
    with pytest.raises(SourceError, match="the finest level of .* lies in 2 files"):
        reference_headers(tmp_path / "parts")
