"""Which reader opens what, and what is no volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.volume_files import (
    affine_of,
    change,
    random_voxels,
    save,
    write_series,
)
from wsiseg.errors import SourceError, UnreadableSource
from wsiseg.sources.dicom_series import SLIDE_CLASS
from wsiseg.sources.volumes import open_volume


def test_slides_and_pictures_are_no_volumes(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "slide", random_voxels(), affine_of()):
        change(path, SOPClassUID=SLIDE_CLASS)
    zarr = tmp_path / "image.zarr"
    zarr.mkdir()
    (zarr / "zarr.json").write_text("{}", encoding="utf-8")
    cases = tmp_path / "cases"
    cases.mkdir()
    save(cases / "one.nii", random_voxels())
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG")
    for path in (tmp_path / "slide", next((tmp_path / "slide").iterdir()), zarr, cases, picture):
        assert open_volume(path) is None
    with pytest.raises(SourceError, match="has no t1n"):
        open_volume(cases, modalities=("t1n",))


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(UnreadableSource, match="cannot be read: .*Permission denied"):
        open_volume(tmp_path)
