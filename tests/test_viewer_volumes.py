"""Slices in the viewer show every voxel where it is in the body."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import wsiseg
from tests.conftest import REPOSITORY
from tests.test_store import RECORD, make_plan
from tests.volume_files import OBLIQUE, ORIENTATIONS, affine_of, canonical, random_voxels, save
from wsiseg.classes import MaskClass
from wsiseg.errors import UsageError
from wsiseg.export.nifti import write_nifti
from wsiseg.planes import VIEWS
from wsiseg.sources.nifti import nifti_grid, open_nifti
from wsiseg.store import CaseStore
from wsiseg.viewer import slices
from wsiseg.viewer.cases import find
from wsiseg.viewer.places import Places
from wsiseg.viewer.server import ViewerServer, open_viewer
from wsiseg.viewer.slices import SliceLayer
from wsiseg.viewer.volumes import VolumeCase

SHAPE = (40, 70, 23)
SPACING = (3.0, 0.5, 1.25)
SAMPLE = REPOSITORY / "wsiseg" / "samples" / "msd-hippocampus"
CLASSES = tuple(
    MaskClass(index=n, name=name, color=(80 * n, 0, 0)) for n, name in enumerate(("background", "a", "b"))
)


def checkers(shape: tuple[int, ...], *, sides: tuple[int, ...] = (3, 5, 4)) -> NDArray[np.uint8]:
    """Blocks of another size along each axis, with a mark that no symmetry keeps."""
    at = np.ogrid[tuple(slice(0, n) for n in shape)]
    board = sum((a // side for a, side in zip(at, sides, strict=True)), start=np.zeros(shape, int)) % 3
    board[0, 0, 0] = board[-1, 0, 0] = 255
    return board.astype(np.uint8)


def stored(
    path: Path,
    mask: NDArray[np.uint8],
    *,
    image: NDArray[Any] | None = None,
    confidence: NDArray[np.uint8] | None = None,
    spacing: tuple[float, ...] = SPACING,
) -> CaseStore:
    plan = make_plan(
        axes="zyx", shape=mask.shape, spacing=spacing, unit="millimeter", slab_rows=16, chunk=16,
        classes=CLASSES, inputs={"settings": {"confidence": confidence is not None}},
    )  # fmt: skip
    if image is not None:
        kept = {"image_shape": image.shape[1:], "image_channels": len(image), "image_spacing": spacing}
        plan = plan.model_copy(update={**kept, "image_dtype": image.dtype.name})
    store = CaseStore.create_or_resume(path, plan)
    for slab in store.pending():
        pieces = store.image_slabs(slab)
        written = [] if image is None else [store.write_image(p, image[:, p.rows]) for p in pieces]
        store.write(
            slab,
            mask[slab.rows],
            record={**RECORD, "image": written},
            confidence=None if confidence is None else confidence[slab.rows],
        )
    store.complete({})
    return store


def case_of(path: Path, places: Places | None = None) -> VolumeCase:
    (case,) = find(path, places=places or Places()).values()
    assert isinstance(case, VolumeCase)
    return case


@pytest.mark.parametrize("slab_bytes", [1, 5000, 1 << 24])
def test_every_slice_is_that_of_the_array_whatever_is_read_at_a_time(
    slab_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "SLAB_BYTES", slab_bytes)
    values = np.stack([random_voxels(SHAPE, seed=n) for n in range(2)])
    regions = []

    def read(region: tuple[slice, ...]) -> NDArray[Any]:
        regions.append(region)
        return values[(slice(None), *region)]

    layer = SliceLayer(read, shape=SHAPE, grid=SHAPE, dtype=values.dtype, channels=2, chunk=16)
    for axis in range(3):
        for index, channel in itertools.product(range(SHAPE[axis]), range(2)):
            found = layer.slice(axis, index, channel=channel)
            np.testing.assert_array_equal(found, values[channel].take(index, axis))
            raw = np.frombuffer(layer.encoded(axis, index, channel=channel), "<i2").reshape(found.shape)
            np.testing.assert_array_equal(raw, found)
    if slab_bytes == 1 << 24:  # once an axis, not once a slice
        assert len(regions) == sum(-(-n // 16) for n in SHAPE)


def test_an_image_of_another_grid_lies_under_its_mask_by_the_centres_of_voxels() -> None:
    image = random_voxels((20, 35, 69))  # coarser along z and y, finer along x
    layer = SliceLayer(
        lambda region: image[region][None], shape=image.shape, grid=SHAPE, dtype=image.dtype, chunk=16
    )
    under = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)[:, :, 1::3]
    for axis in range(3):
        for index in (0, 1, SHAPE[axis] // 2, SHAPE[axis] - 1):
            np.testing.assert_array_equal(layer.slice(axis, index), under.take(index, axis))


@pytest.mark.parametrize(
    ("axis", "index", "channel"), [(3, 0, 0), (-1, 0, 0), (0, 40, 0), (0, -1, 0), (0, 0, 1)]
)
def test_slices_that_are_not_there_are_refused(axis: int, index: int, channel: int) -> None:
    layer = SliceLayer(lambda _: np.zeros((1, *SHAPE)), shape=SHAPE, grid=SHAPE, dtype=np.dtype(float))
    with pytest.raises(IndexError, match="there is no slice"):
        layer.slice(axis, index, channel=channel)


def test_a_volume_has_its_image_its_doubt_and_its_truth(tmp_path: Path) -> None:
    mask = checkers(SHAPE)
    image = random_voxels((2, *SHAPE)).astype(np.float32) / 8
    sure = np.full(SHAPE, 200, np.uint8)
    sure[16:24, 40:48, 8:16] = 51
    sure[18, 41, 13], sure[18, 41, 14], sure[18, 41, 15] = 50, 52, 0  # the last was decided by no network
    sure[:8, :8, :8] = 0
    sure[32:, 64:, 16:] = 102  # a cube that is cut off by the volume's end
    stored(tmp_path / "out" / "v.ome.zarr", mask, image=image, confidence=sure)
    save(tmp_path / "v.nii.gz", mask[::-1].T.copy(), np.diag([1.25, 0.5, -3.0, 1.0]))
    case = case_of(tmp_path / "out", Places(truth=tmp_path / "v.nii.gz"))
    facts = case.facts()
    assert facts["layers"] == ["confidence", "image", "mask", "truth"]
    assert (facts["kind"], facts["shape"], facts["mm"]) == ("volume", list(SHAPE), list(SPACING))
    assert (facts["dtype"], [c["name"] for c in facts["channels"]]) == ("float32", ["channel 0", "channel 1"])
    assert facts["affine"] is None
    for axis in range(3):
        at = SHAPE[axis] - 1
        np.testing.assert_array_equal(case.layers["mask"].slice(axis, at), mask.take(at, axis))
        np.testing.assert_array_equal(case.layers["truth"].slice(axis, at), mask.take(at, axis))
        np.testing.assert_array_equal(case.layers["confidence"].slice(axis, at), sure.take(at, axis))
        np.testing.assert_array_equal(
            case.layers["image"].slice(axis, at, channel=1), image[1].take(at, axis)
        )
    first, second = facts["unsure"][:2]
    assert first == {"z": 18, "y": 41, "x": 13, "confidence": 0.2}
    assert second == {"z": 32, "y": 64, "x": 16, "confidence": 0.4}
    assert all(place["confidence"] == 200 / 255 for place in facts["unsure"][2:])
    assert not any(place["z"] < 8 and place["y"] < 8 and place["x"] < 8 for place in facts["unsure"])
    low, high = facts["channels"][0]["window"]
    assert facts["channels"][0]["range"][0] <= low < high <= facts["channels"][0]["range"][1]
    assert sorted(case.layers) == facts["layers"]
    before = case.layers
    case.forget()
    assert case.layers is not before
    np.testing.assert_array_equal(case.layers["mask"].slice(0, 0), mask[0])


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS[::5])
@pytest.mark.parametrize("turn", [None, OBLIQUE], ids=["straight", "oblique"])
def test_a_voxel_of_a_slice_lies_where_its_file_says(
    axes: tuple[int, ...], signs: tuple[int, ...], turn: Any, tmp_path: Path
) -> None:
    file = save(tmp_path / "scan.nii.gz", random_voxels(), affine_of(axes, signs, turn=turn))
    source = open_nifti(file)
    mask = checkers(source.geometry.shape, sides=(1, 1, 1))
    store = stored(tmp_path / "out" / "scan.ome.zarr", mask, spacing=source.geometry.spacing)
    write_nifti(tmp_path / "out" / "scan.mask.nii.gz", store.mask(), source.native)
    beside = case_of(tmp_path / "out")
    named = case_of(tmp_path / "out", Places(images=file))
    image: Any = nib.load(file)
    voxels = np.asarray(image.dataobj)
    for case in (beside, named):
        affine = np.array(case.facts()["affine"])
        for i, j, k in ((0, 0, 0), (4, 1, 2), (2, 5, 3)):
            z, y, x = np.rint(np.linalg.inv(affine) @ image.affine @ (i, j, k, 1))[2::-1].astype(int)
            assert named.layers["image"].slice(0, z)[y, x] == voxels[i, j, k]
            assert named.layers["image"].slice(1, y)[z, x] == voxels[i, j, k]
            assert named.layers["image"].slice(2, x)[z, y] == voxels[i, j, k]
            np.testing.assert_allclose(affine @ (x, y, z, 1), image.affine @ (i, j, k, 1), atol=1e-4)
    # The letters: later voxels lie further right, anterior and superior.
    for n in range(3):
        assert np.argmax(np.abs(affine[:3, n])) == n or turn is not None
        assert affine[n, n] > 0
    assert [(v.name, v.axis, v.left, v.right) for v in VIEWS] == [
        ("axial", 0, "R", "L"), ("coronal", 1, "R", "L"), ("sagittal", 2, "A", "P"),
    ]  # fmt: skip


def test_the_list_of_cases_opens_no_images(tmp_path: Path) -> None:
    stored(tmp_path / "out" / "v.ome.zarr", checkers(SHAPE))
    broken = tmp_path / "v.nii.gz"
    broken.write_bytes(b"no such file")
    case = case_of(tmp_path / "out", Places(images=broken, truth=broken))
    assert case.summary()["layers"] == ["image", "mask", "truth"]
    with pytest.raises(wsiseg.WsisegError, match="cannot be read as NIfTI"):
        case.facts()


def test_where_nothing_says_how_a_volume_lies_no_side_is_named(tmp_path: Path) -> None:
    stored(tmp_path / "v.ome.zarr", checkers(SHAPE))
    assert case_of(tmp_path).facts()["affine"] is None
    (tmp_path / "v.mask.nii.gz").write_bytes(b"no such file")
    assert case_of(tmp_path).facts()["affine"] is None
    save(tmp_path / "v.mask.nii.gz", np.zeros((3, 3, 3), np.uint8))  # of another volume
    assert case_of(tmp_path).facts()["affine"] is None
    assert case_of(tmp_path).facts()["channels"] == []
    picture = Image.open(io.BytesIO(case_of(tmp_path).thumbnail))
    assert picture.size == (148, 180)  # 23 x 1.25 mm across, 70 x 0.5 mm down
    with pytest.raises(UsageError, match=r"has \(3, 3, 3\) voxels, the mask of v has \(40, 70, 23\); name"):
        _ = case_of(tmp_path, Places(images=tmp_path / "v.mask.nii.gz")).layers


def test_the_grid_is_read_from_a_header_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii.gz", random_voxels((50, 60, 40)), affine_of((2, 0, 1), (1, -1, 1)))
    np.testing.assert_array_equal(nifti_grid(path).canonical_affine, open_nifti(path).native.canonical_affine)
    path.write_bytes(path.read_bytes()[:50_000])  # without most voxels
    assert nifti_grid(path).shape == (50, 60, 40)
    path.write_bytes(b"\x1f\x8b not")
    with pytest.raises(wsiseg.WsisegError, match="has no NIfTI header that can be read"):
        nifti_grid(path)


# The server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ViewerServer]:
    image = random_voxels((1, *SHAPE)).astype(np.uint16)
    stored(tmp_path / "v.ome.zarr", checkers(SHAPE), image=image)
    stored(tmp_path / "w" / "é.ome.zarr", checkers(SHAPE)[::-1])
    with open_viewer(tmp_path) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield running
        running.shutdown()


def ask(server: ViewerServer, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)  # type: ignore[arg-type]
    connection.request("GET", path)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_slices_and_small_pictures_are_served(server: ViewerServer) -> None:
    assert [(one["name"], one["kind"]) for one in json.loads(ask(server, "/api/cases")[1])] == [
        ("v", "volume"),
        ("w/é", "volume"),
    ]
    facts = json.loads(ask(server, "/api/case/v")[1])
    assert (facts["dtype"], facts["shape"]) == ("uint16", list(SHAPE))
    mask = checkers(SHAPE)
    for axis, index in ((0, 39), (1, 7), (2, 22)):
        for name, expected in (("v", mask), ("w%2F%C3%A9", mask[::-1])):
            status, body = ask(server, f"/slices/mask/{axis}/{index}/0/{name}")
            assert (status, body) == (200, expected.take(index, axis).tobytes())
    image = np.frombuffer(ask(server, "/slices/image/1/7/0/v")[1], "<u2")
    np.testing.assert_array_equal(image, random_voxels((1, *SHAPE)).astype(np.uint16)[0].take(7, 1).ravel())
    assert ask(server, "/thumbnail/v")[1].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "path",
    [
        "/slices/mask/0/40/0/v", "/slices/mask/3/0/0/v", "/slices/mask/0/0/1/v", "/slices/truth/0/0/0/v",
        "/slices/mask/0/x/0/v", "/slices/mask/0/0/0/other", "/slices/mask/0/0/0", "/thumbnail/other",
        "/tiles/mask/0/0/0/v", "/api/at/v?row=0&column=0", "/thumbnail",
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_found(server: ViewerServer, path: str) -> None:
    assert ask(server, path)[0] == 404


def test_the_shipped_volume_is_shown_with_its_scores(tmp_path: Path) -> None:
    name = "hippocampus_149.nii.gz"
    made = wsiseg.segment(
        SAMPLE / "images" / name, tmp_path, annotations=SAMPLE / "labels" / name, confidence=True
    )
    case = case_of(tmp_path, Places(truth=SAMPLE / "labels"))
    facts = case.facts()
    assert facts["layers"] == ["confidence", "image", "mask", "truth"]
    assert [c["volume_ml"] for c in facts["classes"]] == [c.volume_ml for c in made.classes]
    assert made.scores is not None
    assert facts["mean_iou"] == made.scores.mean_iou
    np.testing.assert_array_equal(
        case.layers["image"].slice(2, 9), canonical(SAMPLE / "images" / name)[:, :, 9]
    )
    middle = facts["start"]
    mask = case.layers["mask"].slice(0, middle[0])
    assert (mask > 0).sum() == max((case.layers["mask"].slice(0, z) > 0).sum() for z in range(32))
