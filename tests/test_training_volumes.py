"""Training on volumes, on synthetic ones made here: truth moves with its voxels, mistakes are named."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from scipy import ndimage

from tests.conftest import REPOSITORY
from wsiseg.classes import VOID
from wsiseg.errors import AnnotationError, ManifestError, StoreError, WsisegError
from wsiseg.manifest import read_manifest
from wsiseg.models.card import sha256_of
from wsiseg.models.registry import ZOO, build_network, load_card, load_network
from wsiseg.training.loop import train
from wsiseg.training.loss import dice_cross_entropy
from wsiseg.training.run import VolumeRun, read_run
from wsiseg.training.volume_loop import dice_of, give_each_class_a_channel, summary
from wsiseg.training.volumes import open_volumes, random_affine, resample

SAMPLES = REPOSITORY / "wsiseg" / "samples" / "msd-hippocampus"
MANIFEST = REPOSITORY / "data_manifests" / "msd-hippocampus.csv"
CLASSES = [
    {"index": 0, "name": "background", "color": [0, 0, 0]},
    {"index": 1, "name": "front", "color": [255, 0, 0]},
    {"index": 2, "name": "back", "color": [0, 0, 255]},
]
ARGUMENTS: dict[str, Any] = {"classes": 3, "channels": 1, "width": 0.25, "refinement": False}
PERCENTILES = {"statistics": "case", "method": "percentiles", "percentiles": [1, 99]}
RUN: dict[str, Any] = {
    "name": "tiny",
    "manifest": "m.csv",
    "out": "out",
    "axes": "zyx",
    "network": {"name": "espnet3d", "arguments": ARGUMENTS},
    "classes": CLASSES,
    "spacing": {"value": [1.0, 1.0, 1.0], "unit": "millimeter"},
    "preprocessing": PERCENTILES | {"mean": [0], "std": [1]},
    "patch": [16, 24, 16],
    "batch": 2,
    "steps": 2,
    "threads": 1,
    "learning_rate": 0.01,
    "flip": "x",
    "warped": 0.5,
    "rotation_deg": 10,
    "zoom": [0.9, 1.1],
    "intensity_jitter": 0.1,
    "noise": 0.02,
    "training_data": "synthetic",
    "licence": "none",
    "intended_use": "test",
}
Truth = NDArray[np.uint8]


def synthetic(seed: int, shape: tuple[int, int, int] = (13, 19, 15)) -> tuple[NDArray[np.float32], Truth]:
    """A bright box on noise, front half class 1 and back half class 2, voxels (x, y, z) of any scale."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, np.uint8)
    start = rng.integers(2, 5, size=3)
    truth[start[0] : start[0] + 7, start[1] : start[1] + 6, start[2] : start[2] + 7] = 2
    truth[start[0] : start[0] + 7, start[1] + 6 : start[1] + 12, start[2] : start[2] + 7] = 1
    image = rng.normal(50, 8, shape) + np.choose(truth, [0, 40, 80])
    return (image * 10.0 ** rng.integers(0, 4)).astype(np.float32), truth


def save(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64] | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)  # type: ignore[no-untyped-call]


def cohort(folder: Path, *, count: int = 4, **changes: Any) -> Path:
    """A run file over `count` synthetic cases, the last of them for validation."""
    rows = ["case,path,patient,split,annotation,licence"]
    for number in range(count):
        image, truth = synthetic(number)
        save(folder / "images" / f"{number}.nii.gz", image)
        save(folder / "labels" / f"{number}.nii.gz", truth)
        split = "validation" if number == count - 1 else "train"
        rows.append(f"{number},images/{number}.nii.gz,p{number},{split},labels/{number}.nii.gz,none")
    (folder / "m.csv").write_text("\n".join(rows))
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(RUN | changes))
    return path


def opened(path: Path) -> tuple[VolumeRun, list[Any]]:
    run = read_run(path)
    assert isinstance(run, VolumeRun)
    return run, open_volumes(run, read_manifest(run.manifest), split="train")


def test_the_loss_is_that_of_monai_where_all_is_labelled_and_ignores_void() -> None:
    losses = pytest.importorskip("monai.losses")
    torch.manual_seed(0)
    scores, truth = torch.randn(2, 3, 4, 5, 6), torch.randint(0, 3, (2, 4, 5, 6))
    for background in (0, None):
        theirs = losses.DiceCELoss(
            to_onehot_y=True, softmax=True, batch=True, include_background=background is None
        )
        own = dice_cross_entropy(scores, truth, background=background)
        torch.testing.assert_close(own, theirs(scores, truth[:, None]), rtol=1e-5, atol=1e-5)
    half = truth.clone()
    half[:, 2:] = VOID
    first = dice_cross_entropy(scores[:, :, :2], truth[:, :2], background=0)
    torch.testing.assert_close(dice_cross_entropy(scores, half, background=0), first)


