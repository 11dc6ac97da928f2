"""What is to be segmented: cases from folders, patterns, manifests and single inputs."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wsiseg.config import SegmentConfig
from wsiseg.copies import Cache
from wsiseg.errors import SourceError, UsageError
from wsiseg.manifest import read_manifest
from wsiseg.names import SUFFIX, case_name
from wsiseg.objects import ObjectPath, resolved, to_path
from wsiseg.sources import image_files
from wsiseg.sources.nifti import MODALITIES, find_modalities
from wsiseg.sources.volumes import is_dicom

SLIDES = (
    ".svs", ".svslide", ".ndpi", ".mrxs", ".vms", ".vmu", ".scn", ".bif", ".czi", ".tif", ".tiff",
    ".png", ".jpg", ".jpeg", ".bmp",
)  # fmt: skip
VOXELS_STATED = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Of volumes, which all state the size of their voxels."""
DICOM = (".dcm", ".dicom")
IMAGES = (*SLIDES, *VOXELS_STATED, *DICOM)
MARKS = (
    ".geojson", ".geojson.gz", ".xml", ".annotations", ".ndpi.ndpa", ".ndpa",
    ".png", ".tif", ".tiff", ".nii.gz", ".nii", ".nrrd", ".mha", SUFFIX,
)  # fmt: skip
"""What annotations end in, in the order in which they are looked for."""
COMPANIONS = (".mrxs", ".vms", ".vmu")
"""Slides that lie in several files; those beside them are theirs."""


@dataclass(frozen=True)
class Case:
    """One thing to segment, and what is known of it; `name` may have folders before it."""

    name: str
    path: Path
    annotations: Path | None = None
    patient: str | None = None
    mpp: float | None = None

    @property
    def folder(self) -> str:
        """Folders before the name, relative to that of the results; empty without any."""
        return self.name.rpartition("/")[0]

    @property
    def own_name(self) -> str:
        """The name without folders."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class Found:
    """The cases of a batch in order, and files in its folders that are none."""

    cases: tuple[Case, ...]
    others: int = 0


def find_cases(inputs: Sequence[str | Path], *, out: Path, annotations: Path | None = None) -> Found:
    """The cases that inputs name: files, folders (searched to the bottom), patterns, manifests (.csv).

    A case found in a folder has the folders between as part of its name, so that results lie as the
    inputs do. `annotations` is a folder that is searched for files of the cases' names; marks in GeoJSON
    are also found beside a slide. What lies in `out` is never an input. Raises UsageError where there is
    nothing, ManifestError for a manifest with a mistake.
    """
    cases: list[Case] = []
    others = 0
    for given in inputs:
        path = to_path(given)
        if path.suffix.lower() == ".csv" and path.is_file():
            cases += _of_manifest(path)
        elif path.is_dir() and not is_case(path):
            found = list(_of_folder(path, skip=(out, *((annotations,) if annotations else ()))))
            cases += [case for case in found if case is not None]
            others += sum(case is None for case in found)
        elif path.exists() or not glob.has_magic(str(given)):
            cases.append(Case(case_name(path), path))
        else:
            matching = (
                path.matching()
                if isinstance(path, ObjectPath)
                else sorted(
                    Path(p)
                    for p in glob.glob(str(given), recursive=True)  # noqa: PTH207
                )
            )
            cases += [Case(case_name(p), p) for p in matching]
    if not cases:
        shown = ", ".join(map(str, inputs))
        raise UsageError(f"nothing to segment in {shown}: no slide or volume was found there")
    return Found(tuple(_paired(case, annotations) for case in _told_apart(cases)), others)


def is_case(folder: Path) -> bool:
    """True if a folder is one image: OME-Zarr, DICOM files and nothing else, the modalities of a case."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    if {"zarr.json", ".zgroup", ".zattrs"} & {entry.name for entry in entries}:
        return True
    if entries and all(entry.is_file() and is_dicom(entry) for entry in entries):
        return True
    try:
        find_modalities(folder, tuple(MODALITIES))
    except SourceError:
        return False
    return True


