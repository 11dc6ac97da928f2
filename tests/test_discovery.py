"""Which cases are found, how they are called, and what belongs to them."""

from __future__ import annotations

import time
from pathlib import Path

import pydicom
import pytest
import zarr
from pydicom.uid import ExplicitVRLittleEndian

from tests.conftest import random_image
from tests.slide_files import write_dicom_slide
from wsiseg.batch.discovery import Case, find_cases, is_case, part_of
from wsiseg.batch.segment import segment_folder
from wsiseg.errors import ManifestError, UnreadableSource, UsageError
from wsiseg.sources import open_source


def files(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def dicom(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pydicom.Dataset()
    data.PatientName = "none"
    data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=False)
    raw = path.read_bytes()
    path.write_bytes(raw if raw[128:132] == b"DICM" else bytes(128) + b"DICM" + raw)


def found(*inputs: str | Path, out: Path, **more: Path) -> dict[str, str]:
    """Names of the cases, each with the name of its file."""
    return {case.name: case.path.name for case in find_cases(inputs, out=out, **more).cases}


def test_a_folder_is_searched_to_the_bottom_and_results_lie_as_inputs_do(tmp_path: Path) -> None:
    files(
        tmp_path,
        "b.svs",
        "a.tiff",
        "x/y/c.nii.gz",
        "x/nö 🧬 tissue.PNG",
        "notes.txt",
        ".hidden.svs",
        "x/.d/e.svs",
    )
    given = find_cases([tmp_path], out=tmp_path / "out")
    assert [(case.name, case.folder, case.own_name) for case in given.cases] == [
        ("a", "", "a"),
        ("b", "", "b"),
        ("x/nö 🧬 tissue", "x", "nö 🧬 tissue"),
        ("x/y/c", "x/y", "c"),
    ]
    assert given.others == 1


def test_folders_that_are_one_image_are_one_case(tmp_path: Path) -> None:
    for number in range(3):
        dicom(tmp_path / "series" / f"{number}")
    zarr.create_group(tmp_path / "slide.zarr")
    files(tmp_path, *(f"patient/{name}.nii.gz" for name in ("t1n", "t1c", "t2w", "t2f")))
    files(tmp_path, "many/1.nii.gz", "many/2.nii.gz")
    assert sorted(found(tmp_path, out=tmp_path / "out")) == ["many/1", "many/2", "patient", "series", "slide"]
    assert is_case(tmp_path / "series")
    # One DICOM file among slides is a case of its own.
    dicom(tmp_path / "mixed" / "slide.dcm")
    files(tmp_path, "mixed/other.svs")
    assert sorted(found(tmp_path / "mixed", out=tmp_path / "out")) == ["other", "slide"]


def test_the_files_of_a_dicom_slide_among_others_are_one_case(tmp_path: Path) -> None:
    image = random_image((96, 112))
    write_dicom_slide(tmp_path / "2.dcm", image)
    write_dicom_slide(tmp_path / "3.dcm", image[:, ::2, ::2], downsample=2.0)
    write_dicom_slide(tmp_path / "1 label.dcm", random_image((60, 20)), kind="LABEL")
    files(tmp_path, "other.svs", "broken.dcm")
    assert sorted(found(tmp_path, out=tmp_path / "out")) == ["2", "broken", "other"]


def test_companion_files_belong_to_their_slide(tmp_path: Path) -> None:
    files(
        tmp_path,
        "m.mrxs",
        "m/Slidedat.ini",
        "m/Data0001.dat",
        "h.vms",
        "h(1,0).jpg",
        "h_map2.jpg",
        "h.opt",
        "k.jpg",
    )
    assert found(tmp_path, out=tmp_path / "out") == {"h": "h.vms", "k": "k.jpg", "m": "m.mrxs"}


def test_results_and_the_output_folder_are_no_inputs(tmp_path: Path) -> None:
    files(tmp_path, "a.svs", "out/a.overlay.png", "b.ome.zarr/ledger/plan.json", "b.ome.zarr/zarr.json")
    assert found(tmp_path, out=tmp_path / "out") == {"a": "a.svs"}


def test_links_are_followed_once_and_to_no_folder(tmp_path: Path) -> None:
    files(tmp_path, "in/a.svs", "elsewhere/b.svs")
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "away").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "c.svs").symlink_to(tmp_path / "elsewhere" / "b.svs")
    assert found(tmp_path / "in", out=tmp_path / "out") == {"a": "a.svs", "c": "c.svs"}


