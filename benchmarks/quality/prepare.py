"""The cases of each benchmark as a manifest; what has to be made of the labels is made here."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.morphology import remove_small_objects

from wsiseg.errors import ManifestError
from wsiseg.files import write_whole
from wsiseg.preprocess import GLASS

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared"
VOID = 255
COLUMNS = ("case", "path", "sha256", "patient", "split", "annotation", "mpp", "licence")
DISC_PX = 6.0
"""3 µm: as far from a dot the pixels are surely of its cell."""
SMOOTH = 4.0
"""Standard deviation within a few pixels below which nothing is there: pale fibres have more."""
SMALLEST_GLASS_PX = 400
"""100 µm²: smaller white places are gaps between cells."""
BREAST_SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Cases:
    """A manifest and the folder of its paths; cases of split `test` are the held-out ones."""

    manifest: Path
    root: Path


Row = dict[str, Any]


def prepare(name: str, *, shared: Path, folder: Path) -> Cases:
    """The cases of a benchmark, with what is made of them in `folder`.

    Raises ManifestError where the data are missing.
    """
    return MAKERS[name](shared / "data", folder / "data" / name)


def hippocampus(data: Path, folder: Path) -> Cases:
    """Volumes of `data_manifests/msd-hippocampus.csv`; those for validation are held out."""
    root = present(data / "msd-hippocampus", "hippocampus_001.nii.gz", inside="images")
    listed = (REPOSITORY / "data_manifests" / "msd-hippocampus.csv").read_text(encoding="utf-8")
    rows: list[Row] = list(csv.DictReader(io.StringIO(listed)))
    held_out = {"validation": "test"}
    return Cases(
        write_manifest(folder, ({**row, "split": held_out.get(row["split"], row["split"])} for row in rows)),
        root,
    )


def tissue(data: Path, folder: Path) -> Cases:
    """Crops of folder `test` to train on, those of `val` held out, as the data's README has it."""
    root = present(data / "wsss4luad", "", inside="test/img")
    rows = []
    for split, source in (("train", "test"), ("test", "val")):
        for path in sorted((root / source / "img").glob("*.png"), key=lambda p: int(p.stem)):
            rows.append(
                {
                    "case": f"{source}-{path.stem}",
                    "path": f"{source}/img/{path.name}",
                    "sha256": sha256(path),
                    "patient": f"{source}-{path.stem}",
                    "split": split,
                    "annotation": f"{source}/mask/{path.name}",
                    "mpp": 1.0,
                    "licence": "not established",
                }
            )
    return Cases(write_manifest(folder, rows), root)


def breast(data: Path, folder: Path) -> Cases:
    """Patches by `split_patient_safe`, with a mask of discs round the dots, and of what has no stain."""
    root = present(data / "brca-m2c", "index.csv")
    rows = []
    for row in csv.DictReader((root / "index.csv").read_text(encoding="utf-8").splitlines()):
        name = row["file"]
        image, mask = folder / "images" / name, folder / "masks" / name
        if not image.is_file():
            image.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / "images" / name, image)
        if not mask.is_file():
            size = int(row["height"]), int(row["width"])
            truth = discs(*read_dots(root, Path(name).stem), size=size)
            truth[(truth == VOID) & glass(np.asarray(Image.open(image).convert("RGB")))] = 0
            write_whole(mask, png(truth))
        rows.append(
            {
                "case": Path(name).stem,
                "path": f"images/{name}",
                "sha256": sha256(image),
                "patient": row["patient"],
                "split": BREAST_SPLITS[row["split_patient_safe"]],
                "annotation": f"masks/{name}",
                # The files say 0.499 to 0.501: with one size none is resampled and dots stay on their pixels.
                "mpp": 0.5,
                "licence": "BSD-3-Clause",
            }
        )
    return Cases(write_manifest(folder, rows), folder)


MAKERS: dict[str, Callable[[Path, Path], Cases]] = {
    "hippocampus": hippocampus,
    "tissue": tissue,
    "breast": breast,
}


def read_dots(root: Path, case: str) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Places (N, 2) as y, x in pixels and classes (N,) of the dots of a patch."""
    table = np.loadtxt(root / "labels" / f"{case}_gt_class_coords.txt", dtype=np.int64, ndmin=2)
    return table[:, :2], table[:, 2].astype(np.uint8)


def discs(
    places: NDArray[np.int64],
    classes: NDArray[np.uint8],
    *,
    size: tuple[int, int],
    radius_px: float = DISC_PX,
) -> NDArray[np.uint8]:
    """The class of the nearest dot where one is within the radius, (*size); VOID elsewhere."""
    pixels = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1).reshape(-1, 2)
    distance, nearest = KDTree(places).query(pixels)
    mask = np.where(distance <= radius_px, classes[nearest], VOID).astype(np.uint8)
    return mask.reshape(size)


def glass(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels (y, x) of an image (y, x, 3) in bright and smooth places that are larger than a cell."""
    values = rgb.astype(np.float32)
    smooth = ndimage.gaussian_filter(values, (3, 3, 0))
    rough = ndimage.gaussian_filter(values**2, (3, 3, 0)) - smooth**2
    empty = ((smooth >= GLASS) & (rough < SMOOTH**2)).all(axis=-1)
    found = remove_small_objects(empty, max_size=SMALLEST_GLASS_PX)
    return np.asarray(found, bool)


def present(root: Path, name: str, *, inside: str = "") -> Path:
    """A folder of data. Raises ManifestError where it, or a file that it must have, is missing."""
    if not (root / inside / name).exists():
        raise ManifestError(
            f"the data {root.name} are not in {root.parent}: name the folder that has them with --shared"
        )
    return root


def write_manifest(folder: Path, rows: Iterable[Row]) -> Path:
    """Write cases as a manifest."""
    stream = io.StringIO(newline="")
    table = csv.DictWriter(stream, COLUMNS)
    table.writeheader()
    table.writerows(rows)
    path = folder / "manifest.csv"
    write_whole(path, stream.getvalue().encode())
    return path


def sha256(path: Path) -> str:
    """Of the content of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def png(mask: NDArray[np.uint8]) -> bytes:
    """A mask of class indices as PNG."""
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, format="png")
    return stream.getvalue()
