"""The store: what is written is what is read, "done" is what the ledger says, damage is found."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from tests.conftest import random_image
from wsiseg.classes import BREAST8, VOID
from wsiseg.errors import ConfigMismatch, IncompleteStore, StoreError
from wsiseg.plan import StorePlan, difference
from wsiseg.pyramid import mean_of_decided
from wsiseg.store import CaseStore, open_store
from wsiseg.windows import slabs

SHAPE = (1100, 700)
MASK: NDArray[np.uint8] = random_image(SHAPE, channels=1)[0] % 8


def make_plan(**changes: Any) -> StorePlan:
    plan = StorePlan(
        case="case",
        axes="yx",
        shape=SHAPE,
        spacing=(0.5, 0.25),
        unit="micrometer",
        image_shape=None,
        image_spacing=None,
        slab_rows=256,
        chunk=128,
        classes=BREAST8,
        inputs={"model": "a", "settings": {"core": None}},
        execution={"threads": 2},
    )
    return plan.model_copy(update=changes)


RECORD: dict[str, Any] = {"image": [], "unreadable": 0, "places": [], "outside_region": 0}


def fill(store: CaseStore, *, count: int | None = None, mask: NDArray[np.uint8] = MASK) -> None:
    for slab in store.pending()[:count]:
        store.write(slab, mask[slab.rows], record=RECORD)


def finished(path: Path, plan: StorePlan | None = None, mask: NDArray[np.uint8] = MASK) -> CaseStore:
    store = CaseStore.create_or_resume(path, plan or make_plan())
    fill(store, mask=mask)
    store.complete({})
    return store


def test_a_mask_is_read_back_as_it_was_written_with_its_pyramid(tmp_path: Path) -> None:
    finished(tmp_path / "case.ome.zarr")
    store = open_store(tmp_path / "case.ome.zarr")
    np.testing.assert_array_equal(store.mask()[:], MASK)
    np.testing.assert_array_equal(store.mask(1)[:], MASK[::2, ::2])
    np.testing.assert_array_equal(store.mask(2)[:], MASK[::4, ::4])
    assert store.geometry.spacing == (0.5, 0.25)
    assert store.verify() == []
    assert store.mask().shards == (256, 512)


def test_a_slab_of_nothing_but_background_counts_as_done(tmp_path: Path) -> None:
    empty = np.zeros(SHAPE, np.uint8)
    store = CaseStore.create_or_resume(tmp_path / "s", make_plan())
    fill(store, count=2, mask=empty)
    again = CaseStore.create_or_resume(tmp_path / "s", make_plan())
    assert [slab.index for slab in again.pending()] == [2, 3, 4]
    # zarr leaves no file for it: only the ledger knows.
    assert not list((tmp_path / "s" / "labels" / "tissue" / "0" / "c").glob("**/*"))


def test_a_ledger_entry_that_is_not_whole_or_of_another_plan_counts_as_missing(tmp_path: Path) -> None:
    store = CaseStore.create_or_resume(tmp_path / "s", make_plan())
    fill(store)
    entry = tmp_path / "s" / "ledger" / "slab-00003.json"
    entry.write_bytes(entry.read_bytes()[:-20])
    assert [slab.index for slab in store.pending()] == [3, 4]
    store.write(store.slabs[3], MASK[store.slabs[3].rows], record=RECORD)
    assert store.pending() == []
    data = json.loads(entry.read_text()) | {"plan": "another"}
    entry.write_text(json.dumps(data))
    assert [slab.index for slab in store.pending()] == [3, 4]


def test_a_store_begun_with_other_settings_is_refused_with_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fill(CaseStore.create_or_resume(path, make_plan()), count=1)
    with pytest.raises(ConfigMismatch, match="model was 'a' and is now 'b'"):
        CaseStore.create_or_resume(path, make_plan(inputs={"model": "b", "settings": {"core": None}}))
    with pytest.raises(ConfigMismatch, match="threads was 2 and is now 3"):
        CaseStore.create_or_resume(path, make_plan(execution={"threads": 3}))
    assert len(CaseStore.create_or_resume(path, make_plan()).pending()) == 4
    fresh = CaseStore.create_or_resume(path, make_plan(execution={"threads": 3}), overwrite=True)
    assert len(fresh.pending()) == 5


def test_a_finished_mask_stays_valid_where_the_machine_has_changed(tmp_path: Path) -> None:
    finished(tmp_path / "s")
    store = CaseStore.create_or_resume(tmp_path / "s", make_plan(execution={"threads": 3}))
    assert store.completion() is not None
    with pytest.raises(ConfigMismatch, match="model was"):
        CaseStore.create_or_resume(tmp_path / "s", make_plan(inputs={"model": "b"}))


def settings_of(**settings: Any) -> StorePlan:
    return make_plan(inputs={"model": "a", "settings": {"core": None, **settings}})


def test_a_store_of_a_program_that_did_not_know_a_setting_has_its_default(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fill(CaseStore.create_or_resume(path, make_plan()), count=2)
    store = CaseStore.create_or_resume(path, settings_of(confidence=False, views="none"))
    assert (store.plan, len(store.pending())) == (make_plan(), 3)
    with pytest.raises(ConfigMismatch, match="confidence was False and is now True"):
        CaseStore.create_or_resume(path, settings_of(confidence=True))
    fill(store)
    store.complete({})
    assert CaseStore.create_or_resume(path, settings_of(confidence=False)).completion() is not None
    with pytest.raises(ConfigMismatch, match="views was 'none' and is now 'flips'"):
        CaseStore.create_or_resume(path, settings_of(views="flips"))
    assert open_store(path).confidence() is None


def test_a_confidence_comes_with_every_slab_of_a_store_that_has_one(tmp_path: Path) -> None:
    store = CaseStore.create_or_resume(tmp_path / "s", settings_of(confidence=True))
    sure = random_image(SHAPE, channels=1, seed=3)[0]
    sure[:, 600:] = 0
    with pytest.raises(ValueError, match="slab 0 comes without a confidence"):
        store.write(store.slabs[0], MASK[:256], record=RECORD)
    for slab in store.slabs:
        store.write(slab, MASK[slab.rows], confidence=sure[slab.rows], record=RECORD)
    store.complete({})
    assert store.verify() == []
    stored, entries = store.confidence(), store.entries()
    assert stored is not None
    np.testing.assert_array_equal(stored[:], sure)
    for index in range(8):
        own = sure[(index == MASK) & (sure > 0)].astype(int)
        sums = [entry["confidence"]["sums"].get(str(index), [0, 0]) for entry in entries]
        assert np.sum(sums, axis=0).tolist() == [own.size, own.sum()]
    for row in (0, 255, 256, 1099):
        stored[row, 5] = int(sure[row, 5]) ^ 1
        start = row // 256 * 256
        sentence = f"confidence rows {start} to {min(start + 256, 1100)} are not what was written"
        assert store.verify() == [sentence]
        stored[row, 5] = int(sure[row, 5])
    plain = CaseStore.create_or_resume(tmp_path / "t", make_plan())
    with pytest.raises(ValueError, match="slab 0 comes with a confidence, which its store does not keep"):
        plain.write(plain.slabs[0], MASK[:256], confidence=sure[:256], record=RECORD)


def test_levels_of_a_confidence_are_means_of_what_was_decided() -> None:
    rows = np.array([[0, 0, 9, 0, 5], [0, 0, 2, 0, 0], [1, 2, 3, 5, 7]], np.uint8)
    np.testing.assert_array_equal(mean_of_decided(rows), [[0, 6, 5], [2, 4, 7]])
    ones = np.full((3, 3, 3), 255, np.uint8)
    np.testing.assert_array_equal(mean_of_decided(ones), np.full((2, 2, 2), 255))


def test_an_unfinished_or_foreign_folder_is_not_read_as_a_result(tmp_path: Path) -> None:
    store = CaseStore.create_or_resume(tmp_path / "s", make_plan())
    fill(store, count=2)
    with pytest.raises(IncompleteStore, match=r"unfinished \(2 of 5 slabs\)"):
        open_store(tmp_path / "s")
    with pytest.raises(IncompleteStore, match="3 slabs still to be written"):
        store.complete({})
    with pytest.raises(IncompleteStore, match="has no ledger"):
        open_store(tmp_path)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="is no result of wsiseg"):
        CaseStore.create_or_resume(foreign, make_plan())
    assert (foreign / "thesis.txt").exists()
    (tmp_path / "s" / "ledger" / "plan.json").write_text("{")
    with pytest.raises(IncompleteStore, match="is damaged; use --overwrite"):
        CaseStore.create_or_resume(tmp_path / "s", make_plan())


def test_a_store_killed_before_its_plan_was_written_is_begun_again(tmp_path: Path) -> None:
    store = CaseStore.create_or_resume(tmp_path / "s", make_plan())
    (tmp_path / "s" / "ledger" / "plan.json").unlink()
    assert CaseStore.create_or_resume(tmp_path / "s", make_plan()).pending() == store.slabs


def test_every_change_of_what_was_written_is_found(tmp_path: Path) -> None:
    image = random_image(SHAPE)
    plan = make_plan(image_shape=SHAPE, image_spacing=(0.5, 0.25))
    store = CaseStore.create_or_resume(tmp_path / "s", plan)
    for slab in store.pending():
        (piece,) = store.image_slabs(slab)
        written = store.write_image(piece, image[:, piece.rows])
        store.write(slab, MASK[slab.rows], record={**RECORD, "image": [written]})
    assert store.verify() == ["unfinished: 0 of 5 slabs are missing"]
    store.complete({})
    assert store.verify() == []
    stored = store.image()
    assert stored is not None
    np.testing.assert_array_equal(stored[:], image)
    store.mask()[300, 3] = int(MASK[300, 3]) ^ 1
    assert store.verify() == ["mask rows 256 to 512 are not what was written"]
    store.mask()[300, 3] = int(MASK[300, 3])
    stored[0, 10, 10] = int(image[0, 10, 10]) ^ 1
    assert store.verify() == ["image rows 0 to 256 are not what was written"]
    stored[0, 10, 10] = int(image[0, 10, 10])
    store.mask(1)[0, 0] = VOID
    assert store.verify() == ["pyramid level labels/tissue/1 is not what was written"]
    shard = next(p for p in (tmp_path / "s" / "1" / "c").rglob("*") if p.is_file())
    shard.write_bytes(shard.read_bytes()[:50])
    assert "pyramid level 1 is not what was written" in store.verify()


def test_the_image_pyramid_holds_rounded_means_and_odd_sizes_repeat_their_border(tmp_path: Path) -> None:
    shape = (601, 131)
    image = random_image(shape)
    plan = make_plan(shape=shape, image_shape=shape, image_spacing=(0.5, 0.25))
    store = CaseStore.create_or_resume(tmp_path / "s", plan)
    for slab in store.pending():
        for piece in store.image_slabs(slab):
            store.write_image(piece, image[:, piece.rows])
        store.write(slab, np.zeros((slab.rows.stop - slab.rows.start, 131), np.uint8), record=RECORD)
    store.complete({})
    padded = np.pad(image, [(0, 0), (0, 1), (0, 1)], mode="edge").astype(int)
    sums = padded[:, ::2, ::2] + padded[:, 1::2, ::2] + padded[:, ::2, 1::2] + padded[:, 1::2, 1::2]
    level = store.image(1)
    assert level is not None
    np.testing.assert_array_equal(level[:], (sums + 2) // 4)


@pytest.mark.parametrize("image_height", [1100, 550, 275, 733, 90])
def test_every_row_of_the_image_is_written_once_with_some_slab(tmp_path: Path, image_height: int) -> None:
    plan = make_plan(image_shape=(image_height, 300), image_spacing=(1.0, 1.0))
    store = CaseStore(tmp_path / "s", plan)
    pieces = [piece for slab in store.slabs for piece in store.image_slabs(slab)]
    assert pieces == slabs(image_height, rows=plan.image_rows)
    for slab in store.slabs:
        for piece in store.image_slabs(slab):
            assert piece.rows.stop * SHAPE[0] <= slab.rows.stop * image_height


def test_without_an_image_the_mask_itself_is_the_image_that_viewers_open(tmp_path: Path) -> None:
    finished(tmp_path / "s")
    ome: Any = zarr.open_group(tmp_path / "s", mode="r").attrs["ome"]
    datasets = ome["multiscales"][0]["datasets"]
    assert [d["path"] for d in datasets] == ["labels/tissue/0", "labels/tissue/1", "labels/tissue/2"]
    assert datasets[0]["coordinateTransformations"] == [{"type": "scale", "scale": [0.5, 0.25]}]
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "s", mode="r")[datasets[0]["path"]][:], MASK)  # type: ignore[index]
    label: Any = zarr.open_group(tmp_path / "s" / "labels" / "tissue", mode="r").attrs["ome"]
    names = {p["label-value"]: p["class"] for p in label["image-label"]["properties"]}
    assert names == {**{c.index: c.name for c in BREAST8}, VOID: "void"}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "the disk is full; make room and run the same command again"),
        (errno.EROFS, "the file system is read-only; choose another folder"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_the_disk_says_becomes_one_sentence_and_nothing_looks_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    store = CaseStore.create_or_resume(tmp_path / "s", make_plan())
    fill(store, count=2)

    async def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(zarr.storage.LocalStore, "set", refuse)
        with pytest.raises(StoreError, match=message):
            fill(store, count=1)
    assert len(store.pending()) == 3
    fill(store)
    store.complete({})
    assert store.verify() == []


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="a part of the path is a file; choose another folder"):
        CaseStore.create_or_resume(tmp_path / "file" / "s", make_plan())


def test_rows_of_another_size_are_refused(tmp_path: Path) -> None:
    store = CaseStore.create_or_resume(tmp_path / "s", make_plan())
    with pytest.raises(ValueError, match=r"rows 0 to 256 need \(256, 700\) pixels, got \(255, 700\)"):
        store.write(store.slabs[0], MASK[:255], record=RECORD)


def test_a_finished_store_that_lost_a_ledger_entry_is_found_and_not_read(tmp_path: Path) -> None:
    store = finished(tmp_path / "s")
    (tmp_path / "s" / "ledger" / "slab-00002.json").unlink()
    assert store.verify() == ["the ledger entry of slab 2 is missing or damaged"]
    store.mask()[900, 0] = int(MASK[900, 0]) ^ 1
    assert store.verify()[1] == "mask rows 768 to 1024 are not what was written"
    with pytest.raises(IncompleteStore, match="2 of 5 slabs"):
        open_store(tmp_path / "s")
    (tmp_path / "s" / "labels" / "tissue" / "0" / "zarr.json").unlink()
    assert "mask rows 0 to 256 are not what was written" in store.verify()


@pytest.mark.parametrize(
    ("before", "after"), [("windowed", "auto"), ("auto", "windowed"), ("auto", "streaming")]
)
def test_a_store_begun_with_another_executor_is_refused_by_that_name(before: str, after: str) -> None:
    def plan(asked: str) -> StorePlan:
        chosen = "streaming" if asked == "streaming" else "windowed"
        settings = {"settings": {"executor": asked, "core": None}}
        return make_plan(inputs=settings, execution={"executor": chosen, "core": [64, 64]})

    assert difference(plan(before), plan(after)) == f"executor was {before!r} and is now {after!r}"
    with pytest.raises(ValueError, match="the plans are equal"):
        difference(plan(before), plan(before))
