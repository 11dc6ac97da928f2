"""Volumes through the same core: grids, executors, resume, scores and what lies beside the store."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import wsiseg
from tests.cases import Interrupted, mask_of, stop_after
from tests.conftest import espnet3d_card
from wsiseg.errors import AnnotationError, UsageError, WsisegError
from wsiseg.models.importing import import_checkpoint
from wsiseg.models.registry import load_network
from wsiseg.models.weights import save_weights
from wsiseg.preprocess import CaseStats, apply, fit
from wsiseg.report import Report
from wsiseg.sources.volumes import open_volume

SPACING = (0.7, 1.1, 2.3)  # of the file's axes i, j, k
LABELS = 4
PLAIN: dict[str, Any] = {"chunk": 16, "slab": 16}


class Nearest(nn.Module):
    """Scores that are highest for the class that an intensity names: -(x - k)^2, without x^2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, LABELS, 1)
        k = torch.arange(LABELS, dtype=torch.float32)
        self.conv.weight.data = (2 * k).view(LABELS, 1, 1, 1, 1)
        assert self.conv.bias is not None
        self.conv.bias.data = -(k**2)

    def forward(self, volume: Tensor) -> Tensor:
        out: Tensor = self.conv(volume)
        return out


def edited(card: Path, **changes: Any) -> Path:
    """A card with some entries changed."""
    data = json.loads(card.read_text())
    data["preprocessing"] |= changes.pop("preprocessing", {})
    card.write_text(json.dumps(data | changes))
    return card


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card whose network gives back the labels that it is shown."""
    folder = tmp_path_factory.mktemp("identity")
    save_weights(Nearest(), folder / "w.safetensors")
    import_checkpoint(
        folder / "w.safetensors", folder / "m.json", network="python:tests.test_volumes:Nearest",
        trust_code=True,
    )  # fmt: skip
    return edited(
        folder / "m.json",
        channels=1,
        preprocessing={"mean": [0.0], "std": [1.0]},
        background=0,
    )


def affine_of(order: tuple[int, ...], signs: tuple[int, ...]) -> NDArray[np.float64]:
    """A file whose axis n runs along axis order[n] of the body, in the direction signs[n]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (body, sign) in enumerate(zip(order, signs, strict=True)):
        affine[body, axis] = sign * SPACING[axis]
    affine[:3, 3] = (12.0, -7.5, 30.0)
    return affine


ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def write_volume(path: Path, values: NDArray[Any], affine: NDArray[np.float64] | None = None) -> Path:
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_labels_come_back_on_the_files_grid_in_every_orientation(
    identity: Path, tmp_path: Path, step: int
) -> None:
    labels = np.random.default_rng(1).integers(0, LABELS, (9, 14, 21)).astype(np.uint8)
    for number, (order, signs) in enumerate(ORIENTATIONS[::step]):
        affine = affine_of(order, signs)
        path = write_volume(tmp_path / f"v{number}.nii", labels, affine)
        report = wsiseg.segment(
            path, tmp_path / "out", identity, annotations=path, image="none", trust_code=True, **PLAIN
        )
        assert report.nifti is not None
        made: Any = nib.load(report.nifti)
        np.testing.assert_array_equal(np.asarray(made.dataobj), labels)
        np.testing.assert_allclose(made.affine, affine, atol=1e-5)
        assert nib.aff2axcodes(made.affine) == nib.aff2axcodes(affine)
        np.testing.assert_allclose(made.header.get_zooms(), SPACING, rtol=1e-6)
        assert report.volume_scores is not None
        assert report.volume_scores.mean_dice == 1.0


def test_the_report_of_a_volume_speaks_of_millilitres(identity: Path, tmp_path: Path) -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[2:7, 3:8, 4:9] = 2
    path = write_volume(tmp_path / "v.nii.gz", labels, np.diag([2.0, 2.0, 2.0, 1.0]))
    report = wsiseg.segment(path, tmp_path, identity, trust_code=True, **PLAIN)
    assert report.case == "v"
    assert [c.area_mm2 for c in report.classes] == [None] * LABELS
    assert report.classes[2].volume_ml == 125 * 8 / 1000
    assert report.overlay.stat().st_size > 10_000
    store = wsiseg.open_store(report.store)
    image = store.image()
    assert image is not None
    np.testing.assert_array_equal(np.asarray(image[0]), labels.T)
    assert store.verify() == []


# -- executors ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fully convolutional 3D-ESPNet with seeded weights for two modalities."""
    return edited(
        espnet3d_card(tmp_path_factory.mktemp("model"), channels=2),
        preprocessing={"statistics": "case", "foreground": "nonzero"},
        modalities=["t1n", "t2w"],
        background=0,
    )