def test_unwarped_patches_hold_the_volume_itself_and_void_around_it(tmp_path: Path) -> None:
    run, cases = opened(cohort(tmp_path, count=2, warped=0, flip=""))
    image, truth = cases[0].image, cases[0].truth
    affine = random_affine(run, shape=truth.shape, rng=np.random.default_rng(0))
    z, y, x = (round(-offset) for offset in affine[:, 3])
    values, marks = resample(image, truth, affine, size=run.patch)
    inside = (slice(z, z + 15), slice(y, y + 19), slice(x, x + 13))
    np.testing.assert_array_equal(marks[inside].numpy(), truth)
    np.testing.assert_allclose(values[(slice(None), *inside)].numpy(), image.numpy(), rtol=1e-4)
    assert (marks == VOID).sum() == marks.numel() - truth.size
    assert (values[:, marks == VOID].abs() < 1e-3 * image.max()).all()


def test_volumes_larger_than_a_patch_are_cut_at_every_place(tmp_path: Path) -> None:
    run, cases = opened(cohort(tmp_path, count=2, warped=0, flip="", patch=[8, 8, 8]))
    rng, starts = np.random.default_rng(0), set()
    for _ in range(100):
        affine = random_affine(run, shape=cases[0].truth.shape, rng=rng)
        z, y, x = (round(offset) for offset in affine[:, 3])
        starts.add(y)
        _, marks = resample(cases[0].image, cases[0].truth, affine, size=run.patch)
        np.testing.assert_array_equal(marks.numpy(), cases[0].truth[z : z + 8, y : y + 8, x : x + 8])
    assert starts == set(range(12))


def test_image_and_truth_are_warped_alike_as_an_independent_resampler_does_it(tmp_path: Path) -> None:
    run, cases = opened(cohort(tmp_path, count=2, warped=1, flip="zyx", rotation_deg=30, zoom=[0.7, 1.4]))
    image, truth, size = cases[0].image, cases[0].truth, (24, 32, 20)
    rng, mirrored = np.random.default_rng(1), set()
    for _ in range(8):
        affine = random_affine(run, shape=truth.shape, rng=rng)
        mirrored.add(bool(np.linalg.det(affine[:, :3]) < 0))
        values, marks = resample(image, truth, affine, size=size)
        corners = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in size), indexing="ij"))
        at = np.einsum("ab,bzyx->azyx", affine[:, :3], corners) + affine[:, 3, None, None, None] - 0.5
        linear = ndimage.map_coordinates(image[0].numpy(), at, order=1, mode="grid-constant")
        nearest = ndimage.map_coordinates(truth.astype(int) - VOID, at, order=0, mode="grid-constant") + VOID
        np.testing.assert_allclose(values[0].numpy(), linear, rtol=0, atol=1e-3 * image.max())
        assert (marks.numpy() != nearest).mean() < 1e-3  # ties may be broken otherwise
    assert mirrored == {True, False}


def test_axes_of_the_patch_are_z_y_x_and_run_to_superior_anterior_right(tmp_path: Path) -> None:
    path = cohort(tmp_path, count=2)
    image, truth = synthetic(0)
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    save(tmp_path / "images" / "0.nii.gz", image[::-1], flipped)  # stored towards Left
    save(tmp_path / "labels" / "0.nii.gz", truth[::-1].astype(np.float32), flipped)
    _, cases = opened(path)
    np.testing.assert_array_equal(cases[0].truth, truth.transpose(2, 1, 0))
    np.testing.assert_array_equal(cases[0].image[0].numpy(), image.transpose(2, 1, 0))


