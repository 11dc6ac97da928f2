"""A segmented case on disk: an OME-Zarr 0.5 image with its mask, and a ledger of what was written.

    CASE.ome.zarr/
    ├── zarr.json            multiscale image: "0", "1", ... or, without an image, the mask's levels
    ├── 0, 1, ...            image pyramid (c, y, x) uint8
    ├── labels/tissue/0, 1   mask pyramid (y, x) uint8
    ├── confidence/0, 1      where it was asked for: 255 times the probability of the mask's class, uint8
    ├── diagnosis            probabilities per window (c, y, x) float32, where the network has them
    └── ledger/              plan.json, slab-00000.json, ..., complete.json, tissue.npz, stats.json

A slab's data are written first, then its ledger entry, whole, with a hash. "Done" is what the ledger
says, never which files exist: an all-background slab leaves none. One process writes a store (`claims`);
a slab is a row of whole shards, so no shard is ever written in two pieces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from wsiseg.errors import ConfigMismatch, IncompleteStore, StoreError
from wsiseg.files import remove_tree, writing
from wsiseg.geometry import Geometry
from wsiseg.ledger import Guard, Ledger, unguarded
from wsiseg.ngff import image_metadata, label_group_metadata, label_metadata
from wsiseg.objects import to_path, zarr_place
from wsiseg.plan import StorePlan, difference, plan_of, with_defaults
from wsiseg.pyramid import Pyramid, holds, level_hash, mean, mean_of_decided, pick
from wsiseg.tallies import confidence_sums, value_counts
from wsiseg.windows import Slab, slabs

LABEL = "tissue"
MASK = f"labels/{LABEL}"
CONFIDENCE = "confidence"
Mask = NDArray[np.uint8]
Image = NDArray[Any]
Map = NDArray[np.float32]


class CaseStore:
    """The store of one case. Open it with `create_or_resume`, or `open_complete` to read."""

    def __init__(self, path: Path, plan: StorePlan, *, guard: Guard = unguarded) -> None:
        self.path = path
        self.plan = plan
        self.ledger = Ledger(path / "ledger", plan=plan, guard=guard)
        self.slabs: list[Slab] = slabs(plan.shape[0], rows=plan.slab_rows)
        self._mask = Pyramid(path / MASK, plan.shape, plan.axes, plan.slab_rows, plan.chunk, pick)
        self._confidence = self._image = None
        if plan.confidence:
            self._confidence = dataclasses.replace(
                self._mask, folder=path / CONFIDENCE, shrink=mean_of_decided
            )
        if plan.image_shape is not None:
            shape = (plan.image_channels, *plan.image_shape)
            self._image = Pyramid(path, shape, plan.axes, plan.image_rows, plan.chunk, mean, plan.image_dtype)

    @property
    def _pyramids(self) -> list[Pyramid]:
        return [p for p in (self._mask, self._confidence, self._image) if p is not None]

    @classmethod
    def create_or_resume(
        cls, path: Path, plan: StorePlan, *, overwrite: bool = False, guard: Guard = unguarded
    ) -> CaseStore:
        """A store ready to write, as long as `guard` lets it.

        What was begun under a plan that ran out of memory is discarded for the one that takes over; no
        store has slabs of two. Raises ConfigMismatch where one with another plan is there.
        """
        store = cls(path, plan, guard=guard)
        with writing(path):
            recorded = None if overwrite else plan_of(path)
            if recorded is not None and plan.takes_over(recorded):
                overwrite = cls(path, recorded).completion() is None
            if overwrite and path.exists():
                discard(path)
                recorded = None
            if recorded is None:
                if path.exists() and any(path.iterdir()):
                    # A ledger without a plan: killed before the first slab could begin.
                    if not (path / "ledger").is_dir():
                        raise StoreError(
                            f"{path} exists and is no result of wsiseg; use --overwrite to replace it"
                        )
                    discard(path)
                store._create()
                return store
        begun = cls(path, recorded, guard=guard)
        # A finished mask stays valid on a machine that would compute other floats.
        old, new = with_defaults(recorded), with_defaults(plan)
        same = old.inputs == new.inputs if begun.completion() else old == new
        if not same:
            raise ConfigMismatch(
                f"{path} was begun with other settings: {difference(old, new)}; use --overwrite "
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
            entry = self.ledger.slab(_entry_name(slab))
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
        return self._mask.level(level)

    def confidence(self, level: int = 0) -> zarr.Array[Any] | None:
        """How sure the network was of the mask (*axes) uint8, or None if the store does not say.

        255 is a probability of 1; 0 is where no network decided: glass, void.
        """
        return None if self._confidence is None else self._confidence.level(level)

    def image(self, level: int = 0) -> zarr.Array[Any] | None:
        """The stored image (C, *axes) uint8, or None if the store has none."""
        return None if self._image is None else self._image.level(level)

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
        root = zarr.create_group(zarr_place(self.path))
        labels = root.create_group("labels")
        labels.attrs["ome"] = label_group_metadata([LABEL])
        labels.create_group(LABEL)
        if plan.confidence:
            root.create_group(CONFIDENCE)
        for pyramid in self._pyramids:
            pyramid.create()
        # Last: a store without a plan is one to which nothing was written.
        self.ledger.write("plan.json", plan.model_dump_json(indent=1).encode())

    def write(
        self, slab: Slab, mask: Mask, *, record: dict[str, Any], confidence: Mask | None = None
    ) -> None:
        """Write the finished rows of a slab: the data, then the ledger entry. Raises StoreError."""
        if confidence is None and self._confidence is not None:
            raise ValueError(f"slab {slab.index} comes without a confidence, which its store keeps")
        if confidence is not None and self._confidence is None:
            raise ValueError(f"slab {slab.index} comes with a confidence, which its store does not keep")
        with self.ledger.writing():
            entry: dict[str, Any] = {
                "rows": [slab.rows.start, slab.rows.stop],
                "sha256": self._mask.write(slab.rows, mask),
                "counts": value_counts(mask),
            }
            if confidence is not None and self._confidence is not None:
                sha256 = self._confidence.write(slab.rows, confidence)
                entry["confidence"] = {"sha256": sha256, "sums": confidence_sums(mask, confidence)}
        self.ledger.record(_entry_name(slab), entry | record)

    def write_image(self, piece: Slab, image: Image) -> list[Any]:
        """Write rows of the stored image (C, rows, ...); returns rows and hash for the slab's record."""
        assert self._image is not None
        with self.ledger.writing():
            sha256 = self._image.write(piece.rows, image)
        return [piece.rows.start, piece.rows.stop, sha256]

    def complete(self, record: dict[str, Any], *, maps: Mapping[str, Map] | None = None) -> None:
        """Build the pyramids and metadata, then say "complete". Raises StoreError.

        `maps` are small arrays (C, *grid) of values per window, kept beside the mask. Safe to repeat:
        everything is made again from level 0.
        """
        if pending := self.pending():
            raise IncompleteStore(f"{self.path} has {len(pending)} slabs still to be written")
        plan = self.plan
        with self.ledger.writing():
            hashes: dict[str, str] = {}
            for pyramid in self._pyramids:
                self.ledger.guard()
                made = pyramid.build()
                hashes |= {self._name(pyramid, level): value for level, value in made.items()}
                self._describe(pyramid, levels=1 + len(made))
            for name, values in (maps or {}).items():
                names = ("c", *plan.axes)
                place = zarr_place(self.path / name)
                zarr.create_array(place, data=values, dimension_names=names, overwrite=True)
                hashes[name] = level_hash(self.path / name, axes=plan.axes, chunk=plan.chunk)
        self.ledger.record("complete.json", {"levels": hashes, **record})

    def _name(self, pyramid: Pyramid, level: str) -> str:
        """Of a level, as a path in the store."""
        return (pyramid.folder / level).relative_to(self.path).as_posix()

    def _describe(self, pyramid: Pyramid, *, levels: int) -> None:
        """OME metadata of image, mask and confidence; without an image the mask is the root's image too."""
        plan = self.plan
        names = [str(n) for n in range(levels)]
        place: dict[str, Any] = {"axes": plan.axes, "spacing": plan.spacing, "unit": plan.unit}
        group = zarr.open_group(zarr_place(pyramid.folder), mode="r+")
        if pyramid is self._image:
            place["spacing"] = plan.image_spacing
            group.attrs["ome"] = image_metadata(name=plan.case, paths=names, channels=True, **place)
        elif pyramid is self._confidence:
            group.attrs["ome"] = image_metadata(name=CONFIDENCE, paths=names, channels=False, **place)
        else:
            group.attrs["ome"] = label_metadata(name=LABEL, levels=levels, classes=plan.classes, **place)
            if self._image is None:
                root = zarr.open_group(zarr_place(self.path), mode="r+")
                paths = [self._name(pyramid, name) for name in names]
                root.attrs["ome"] = image_metadata(name=plan.case, paths=paths, channels=False, **place)

    # Checking.

    def verify(self) -> list[str]:
        """Recompute every hash; returns a sentence for each piece that is not what was written."""
        problems = []
        completion = self.completion()
        by_slab = {slab.index: self.ledger.slab(_entry_name(slab)) for slab in self.slabs}
        entries = [entry for entry in by_slab.values() if entry is not None]
        if completion is None:
            missing = len(self.slabs) - len(entries)
            problems.append(f"unfinished: {missing} of {len(self.slabs)} slabs are missing")
        else:
            lost = [index for index, entry in by_slab.items() if entry is None]
            problems += [f"the ledger entry of slab {index} is missing or damaged" for index in lost]
        for entry in entries:
            problems += [
                f"{what} rows {start} to {stop} are not what was written"
                for what, pyramid, (start, stop, recorded) in self._written(entry)
                if not pyramid.holds(slice(start, stop), recorded)
            ]
        for name, recorded in (completion or {}).get("levels", {}).items():
            compute = partial(level_hash, self.path / name, axes=self.plan.axes, chunk=self.plan.chunk)
            if not holds(recorded, compute):
                problems.append(f"pyramid level {name} is not what was written")
        return problems

    def forget_damaged(self) -> None:
        """Take the slabs that are not what was written, and all below them, as still to be written."""
        for slab, entry in zip(self.slabs, self.entries(), strict=False):
            if not all(pyramid.holds(slice(a, b), h) for _, pyramid, (a, b, h) in self._written(entry)):
                self.ledger.forget(_entry_name(slab))
                return

    def _written(self, entry: dict[str, Any]) -> list[tuple[str, Pyramid, list[Any]]]:
        """What a ledger entry says was written: name, where, and first row, last row and hash."""
        written = [("mask", self._mask, [*entry["rows"], entry["sha256"]])]
        if self._confidence is not None:
            written.append((CONFIDENCE, self._confidence, [*entry["rows"], entry[CONFIDENCE]["sha256"]]))
        if self._image is not None:
            written += [("image", self._image, piece) for piece in entry["image"]]
        return written


def discard(path: Path) -> None:
    """Remove a store so that whoever finds a part of it, should this be stopped, can tell what it is."""
    ledger = path / "ledger"
    (ledger / "plan.json").unlink(missing_ok=True)  # first: nothing that is left is taken for begun
    for entry in path.iterdir():
        if entry.is_dir() and entry != ledger and not entry.is_symlink():
            remove_tree(entry)
    remove_tree(path)


def _entry_name(slab: Slab) -> str:
    return f"slab-{slab.index:05d}.json"


def open_store(path: str | Path) -> CaseStore:
    """A finished result: its `mask()`, `image()`, `geometry` and `plan`. Raises IncompleteStore."""
    return CaseStore.open_complete(to_path(path))