def part_of(cases: Sequence[Case], part: str) -> tuple[Case, ...]:
    """The cases that fall to part "i/n" of several machines, by position. Raises UsageError."""
    try:
        own, count = (int(n) for n in part.split("/"))
    except ValueError:
        own = count = 0
    if not 1 <= own <= count:
        raise UsageError(f"--part {part!r} must be i/n with 1 <= i <= n, such as 1/4")
    return tuple(cases[own - 1 :: count])


def _of_manifest(path: Path) -> Iterator[Case]:
    manifest = read_manifest(path)
    for row in manifest.cases:
        yield Case(
            name=row.case,
            path=manifest.resolve(row.path),
            annotations=manifest.resolve(row.annotation) if row.annotation else None,
            patient=row.patient,
            mpp=row.mpp,
        )


def _of_folder(root: Path, *, skip: Sequence[Path]) -> Iterator[Case | None]:
    """Cases below a folder in the order of their names, None for each file that is none."""
    ignored = {resolved(path) for path in skip}

    def search(folder: Path) -> Iterator[Case | None]:
        entries = sorted(folder.iterdir(), key=lambda p: p.name)
        slides = {p.stem for p in entries if p.suffix.lower() in COMPANIONS}
        for entry in entries:
            # Unlike `resolve` this takes a link to itself, too.
            if entry.name.startswith(".") or resolved(entry) in ignored:
                continue
            name = entry.relative_to(root).parent / case_name(entry)
            if entry.is_dir():
                if entry.name in slides or is_result(entry):
                    continue
                if is_case(entry):
                    yield Case(name.as_posix(), entry)
                elif not entry.is_symlink():  # a link may lead back to where it lies
                    yield from search(entry)
            elif is_image(entry) and not _is_companion(entry, slides):
                if _is_first(entry):
                    yield Case(name.as_posix(), entry)
            else:
                yield None

    return search(root)


def is_image(path: Path) -> bool:
    """True if a file is called like a slide or a volume."""
    return path.name.lower().endswith(IMAGES)


def is_result(folder: Path) -> bool:
    """True if a folder is what this program has written."""
    return folder.name.endswith(SUFFIX) and (folder / "ledger").is_dir()


def _is_first(path: Path) -> bool:
    """False of a DICOM file whose slide is named by another file of it already."""
    if path.suffix.lower() not in DICOM:
        return True
    try:
        with Cache.of(SegmentConfig()).copy(path) as local:
            return local == min(image_files(local))
    except SourceError:
        return True  # it says what is wrong when it is opened


def _is_companion(path: Path, slides: set[str]) -> bool:
    """True if a file is part of a slide: of one in VMS there are NAME(1,0).jpg and NAME_map2.jpg."""
    if path.suffix.lower() in COMPANIONS:
        return False
    return any(path.name.startswith((f"{slide}(", f"{slide}_", f"{slide}.")) for slide in slides)


def _told_apart(cases: Sequence[Case]) -> Iterator[Case]:
    """Cases whose results would be the same files get the whole name of their file. Raises UsageError."""
    count = Counter(case.name for case in cases)
    named = [
        replace(case, name=f"{case.folder}/{case.path.name}".lstrip("/")) if count[case.name] > 1 else case
        for case in cases
    ]
    name, times = Counter(case.name for case in named).most_common(1)[0]
    if times > 1:
        raise UsageError(f"two inputs have the case name {name!r}; their results would be the same files")
    yield from named


def _paired(case: Case, folder: Path | None) -> Case:
    """A case with the annotations that have its name."""
    if case.annotations is not None:
        return case
    if folder is None:
        beside = case.path.with_name(f"{case.own_name}.geojson")
        return replace(case, annotations=beside) if beside.is_file() else case
    names = (f"{name}{suffix}" for name in (case.name, case.own_name) for suffix in MARKS)
    found = next((folder / name for name in names if (folder / name).exists()), None)
    return replace(case, annotations=found)