def test_a_run_learns_scores_what_was_held_out_and_says_so_on_its_card(tmp_path: Path) -> None:
    path = cohort(tmp_path, steps=25, learning_rate=0.02, average=0.8)
    card_path = train(read_run(path))
    card = load_card(card_path)
    assert (card.axes, card.channels, card.windows.output_stride) == ("zyx", 1, 8)
    with (tmp_path / "out" / "tiny.log.csv").open() as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream)]
    assert losses[-1] < 0.85 * losses[0]
    assert card.quality["volumes"] == 1
    assert card.quality["training"]["volumes trained on"] == 3
    run, _ = opened(path)
    held_out = open_volumes(run, read_manifest(run.manifest), split="validation")
    expected = dice_of(load_network(card_path), held_out[0], run, stride=8)
    assert card.quality["Dice, mean over volumes"] == {n: round(d or 0, 4) for n, d in expected.items()}
    assert str(tmp_path) not in (tmp_path / "out" / "tiny.run.yaml").read_text()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    hashes = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        hashes.append(load_card(train(read_run(cohort(tmp_path / name, seed=seed, average=0.5)))).sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_no_class_begins_without_a_channel_that_speaks_for_it() -> None:
    torch.manual_seed(0)
    network = build_network("espnet3d", **ARGUMENTS)
    give_each_class_a_channel(network)
    seen: list[torch.Tensor] = []
    *_, last = (m for m in network.modules() if isinstance(m, torch.nn.Conv3d))
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    scores = network(torch.rand(1, 1, 16, 24, 16))
    torch.testing.assert_close(scores, seen[0])
    assert (scores.amax(dim=(0, 2, 3, 4)) > 0).all()


def test_validation_never_reaches_training(tmp_path: Path) -> None:
    path = cohort(tmp_path)
    first = load_card(train(read_run(path)))
    save(tmp_path / "images" / "3.nii.gz", synthetic(99)[0])
    assert load_card(train(read_run(path))).sha256 == first.sha256


def test_the_dice_is_that_of_the_native_grid_and_absent_structures_do_not_count(tmp_path: Path) -> None:
    run, cases = opened(cohort(tmp_path, count=2))
    truth = cases[0].truth

    class Says(torch.nn.Module):
        """Class 1 wherever truth has any class but 0, on a padded grid."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv3d(1, 3, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            assert image.shape == (1, 1, 16, 24, 16)
            scores = torch.zeros(1, 3, *image.shape[2:])
            scores[:, 1] = 5  # what is padded must not count
            scores[:, 1, :15, :19, :13] = torch.from_numpy((truth > 0).astype(np.float32)) * 2 - 1
            return scores

    ones, twos = int((truth == 1).sum()), int((truth == 2).sum())
    dice = dice_of(Says(), cases[0], run, stride=8)
    assert dice == {"front": pytest.approx(2 * ones / (2 * ones + twos)), "back": 0.0}
    made = summary(run, [{"front": 0.5, "back": None}, {"front": 1.0, "back": 0.25}])
    assert made["Dice, mean over volumes"] == {"front": 0.75, "back": 0.25}
    assert made["Dice, lowest of a volume"] == {"front": 0.5, "back": 0.25}
    assert made["Dice, mean over structures"] == 0.5


def other_network(name: str, **arguments: Any) -> dict[str, Any]:
    return {"network": {"name": name, "arguments": ARGUMENTS | arguments}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"glass_share": 0.1}, "unknown setting 'glass_share'; known are: name, manifest"),
        ({"patch": [16, 20, 16]}, "patch .16, 20, 16. must be multiples of 8"),
        ({"zoom": [0, 1]}, "zoom .0.0, 1.0. must rise"),
        ({"background": 3}, "background 3 is not a class"),
        ({"classes": [CLASSES[0], CLASSES[2], CLASSES[1]]}, "numbered 0, 1, 2"),
        ({"flip": "xyx"}, "setting 'flip' = 'xyx'"),
        (other_network("espnet3d", classes=4), "classes must be 3 for this trainer, got 4"),
        (other_network("espnet3d", channels=4), "channels must be 1 for this trainer, got 4"),
        (other_network("espnet3d", refinement=True), "refinement must be False"),
        (other_network("espnet3d", ndim=2), "ndim must be 3"),
        (other_network("espnet"), "volumes are trained with espnet3d, got espnet"),
        (
            {"network": {"name": "espnet3d", "arguments": {"classes": 3, "channels": 1}}},
            "refinement must be among its arguments",
        ),
        ({"preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1]}}, "one mean and one std"),
        ({"spacing": {"value": 1.0}}, "spacing of volumes is in millimeter"),
        ({"spacing": {"value": [1, 1], "unit": "millimeter"}}, "must have one entry per axis"),
        ({"spacing": {"value": [1, 1, 2], "unit": "millimeter"}}, "1 x 1 x 1 mm .* at 1 x 1 x 2"),
        ({"learning_rate": 1e30}, "the loss is not finite at step"),
    ],
)
def test_mistakes_in_a_run_file_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        train(read_run(cohort(tmp_path, count=2, **changes)))


def test_espnet3d_without_axes_is_pointed_to_volumes(tmp_path: Path) -> None:
    path = cohort(tmp_path, count=2)
    keys = ("axes", "flip", "warped", "rotation_deg", "intensity_jitter", "noise", "patch")
    data = {k: v for k, v in RUN.items() if k not in keys}
    data["network"] = {"name": "espnet3d", "arguments": {"classes": 3}}
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ManifestError, match="espnet3d is for volumes: add axes: zyx"):
        read_run(path)


def relabelled(folder: Path, value: float) -> None:
    truth = synthetic(0)[1].astype(np.float32)
    truth[0, 0, 0] = value
    save(folder / "labels" / "0.nii.gz", truth)


def rewritten(folder: Path, old: str, new: str) -> None:
    text = (folder / "m.csv").read_text()
    assert old in text
    (folder / "m.csv").write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: relabelled(f, 3), AnnotationError, "has class 3, which the model does not know"),
        (lambda f: relabelled(f, 1.5), AnnotationError, "no class indices"),
        (lambda f: relabelled(f, 256), AnnotationError, "no class indices"),
        (
            lambda f: save(f / "labels" / "0.nii.gz", synthetic(0)[1][:-1]),
            AnnotationError,
            "labels/0.nii.gz has 15 x 19 x 12 pixels .* 15 x 19 x 13",
        ),
        (
            lambda f: save(f / "labels" / "0.nii.gz", synthetic(0)[1], np.diag([-1.0, 1, 1, 1])),
            AnnotationError,
            "lies elsewhere than images/0.nii.gz",
        ),
        (
            lambda f: save(f / "images" / "0.nii.gz", np.zeros((13, 19, 15, 2), np.uint8)),
            ManifestError,
            "has 2 channels",
        ),
        (lambda f: (f / "images" / "0.nii.gz").unlink(), ManifestError, "is missing or no volume"),
        (lambda f: rewritten(f, ",labels/0.nii.gz", ","), ManifestError, "case '0' has no annotation"),
        (lambda f: rewritten(f, ",train,", ",test,"), ManifestError, "no case whose split is train"),
        (lambda f: rewritten(f, "p1,validation", "p0,validation"), ManifestError, "patient 'p0' is in train"),
        (lambda f: (f / "out").write_text(""), StoreError, "cannot write"),
    ],
)
def test_cases_that_cannot_be_used_are_refused(
    tmp_path: Path, spoil: Callable[[Path], None], error: type[WsisegError], message: str
) -> None:
    path = cohort(tmp_path, count=2)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        train(read_run(path))


def test_a_file_of_another_sha256_is_refused(tmp_path: Path) -> None:
    path = cohort(tmp_path, count=2)
    rewritten(tmp_path, "case,path,", "case,sha256,path,")
    rewritten(tmp_path, "0,images", f"0,{'0' * 64},images")
    rewritten(tmp_path, "1,images", f"1,{sha256_of(tmp_path / 'images' / '1.nii.gz')},images")
    with pytest.raises(ManifestError, match="case '0': images/0.nii.gz has another sha256"):
        train(read_run(path))


def test_without_validation_cases_the_card_claims_no_figures(tmp_path: Path) -> None:
    path = cohort(tmp_path, count=2)
    rewritten(tmp_path, "validation", "train")
    quality = load_card(train(read_run(path))).quality
    assert quality["note"] == "no held-out figures: the manifest has no validation cases"
    assert "volumes" not in quality


def test_the_shipped_model_is_as_good_on_the_shipped_samples_as_its_card_says_of_held_out_ones() -> None:
    """The samples are validation volumes: the weights never saw them."""
    run = read_run(ZOO / "hippocampus.run.yaml")
    assert isinstance(run, VolumeRun)
    manifest = read_manifest(MANIFEST, root=SAMPLES)
    shipped = [c for c in manifest.cases if manifest.resolve(c.path).is_file()]
    assert len(shipped) == 3
    cases = open_volumes(run, manifest.model_copy(update={"cases": tuple(shipped)}), split="validation")
    assert len(cases) == 3
    card, network = load_card("hippocampus"), load_network("hippocampus")
    for case in cases:
        for name, dice in dice_of(network, case, run, stride=card.windows.output_stride).items():
            assert (dice or 0) >= card.quality["Dice, lowest of a volume"][name] - 1e-3


def test_the_manifest_splits_by_patient() -> None:
    rows = read_manifest(MANIFEST).cases
    assert [sum(r.split == s for r in rows) for s in ("train", "validation")] == [161, 40]
    assert len({r.patient for r in rows}) == len(rows) == 201
