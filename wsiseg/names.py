"""What a case and the store of its result are called."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from wsiseg.files import shortened, shown

SUFFIX = ".ome.zarr"
"""Of a store."""
LONGEST_CASE = 220
"""Bytes: file systems take 255, and the longest of the names beside a store add 26."""


def case_name(path: Path) -> str:
    """Name of the case of an input: its name without the suffix, as composed Unicode (NFC).

    Of a name that is too long for the files of a result the end is replaced by its hash.
    """
    name = unicodedata.normalize("NFC", shown(path.name))
    ending = next((s for s in (SUFFIX, ".nii.gz") if name.endswith(s)), path.suffix)
    if path.is_dir() and ending not in (SUFFIX, ".zarr"):
        ending = ""  # folders of DICOM files are often named by a UID
    stem = name.removesuffix(ending)
    # Of "...svs" would be left what means a folder; results are removed by their names.
    return shortened(name if stem in ("", ".", "..") else stem, num_bytes=LONGEST_CASE)
