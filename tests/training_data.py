"""Run files and cases that the tests of the trainer share: pictures and volumes made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from wsiseg.training.run import Run, read_run

CLASSES: list[dict[str, Any]] = [
    {"index": 0, "name": "glass", "color": [255, 255, 255]},
    {"index": 1, "name": "stroma", "color": [255, 150, 200]},
    {"index": 2, "name": "nuclei", "color": [60, 0, 130]},
    {"index": 3, "name": "blood", "color": [220, 30, 30]},
    {"index": 4, "name": "mucus", "color": [150, 200, 220]},
]
BOX = [
    {"index": 0, "name": "background", "color": [0, 0, 0]},
    {"index": 1, "name": "front", "color": [255, 0, 0]},
    {"index": 2, "name": "back", "color": [0, 0, 255]},
]
TEXT = {"training_data": "synthetic", "licence": "none", "intended_use": "test"}
COLORS = np.array([(240, 240, 245), (220, 130, 190), (90, 40, 140), (210, 40, 50), (160, 200, 215)])
PICTURES: dict[str, Any] = {
    "name": "tiny",
    "out": "out",
    "data": {"manifest": "m.csv"},
    "network": {"name": "espnet", "arguments": {"classes": 5, "p": 1, "q": 1}},
    "classes": CLASSES,
    "spacing": {"value": 0.5},
    "preprocessing": {"mean": [180, 130, 180], "std": [60, 60, 60]},
    "patches": {"size": 32, "batch": 2},
    "losses": [{"kind": "cross-entropy"}],
    "optimiser": {"learning_rate": 0.01},
    "steps": 2,
    "threads": 1,
    "device": "cpu",
    "card": TEXT,
}
ESPNET3D = {"classes": 3, "channels": 1, "width": 0.25, "refinement": False}
VOLUMES: dict[str, Any] = PICTURES | {
    "axes": "zyx",
    "classes": BOX,
    "network": {"name": "espnet3d", "arguments": ESPNET3D},
    "spacing": {"value": [1.0, 1.0, 1.0], "unit": "millimeter"},
    "preprocessing": {
        "statistics": "case", "method": "percentiles", "percentiles": [1, 99], "mean": [0], "std": [1],
    },
    "patches": {"size": [16, 24, 16], "batch": 2},
    "losses": [{"kind": "dice-cross-entropy", "class_weights": "equal"}],
}  # fmt: skip


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with changes, section by section."""
    out = dict(base)
    for key, value in changes.items():
        inside = isinstance(value, dict) and isinstance(out.get(key), dict) and key != "network"
        out[key] = merged(out[key], value) if inside else value
    return out


def picture(seed: int, shape: tuple[int, int] = (48, 56)) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Blocks of five classes in their colours, with grain: RGB (y, x, 3) and truth (y, x)."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 5, (-(-shape[0] // 8), -(-shape[1] // 8)))
    truth = blocks.repeat(8, axis=0).repeat(8, axis=1)[: shape[0], : shape[1]].astype(np.uint8)
    rgb = COLORS[truth] + rng.normal(0, 6, (*shape, 3))
    return np.clip(rgb, 0, 255).astype(np.uint8), truth


def volume(
    seed: int, shape: tuple[int, int, int] = (13, 19, 15)
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A bright box on noise, front half class 1 and back half class 2, voxels (x, y, z) of any scale."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, np.uint8)
    start = rng.integers(2, 5, size=3)
    truth[start[0] : start[0] + 7, start[1] : start[1] + 6, start[2] : start[2] + 7] = 2
    truth[start[0] : start[0] + 7, start[1] + 6 : start[1] + 12, start[2] : start[2] + 7] = 1
    image = rng.normal(50, 8, shape) + np.choose(truth, [0, 40, 80])
    return (image * 10.0 ** rng.integers(0, 4)).astype(np.float32), truth


def save(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64] | None = None) -> None:
    """A NIfTI file of voxels (x, y, z)."""
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)  # type: ignore[no-untyped-call]


def pictures(folder: Path, *, splits: str = "ttv", **changes: Any) -> Run:
    """A run over synthetic pictures, one a letter: t for train, v for validation, e for test."""
    names = {"t": "train", "v": "validation", "e": "test"}
    rows = ["case,path,patient,split,annotation,mpp,licence"]
    folder.mkdir(exist_ok=True)
    for number, letter in enumerate(splits):
        rgb, truth = picture(number)
        Image.fromarray(rgb).save(folder / f"{number}.png")
        Image.fromarray(truth).save(folder / f"{number}-truth.png")
        rows.append(f"{number},{number}.png,p{number},{names[letter]},{number}-truth.png,0.5,none")
    (folder / "m.csv").write_text("\n".join(rows))
    return run_of(folder, PICTURES, changes)


def volumes(folder: Path, *, count: int = 3, **changes: Any) -> Run:
    """A run over synthetic volumes, the last of them for validation."""
    rows = ["case,path,patient,split,annotation,licence"]
    folder.mkdir(exist_ok=True)
    for number in range(count):
        image, truth = volume(number)
        save(folder / "images" / f"{number}.nii.gz", image)
        save(folder / "labels" / f"{number}.nii.gz", truth)
        split = "validation" if number == count - 1 else "train"
        rows.append(f"{number},images/{number}.nii.gz,p{number},{split},labels/{number}.nii.gz,none")
    (folder / "m.csv").write_text("\n".join(rows))
    return run_of(folder, VOLUMES, changes)


def run_of(folder: Path, base: dict[str, Any], changes: dict[str, Any]) -> Run:
    """The run file in a folder, written and read."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(merged(base, changes)))
    return read_run(path)