def test_a_link_that_leads_to_itself_or_to_nothing_is_a_case_that_says_so(tmp_path: Path) -> None:
    for name, target in (("self.svs", "self.svs"), ("gone.svs", "nowhere.svs")):
        (tmp_path / name).symlink_to(tmp_path / target)
        with pytest.raises(UnreadableSource, match=f"{name} is a symbolic link that leads to no file"):
            open_source(tmp_path / name)
    assert found(tmp_path, out=tmp_path / "out") == {"gone": "gone.svs", "self": "self.svs"}
    (tmp_path / "m.csv").write_text("case,path,patient,licence\nm,self.svs,p,MIT\n")
    assert found(tmp_path / "m.csv", out=tmp_path / "out") == {"m": "self.svs"}
    summary = segment_folder([tmp_path], tmp_path / "out")
    assert [row.kind for row in summary.cases] == ["UnreadableSource", "UnreadableSource"]


def test_patterns_files_and_manifests_are_taken_in_order(tmp_path: Path) -> None:
    files(tmp_path, "s/2.svs", "s/1.svs", "s/3.tiff", "z.png", "t/z.geojson", "t/q.nii")
    (tmp_path / "m.csv").write_text(
        "case,path,patient,split,annotation,mpp,licence\nfirst,t/q.nii,p1,,,,none\nsecond,z.png,p2,,t/z.geojson,0.25,none\n"
    )
    given = find_cases(
        [str(tmp_path / "s" / "*.svs"), tmp_path / "m.csv", tmp_path / "s/3.tiff"], out=tmp_path / "o"
    )
    assert [case.name for case in given.cases] == ["1", "2", "first", "second", "3"]
    assert given.cases[3] == Case(
        "second", tmp_path / "z.png", tmp_path / "t" / "z.geojson", patient="p2", mpp=0.25
    )
    assert given.cases[2].mpp is None


def test_cases_of_one_name_get_the_whole_name_of_their_file(tmp_path: Path) -> None:
    files(tmp_path, "a.svs", "a.tiff", "x/a.svs")
    assert found(tmp_path, out=tmp_path / "out") == {"a.svs": "a.svs", "a.tiff": "a.tiff", "x/a": "a.svs"}
    with pytest.raises(UsageError, match=r"two inputs have the case name 'a.svs'"):
        find_cases([tmp_path / "a.svs", tmp_path / "x" / "a.svs"], out=tmp_path / "out")


def test_annotations_are_paired_by_name(tmp_path: Path) -> None:
    files(tmp_path, "in/a.svs", "in/a.geojson", "in/b.svs", "in/x/c.svs", "in/d.svs")
    files(tmp_path, "marks/b.png", "marks/a.geojson", "marks/a.png", "marks/x/c.nii.gz", "marks/d.txt")
    beside = {
        case.name: case.annotations for case in find_cases([tmp_path / "in"], out=tmp_path / "out").cases
    }
    assert beside == {"a": tmp_path / "in" / "a.geojson", "b": None, "d": None, "x/c": None}
    marks = tmp_path / "marks"
    given = find_cases([tmp_path / "in"], out=tmp_path / "out", annotations=marks)
    assert {case.name: case.annotations for case in given.cases} == {
        "a": marks / "a.geojson",
        "b": marks / "b.png",
        "d": None,
        "x/c": marks / "x" / "c.nii.gz",
    }


def test_parts_share_the_cases_among_them() -> None:
    cases = [Case(str(n), Path(str(n))) for n in range(7)]
    parts = [part_of(cases, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(int(case.name) for part in parts for case in part) == list(range(7))
    assert [len(part) for part in parts] == [3, 2, 2]
    for wrong in ("0/3", "4/3", "1", "a/b", "1/0", "-1/2"):
        with pytest.raises(UsageError, match=r"must be i/n with 1 <= i <= n"):
            part_of(cases, wrong)


def test_nothing_to_do_and_a_bad_manifest_are_said_at_once(tmp_path: Path) -> None:
    files(tmp_path, "in/notes.txt")
    with pytest.raises(UsageError, match="nothing to segment in .*no slide or volume was found"):
        find_cases([tmp_path / "in"], out=tmp_path / "out")
    (tmp_path / "m.csv").write_text("case,path,patient,licence\na,../x.svs,p,none\n")
    with pytest.raises(ManifestError, match="leaves the manifest's root folder"):
        find_cases([tmp_path / "m.csv"], out=tmp_path / "out")
    # What is named but is not there is a case that fails, so that the others are done all the same.
    assert found(tmp_path / "no.svs", out=tmp_path / "out") == {"no": "no.svs"}


@pytest.mark.slow
def test_ten_thousand_entries_are_found_in_seconds(tmp_path: Path) -> None:
    rows = "".join(f"c{n},slides/{n}.svs,p{n % 500},,,,none\n" for n in range(10_000))
    (tmp_path / "m.csv").write_text("case,path,patient,split,annotation,mpp,licence\n" + rows)
    begin = time.process_time()
    assert len(find_cases([tmp_path / "m.csv"], out=tmp_path / "out").cases) == 10_000
    assert time.process_time() - begin < 10
