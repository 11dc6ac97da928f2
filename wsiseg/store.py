"""A segmented case on disk: an OME-Zarr 0.5 image with its mask, and a ledger of what was written.

    CASE.ome.zarr/
    ├── zarr.json            multiscale image: "0", "1", ... or, without an image, the mask's levels
    ├── 0, 1, ...            image pyramid (c, y, x) uint8
    ├── labels/tissue/0, 1   mask pyramid (y, x) uint8
    ├── diagnosis            probabilities per window (c, y, x) float32, where the network has them
    └── ledger/              plan.json, slab-00000.json, ..., complete.json, tissue.npz, stats.json

A slab's data are written first, then its ledger entry, whole, with a hash. "Done" is what the ledger
says, never which files exist: an all-background slab leaves none. One process writes a store; a
slab is a row of whole shards, so no shard is ever written in two pieces.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import BaseZarrError

from wsiseg.errors import ConfigMismatch, IncompleteStore, StoreError
from wsiseg.files import content_hash, writing
from wsiseg.geometry import Geometry
from wsiseg.ledger import Ledger
from wsiseg.ngff import image_metadata, label_group_metadata, label_metadata
from wsiseg.plan import StorePlan, difference, plan_of
from wsiseg.pyramid import build_levels, create_array, level_hash, mean, pick
from wsiseg.windows import Slab, slabs

LABEL = "tissue"
MASK = f"labels/{LABEL}"
COUNTED_PX = 1 << 22
"""Pixels that are counted at a time."""
Mask = NDArray[np.uint8]
Image = NDArray[Any]
Map = NDArray[np.float32]


class CaseStore:
    """The store of one case. Open it with `create_or_resume`, or `open_complete` to read."""

    def __init__(self, path: Path, plan: StorePlan) -> None:
        self.path = path
        self.plan = plan
        self.ledger = Ledger(path / "ledger", plan=plan)
        self.slabs: list[Slab] = slabs(plan.shape[0], rows=plan.slab_rows)

    @classmethod
    def create_or_resume(cls, path: Path, plan: StorePlan, *, overwrite: bool = False) -> CaseStore:
        """A store ready to write. Raises ConfigMismatch where one with another plan is there."""
        store = cls(path, plan)
        with writing(path):
            if overwrite and path.exists():
                shutil.rmtree(path)
            recorded = plan_of(path)
            if recorded is None:
                if path.exists() and any(path.iterdir()):
                    # A ledger without a plan: killed before the first slab could begin.
                    if not (path / "ledger").is_dir():
                        raise StoreError(
                            f"{path} exists and is no result of wsiseg; use --overwrite to replace it"
                        )
                    shutil.rmtree(path)
                store._create()
                return store
        begun = cls(path, recorded)
        # A finished mask stays valid on a machine that would compute other floats.
        same = recorded.inputs == plan.inputs if begun.completion() else recorded == plan
        if not same:
            raise ConfigMismatch(
                f"{path} was begun with other settings: {difference(recorded, plan)}; use --overwrite "
                "to start again, or another --out"
            )
        for leftover in path.rglob("*.partial"):  # of a process that was killed while it wrote
            leftover.unlink()
        return begun

    @classmethod
    def open_complete(cls, path: Path) -> CaseStore:
        """A finished store, to read. Raises IncompleteStore."""
        plan = plan_of(path)
        if plan is None:
            raise IncompleteStore(f"{path} is not a wsiseg result: it has no ledger")
        store = cls(path, plan)
        if store.completion() is None or store.pending():
            done = len(store.slabs) - len(store.pending())
            raise IncompleteStore(
                f"{path} is unfinished ({done} of {len(store.slabs)} slabs); "
                "run the same segment command again"
            )
        return store

    # What is there.

    @property
    def geometry(self) -> Geometry:
        """The grid of the mask: level 0 of the input."""
        p = self.plan
        return Geometry(axes=p.axes, shape=p.shape, spacing=p.spacing, unit=p.unit)

    def entries(self) -> list[dict[str, Any]]:
        """Ledger entries of the slabs done so far, from the first on without a gap."""
        found = []
        for slab in self.slabs:
            entry = self.ledger.entry(_entry_name(slab))
            if entry is None:
                break
            found.append(entry)
        return found

    def pending(self) -> list[Slab]:
        """Slabs still to be written: all from the first one that is missing."""
        return self.slabs[len(self.entries()) :]

    def completion(self) -> dict[str, Any] | None:
        """What `complete` recorded, or None if the store is unfinished."""
        return self.ledger.entry("complete.json")

    def mask(self, level: int = 0) -> zarr.Array[Any]:
        """The mask, class indices (*axes) uint8."""
        return zarr.open_array(self.path / MASK / str(level), mode="r+")

    def image(self, level: int = 0) -> zarr.Array[Any] | None:
        """The stored image (C, *axes) uint8, or None if the store has none."""
        if self.plan.image_shape is None:
            return None
        return zarr.open_array(self.path / str(level), mode="r+")

    def image_slabs(self, slab: Slab) -> list[Slab]:
        """Pieces of the stored image that are written with a slab of the mask: those that end in it."""
        if self.plan.image_shape is None:
            return []
        height, image_height = self.plan.shape[0], self.plan.image_shape[0]
        start, stop = (r * image_height for r in (slab.rows.start, slab.rows.stop))
        pieces = slabs(image_height, rows=self.plan.image_rows)
        return [p for p in pieces if start < p.rows.stop * height <= stop]

    # Writing.

    def _create(self) -> None:
        plan = self.plan
        (self.path / "ledger").mkdir(parents=True)
        root = zarr.create_group(self.path)
        labels = root.create_group("labels")
        labels.attrs["ome"] = label_group_metadata([LABEL])
        labels.create_group(LABEL)
        mask = self.path / MASK / "0"
        create_array(mask, shape=plan.shape, axes=plan.axes, rows=plan.slab_rows, chunk=plan.chunk)
        if plan.image_shape is not None:
            create_array(
                self.path / "0",
                shape=(plan.image_channels, *plan.image_shape),
                axes=plan.axes,
                rows=plan.image_rows,
                chunk=plan.chunk,
                dtype=plan.image_dtype,
            )
        # Last: a store without a plan is one to which nothing was written.
        self.ledger.write("plan.json", plan.model_dump_json(indent=1).encode())

    def write(self, slab: Slab, mask: Mask, *, record: dict[str, Any]) -> None:
        """Write the finished rows of a slab: the data, then the ledger entry. Raises StoreError."""
        expected = (slab.rows.stop - slab.rows.start, *self.plan.shape[1:])
        if mask.shape != expected:
            raise ValueError(f"slab {slab.index} needs {expected} pixels, got {mask.shape}")
        with writing(self.path):
            self.mask()[slab.rows] = mask
        counts = _counts(mask)
        entry = {
            "rows": [slab.rows.start, slab.rows.stop],
            "sha256": content_hash(mask),
            "counts": {str(v): int(counts[v]) for v in np.flatnonzero(counts)},
            **record,
        }
        self.ledger.record(_entry_name(slab), entry)

    def write_image(self, piece: Slab, image: Image) -> list[Any]:
        """Write rows of the stored image (C, rows, ...); returns rows and hash for the slab's record."""
        array = self.image()
        assert array is not None
        with writing(self.path):
            array[:, piece.rows] = image
        return [piece.rows.start, piece.rows.stop, content_hash(image)]

    def complete(self, record: dict[str, Any], *, maps: Mapping[str, Map] | None = None) -> None:
        """Build the pyramids and metadata, then say "complete". Raises StoreError.

        `maps` are small arrays (C, *grid) of values per window, kept beside the mask. Safe to repeat:
        everything is made again from level 0.
        """
        if pending := self.pending():
            raise IncompleteStore(f"{self.path} has {len(pending)} slabs still to be written")
        plan = self.plan
        with writing(self.path):
            made = build_levels(self.path / MASK, axes=plan.axes, chunk=plan.chunk, shrink=pick)
            mask_levels = [f"{MASK}/{n}" for n in range(1 + len(made))]
            hashes = {f"{MASK}/{name}": value for name, value in made.items()}
            image_levels = []
            if plan.image_shape is not None:
                made = build_levels(self.path, axes=plan.axes, chunk=plan.chunk, shrink=mean)
                image_levels = [str(n) for n in range(1 + len(made))]
                hashes |= made
            for name, values in (maps or {}).items():
                names = ("c", *plan.axes)
                zarr.create_array(self.path / name, data=values, dimension_names=names, overwrite=True)
                hashes[name] = level_hash(self.path / name, axes=plan.axes, chunk=plan.chunk)
            self._describe(mask_levels, image_levels)
        self.ledger.record("complete.json", {"levels": hashes, **record})

    def _describe(self, mask_levels: list[str], image_levels: list[str]) -> None:
        """OME metadata of image and mask; without an image the mask is the root's image too."""
        plan = self.plan
        root = zarr.open_group(self.path, mode="r+")
        root.attrs["ome"] = image_metadata(
            name=plan.case,
            paths=image_levels or mask_levels,
            axes=plan.axes,
            spacing=plan.image_spacing or plan.spacing,
            unit=plan.unit,
            channels=bool(image_levels),
        )
        label = zarr.open_group(self.path / MASK, mode="r+")
        label.attrs["ome"] = label_metadata(
            name=LABEL,
            levels=len(mask_levels),
            axes=plan.axes,
            spacing=plan.spacing,
            unit=plan.unit,
            classes=plan.classes,
        )

    # Checking.

    @staticmethod
    def _rows_hash(open_array: Callable[[], zarr.Array[Any] | None], rows: tuple[slice, ...]) -> str:
        array = open_array()
        return "" if array is None else content_hash(np.asarray(array[rows]))

    def verify(self) -> list[str]:
        """Recompute every hash; returns a sentence for each piece that is not what was written."""
        problems = []
        completion = self.completion()
        by_slab = {slab.index: self.ledger.entry(_entry_name(slab)) for slab in self.slabs}
        entries = [entry for entry in by_slab.values() if entry is not None]
        if completion is None:
            missing = len(self.slabs) - len(entries)
            problems.append(f"unfinished: {missing} of {len(self.slabs)} slabs are missing")
        else:
            lost = [index for index, entry in by_slab.items() if entry is None]
            problems += [f"the ledger entry of slab {index} is missing or damaged" for index in lost]
        for entry in entries:
            start, stop = entry["rows"]
            if not _holds(entry["sha256"], partial(self._rows_hash, self.mask, (slice(start, stop),))):
                problems.append(f"mask rows {start} to {stop} are not what was written")
            for first, last, recorded in entry["image"]:
                rows = (slice(None), slice(first, last))
                if not _holds(recorded, partial(self._rows_hash, self.image, rows)):
                    problems.append(f"image rows {first} to {last} are not what was written")
        for name, recorded in (completion or {}).get("levels", {}).items():
            compute = partial(level_hash, self.path / name, axes=self.plan.axes, chunk=self.plan.chunk)
            if not _holds(recorded, compute):
                problems.append(f"pyramid level {name} is not what was written")
        return problems


def _counts(mask: Mask) -> NDArray[np.int64]:
    """How often each value occurs, counted in pieces: bincount makes 8 bytes of every pixel."""
    counts = np.zeros(256, np.int64)
    flat = mask.reshape(-1)
    for start in range(0, flat.size, COUNTED_PX):
        counts += np.bincount(flat[start : start + COUNTED_PX], minlength=256)
    return counts


def _entry_name(slab: Slab) -> str:
    return f"slab-{slab.index:05d}.json"


def _holds(recorded: str, compute: Callable[[], str]) -> bool:
    """True if the hash is as recorded; False too where the data cannot even be decoded."""
    try:
        return compute() == recorded
    except (OSError, ValueError, RuntimeError, BaseZarrError):
        return False


def open_store(path: str | Path) -> CaseStore:
    """A finished result: its `mask()`, `image()`, `geometry` and `plan`. Raises IncompleteStore."""
    return CaseStore.open_complete(Path(path))
