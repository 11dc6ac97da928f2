"""Every mistake in a table of cases is named with its line and column."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from wsiseg.errors import ManifestError
from wsiseg.manifest import read_manifest

REPOSITORY = Path(__file__).parents[1]
SHIPPED = sorted((REPOSITORY / "data_manifests").glob("*.csv"))
HEADER = "case,path,sha256,patient,split,annotation,mpp,licence"
GOOD = f"a,slides/a.svs,{'0' * 64},p1,train,marks/a.geojson,0.25,CC0-1.0"


def write(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "cases.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_rows_are_read_with_their_types_and_empty_fields_are_none(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path, GOOD, " b , slides/b.png ,,p2,,,,MIT"))
    a, b = manifest.cases
    assert (a.case, a.mpp, a.split, a.annotation) == ("a", 0.25, "train", "marks/a.geojson")
    assert (b.case, b.path, b.sha256, b.split, b.annotation, b.mpp) == (
        "b",
        "slides/b.png",
        None,
        None,
        None,
        None,
    )
    assert manifest.root == tmp_path


def test_optional_columns_may_be_missing_and_columns_stand_in_any_order(tmp_path: Path) -> None:
    file = write(tmp_path, "MIT,p1,x.png,one", header="licence,patient,path,case")
    (case,) = read_manifest(file).cases
    assert (case.case, case.path, case.patient, case.licence, case.mpp) == ("one", "x.png", "p1", "MIT", None)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_bytes(b"\xef\xbb\xbfcase,path,patient,licence\r\none,x.png,p1,MIT\r\n")
    assert read_manifest(path).cases[0].case == "one"


def test_paths_are_relative_to_the_root(tmp_path: Path) -> None:
    root = tmp_path / "data"
    manifest = read_manifest(write(tmp_path, GOOD), root=root)
    assert manifest.resolve(manifest.cases[0].path) == (root / "slides" / "a.svs").resolve()
    assert manifest.resolve("x/../y.png") == (root / "y.png").resolve()


@pytest.mark.parametrize("name", ["a/b", "a\\b", "/a", ""])
def test_a_case_that_cannot_name_a_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestError, match=r"line 2, column 'case': .*got " + re.escape(repr(name))):
        read_manifest(write(tmp_path, f"{name},x.png,,p1,,,,MIT"))


@pytest.mark.parametrize(
    ("column", "row"),
    [
        ("path", "b,,,p1,,,,MIT"),
        ("sha256", f"b,x.png,{'A' * 64},p1,,,,MIT"),
        ("sha256", f"b,x.png,{'0' * 63},p1,,,,MIT"),
        ("patient", "b,x.png,,,,,,MIT"),
        ("split", "b,x.png,,p1,holdout,,,MIT"),
        ("mpp", "b,x.png,,p1,,,0,MIT"),
        ("mpp", "b,x.png,,p1,,,fine,MIT"),
        ("mpp", "b,x.png,,p1,,,inf,MIT"),
        ("licence", "b,x.png,,p1,,,,"),
    ],
)
def test_a_wrong_value_is_named_with_line_and_column(tmp_path: Path, column: str, row: str) -> None:
    with pytest.raises(ManifestError, match=rf"cases\.csv, line 3, column '{column}': ") as caught:
        read_manifest(write(tmp_path, GOOD, row))
    assert "\n" not in str(caught.value)


def test_the_line_is_that_of_the_file_also_after_blank_lines_and_line_breaks_in_a_field(
    tmp_path: Path,
) -> None:
    file = write(tmp_path, "", 'a,x.png,,p1,,,,"two\nlines"', "", "b,y.png,,p1,none,,,MIT")
    with pytest.raises(ManifestError, match="line 6, column 'split'"):
        read_manifest(file)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="line 2, column 'licence': Field required"):
        read_manifest(write(tmp_path, "a,x.png,p1", header="case,path,patient"))


def test_an_unknown_column_is_named_with_the_known_ones(tmp_path: Path) -> None:
    file = write(tmp_path, "a,x.png,p1,MIT,s", header="case,path,patient,licence,stain")
    with pytest.raises(ManifestError, match="line 1, column 5: unknown column 'stain'; known are case, path"):
        read_manifest(file)


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "a,x.png,p1,MIT,y.png", header="case,path,patient,licence,path")
    with pytest.raises(ManifestError, match=r"line 1, column 5: .*'path'"):
        read_manifest(file)


@pytest.mark.parametrize("row", ["b,x.png,,p1,,,", "b,x.png,,p1,,,,MIT,more", "b"])
def test_a_row_of_another_length_than_the_header_is_refused(tmp_path: Path, row: str) -> None:
    with pytest.raises(ManifestError, match="line 3: the row must have 8 fields, like the header"):
        read_manifest(write(tmp_path, GOOD, row))


def test_a_case_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="line 4, column 'case': 'a' occurs twice"):
        read_manifest(write(tmp_path, GOOD, "b,x.png,,p1,,,,MIT", "a,y.png,,p2,,,,MIT"))


@pytest.mark.parametrize("text", ["", HEADER, HEADER + "\n\n\n"])
def test_a_manifest_without_cases_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match=r"cases\.csv has no cases"):
        read_manifest(path)


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"cannot read the manifest .*none\.csv: No such file"):
        read_manifest(tmp_path / "none.csv")


@pytest.mark.parametrize("content", [HEADER.encode() + b"\n\xff\xfe", HEADER.encode() + b'\n"a"b,x.png'])
def test_what_is_not_a_table_in_utf8_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cases.csv"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match="is not a CSV table in UTF-8"):
        read_manifest(path)


def test_a_broken_quote_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="line 3"):
        read_manifest(write(tmp_path, GOOD, '"b"c,x.png,,p1,,,,MIT'))


@pytest.mark.parametrize(
    ("column", "row"),
    [
        ("path", "b,../x.png,,p1,,,,MIT"),
        ("path", "b,/etc/passwd,,p1,,,,MIT"),
        ("path", "b,sub/../../x.png,,p1,,,,MIT"),
        ("annotation", "b,x.png,,p1,,../x.geojson,,MIT"),
    ],
)
def test_a_path_that_leaves_the_root_is_refused(tmp_path: Path, column: str, row: str) -> None:
    with pytest.raises(
        ManifestError, match=f"line 3, column '{column}': path '.*' leaves the manifest's root"
    ):
        read_manifest(write(tmp_path, GOOD, row))


def test_a_link_that_leaves_the_root_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(b"")
    (root / "x.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ManifestError, match=r"line 2, column 'path': path 'x\.png' leaves"):
        read_manifest(write(root, "a,x.png,,p1,,,,MIT"))


def test_a_root_that_is_itself_a_link_is_followed(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    manifest = read_manifest(write(tmp_path, GOOD), root=tmp_path / "link")
    assert manifest.resolve("x.png") == (real / "x.png").resolve()


def test_a_null_byte_in_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="line 3"):
        read_manifest(write(tmp_path, GOOD, "b,x\0.png,,p1,,,,MIT"))


def test_manifests_are_shipped() -> None:
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_the_shipped_manifests_name_shipped_files_by_their_hash(path: Path) -> None:
    samples = REPOSITORY / "wsiseg" / "samples"
    manifest = read_manifest(path, root=samples if path.stem == "samples" else samples / path.stem)
    shipped = [case for case in manifest.cases if manifest.resolve(case.path).is_file()]
    # Of a cohort that is too large to ship some cases are samples.
    assert len(shipped) == len(manifest.cases) or (path.stem == "msd-hippocampus" and len(shipped) == 3)
    for case in shipped:
        content = manifest.resolve(case.path).read_bytes()
        assert case.sha256 == hashlib.sha256(content).hexdigest()
        if case.annotation is not None:
            assert manifest.resolve(case.annotation).is_file()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_the_shipped_manifests_never_divide_a_patient(path: Path) -> None:
    cases = read_manifest(path).cases
    assert len({(case.patient, case.split) for case in cases}) == len({case.patient for case in cases})