SHAPE = (26, 44, 37)  # x, y, z


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two modalities of a body with nothing round it."""
    folder = tmp_path_factory.mktemp("case")
    rng = np.random.default_rng(8)
    for name in ("t1n", "t2w"):
        values = np.zeros(SHAPE, np.int16)
        values[2:24, 3:40, 1:35] = rng.integers(1, 900, (22, 37, 34))
        write_volume(folder / f"case-{name}.nii.gz", values)
    return folder


def one_pass(model: Path, case: Path) -> NDArray[np.int64]:
    """The mask of one pass over the whole volume, padded with 0 to the output stride."""
    source = open_volume(case, modalities=("t1n", "t2w"))
    assert source is not None
    card = json.loads(model.read_text())
    spec = wsiseg.load_predictor(model).card.preprocessing
    stats = fit(source, spec)
    values = torch.from_numpy(source.read(source.geometry.whole).values.astype(np.float32))[None]
    padding = [n for size in reversed(values.shape[2:]) for n in (0, -size % 8)]
    pixels = nn.functional.pad(apply(values, stats, spec), padding)
    with torch.inference_mode():
        scores = load_network(model)(pixels)[0]
    assert card["network"]["name"] == "espnet3d"
    region = tuple(slice(0, n) for n in source.geometry.shape)
    return np.asarray(scores.argmax(0)[region])


@pytest.mark.parametrize("memory", [None, 640])
def test_a_volume_in_bands_of_slices_equals_one_pass(
    model: Path, case: Path, tmp_path: Path, memory: int | None
) -> None:
    report = wsiseg.segment(
        case, tmp_path, edited(model), memory=memory, tissue_filter=False, image="none", **PLAIN
    )
    assert report.execution["executor"] == "streaming"
    np.testing.assert_array_equal(mask_of(report), one_pass(model, case))


def test_what_is_empty_round_a_body_is_background(model: Path, case: Path, tmp_path: Path) -> None:
    report = wsiseg.segment(case, tmp_path, model, image="none", **PLAIN)
    expected = one_pass(model, case)
    mask = mask_of(report)
    outside = np.ones(mask.shape, bool)
    outside[:40, :44, :] = False
    assert (mask[outside] == 0).all()
    inside = (slice(1, 35), slice(3, 40), slice(2, 24))
    np.testing.assert_array_equal(mask[inside], expected[inside])


def test_an_interrupted_volume_ends_with_the_same_bytes(model: Path, case: Path, tmp_path: Path) -> None:
    plain = wsiseg.segment(case, tmp_path / "a", model, image="none", **PLAIN)
    with pytest.raises(Interrupted):
        wsiseg.segment(case, tmp_path / "b", model, image="none", progress=stop_after(2), **PLAIN)
    report = wsiseg.segment(case, tmp_path / "b", model, image="none", **PLAIN)
    files = [{p.relative_to(r.store): p.read_bytes() for p in (r.store / "labels").rglob("*") if p.is_file()}
             for r in (plain, report)]  # fmt: skip
    assert files[0] == files[1]
    assert plain.nifti is not None
    assert report.nifti is not None
    assert plain.nifti.read_bytes() == report.nifti.read_bytes()


def test_a_volume_of_other_voxels_is_resampled_and_its_mask_is_not(identity: Path, tmp_path: Path) -> None:
    labels = np.zeros((12, 16, 20), np.uint8)
    labels[4:8, 4:12, 8:16] = 3
    path = write_volume(tmp_path / "v.nii", labels, np.diag([2.0, 1.0, 1.0, 1.0]))
    card = tmp_path / "m.json"
    data = json.loads(identity.read_text()) | {"spacing": {"value": [1, 1, 1], "unit": "millimeter"}}
    card.write_text(json.dumps(data))
    (tmp_path / data["weights"]).write_bytes((identity.parent / data["weights"]).read_bytes())
    report = wsiseg.segment(path, tmp_path / "o", card, image="none", trust_code=True, **PLAIN)
    assert report.execution["model_grid"] == [20, 16, 24]
    assert report.mask_shape == (20, 16, 12)
    assert any(remark.startswith("resampled from 1 x 1 x 2 to 1 millimeter") for remark in report.remarks)
    inner = mask_of(report)[9:15, 5:11, 5:7]
    assert (inner == 3).all()


# -- preprocessing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["zscore", "minmax", "percentiles"])
def test_statistics_of_a_case_are_those_of_its_foreground(tmp_path: Path, method: str) -> None:
    from wsiseg.models.card import Preprocessing

    rng = np.random.default_rng(4)
    values = rng.normal(300, 40, (20, 24, 30)).astype(np.float32)
    values[:5] = 0
    source = open_volume(write_volume(tmp_path / "v.nii", values))
    assert source is not None
    spec = Preprocessing.model_validate(
        {"statistics": "case", "method": method, "foreground": "nonzero", "mean": [0.0], "std": [1.0],
         "percentiles": [1, 99]}
    )  # fmt: skip
    stats = fit(source, spec)
    assert isinstance(stats, CaseStats)
    inside = values[5:].astype(np.float64)
    low, high = np.percentile(inside, (1, 99))
    expected = {
        "zscore": (inside.mean(), inside.std()),
        "minmax": (inside.min(), np.ptp(inside)),
        "percentiles": (low, high - low),
    }[method]
    np.testing.assert_allclose((stats.mean[0], stats.std[0]), expected, rtol=1e-3)
    made = apply(torch.from_numpy(values)[None, None], stats, spec)[0, 0].numpy()
    assert (made[:5] == 0).all()
    if method == "percentiles":
        assert made.min() == 0.0
        assert made.max() == 1.0
    elif method == "zscore":
        np.testing.assert_allclose((made[5:].mean(), made[5:].std()), (0, 1), atol=1e-3)


# -- what cannot be -------------------------------------------------------------------------------------


def refused(path: Path, out: Path, model: str | Path, match: str, **options: Any) -> None:
    with pytest.raises(WsisegError, match=match) as caught:
        wsiseg.segment(path, out, model, trust_code=True, **options)
    assert "\n" not in str(caught.value)
    assert not out.exists() or not list(out.iterdir())


def test_models_and_images_of_different_kinds_do_not_go_together(
    identity: Path, case: Path, tmp_path: Path
) -> None:
    from tests.conftest import SLIDE

    refused(SLIDE, tmp_path / "o", identity, "is for 1 channels on axes zyx; .* has 3 on yx")
    volume = case / "case-t1n.nii.gz"
    refused(volume, tmp_path / "o", "demo-breast8", "is for 3 channels on axes yx; .* has 1 on zyx")
    refused(volume, tmp_path / "o", identity, "states its voxel size; --mpp is for slides", mpp=0.5)


def test_volumes_that_cannot_be_used_are_one_sentence(identity: Path, model: Path, tmp_path: Path) -> None:
    good = write_volume(tmp_path / "good.nii.gz", np.ones((8, 9, 10), np.int16))
    (tmp_path / "cut.nii.gz").write_bytes(good.read_bytes()[:-20])
    out = tmp_path / "o"
    refused(tmp_path / "cut.nii.gz", out, identity, "cut.nii.gz")
    nan = np.ones((8, 9, 10), np.float32)
    nan[3, 4, 5] = np.nan
    refused(write_volume(tmp_path / "nan.nii", nan), out, identity, r"nan.nii .*(NaN|finite)")
    plain = write_volume(tmp_path / "plain.nii", np.ones((8, 9, 10), np.int16))
    raw = bytearray(plain.read_bytes())
    raw[252:256] = b"\0\0\1\0"  # qform code 0, sform code 1
    raw[280:328] = bytes(48)  # the rows of the sform
    (tmp_path / "zero.nii").write_bytes(raw)
    refused(tmp_path / "zero.nii", out, identity, "zero.nii .*affine")
    folder = tmp_path / "case"
    folder.mkdir()
    write_volume(folder / "a-t1n.nii.gz", np.ones((8, 9, 10), np.int16))
    refused(folder, out, model, "t2w")
    write_volume(folder / "a-t2w.nii.gz", np.ones((8, 9, 11), np.int16))
    refused(folder, out, model, "a-t2w.nii.gz|a-t1n.nii.gz")


def test_truth_that_lies_elsewhere_is_refused(identity: Path, tmp_path: Path) -> None:
    labels = np.zeros((8, 9, 10), np.uint8)
    path = write_volume(tmp_path / "v.nii", labels)
    moved = np.eye(4)
    moved[0, 3] = 5.0
    truth = write_volume(tmp_path / "t.nii", labels, moved)
    with pytest.raises(AnnotationError, match="lies elsewhere than the volume: .* up to 5 mm"):
        wsiseg.segment(path, tmp_path / "o", identity, annotations=truth, trust_code=True)
    high = write_volume(tmp_path / "h.nii", labels.astype(np.float32) + 0.5)
    with pytest.raises(AnnotationError, match="holds values that are no class indices"):
        wsiseg.segment(path, tmp_path / "o", identity, annotations=high, trust_code=True)


def test_a_volume_without_a_model_of_its_kind_names_the_option(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "v.nii", np.ones((8, 9, 10, 3), np.int16))
    with pytest.raises((UsageError, WsisegError), match="model|channels"):
        wsiseg.segment(path, tmp_path / "o")


def test_the_report_is_read_back(identity: Path, tmp_path: Path) -> None:
    labels = np.random.default_rng(3).integers(0, LABELS, (8, 9, 10)).astype(np.uint8)
    path = write_volume(tmp_path / "v.nii", labels)
    first = wsiseg.segment(path, tmp_path, identity, annotations=path, trust_code=True, **PLAIN)
    again = wsiseg.segment(path, tmp_path, identity, annotations=path, trust_code=True, **PLAIN)
    assert again.status == "already complete"
    assert Report.model_validate_json(first.report.read_text()).volume_scores == first.volume_scores
