"""Patches carry the truth of their pixels, in two and three dimensions, whatever is done to them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage.color import hed2rgb, rgb2hed

from tests.training_data import pictures, volumes
from wsiseg.classes import VOID
from wsiseg.training.augment import histology
from wsiseg.training.augment.volumes import vary_inputs, vary_voxels
from wsiseg.training.cases import open_cases
from wsiseg.training.census import Census
from wsiseg.training.patches import PatchSampler, ahead, pieces
from wsiseg.training.place import anywhere, cut, draw_matrix, on_a_pixel
from wsiseg.training.run import Run
from wsiseg.training.sections import Augmentation, Histology, Mri

PLAIN: dict[str, Any] = {"mean": [0, 0, 0], "std": [1, 1, 1]}


def sampler_of(run: Run) -> PatchSampler:
    return PatchSampler(run, open_cases(run).train)


def colored(folder: Path, **changes: Any) -> PatchSampler:
    """Pictures that show their own class: the red of a pixel is 30 times its class."""
    run = pictures(folder, splits="tt", preprocessing=PLAIN, **changes)
    for number in range(2):
        truth = np.array(Image.open(folder / f"{number}-truth.png"))
        Image.fromarray(np.stack([truth * 30] * 3, axis=-1)).save(folder / f"{number}.png")
    return sampler_of(run)


@pytest.mark.parametrize("mosaic", [False, True])
def test_patches_carry_the_truth_of_their_pixels(tmp_path: Path, mosaic: bool) -> None:
    how = {"size": 24, "batch": 6, "mosaic": mosaic, "min_piece": 8, "balanced": 0.5}
    sampler = colored(tmp_path, patches=how, augmentation={"flip": "yx", "quarter_turns": True})
    batch = sampler.batch(3)
    assert batch.inputs.shape == (6, 3, 24, 24)
    truth = batch.targets["truth"]
    inside = truth != VOID
    assert inside.float().mean() > 0.6
    np.testing.assert_array_equal(batch.inputs[:, 0][inside].numpy(), (truth[inside] * 30).numpy())
    assert (batch.inputs[:, 0][~inside] == 255).all()


def test_glass_is_of_the_background_and_nearly_white(tmp_path: Path) -> None:
    how = {"mosaic": True, "min_piece": 8, "glass_share": 0.99}
    batch = colored(tmp_path, patches=how).batch(1)
    truth = batch.targets["truth"]
    assert (truth == 0).float().mean() > 0.8
    assert batch.inputs[:, 1][truth == 0].mean() > 200


def test_balanced_patches_are_centred_on_the_classes_that_are_drawn(tmp_path: Path) -> None:
    shares = [0, 0, 1, 3, 0]
    how = {"size": [9, 9], "batch": 200, "balanced": 1.0, "class_shares": shares}
    truth = colored(tmp_path, patches=how).batch(1).targets["truth"][:, 4, 4]
    found = torch.bincount(truth, minlength=5) / 200
    assert found[[0, 1, 4]].sum() == 0
    assert found[3].item() == pytest.approx(0.75, abs=0.1)


@pytest.mark.parametrize(("power", "share"), [(0.0, 1 / 2), (0.5, 1 / 3), (1.0, 1 / 5)])
def test_cases_are_drawn_by_a_power_of_their_pixels(tmp_path: Path, power: float, share: float) -> None:
    how = {"size": 8, "balanced": 1.0, "case_power": power}
    run = pictures(tmp_path, splits="tt", preprocessing=PLAIN, patches=how)
    cases = [
        dataclasses.replace(case, census=Census(case.census.places[:1], np.array([[0, count, 0, 0, 0]])))
        for case, count in zip(open_cases(run).train, (100, 400), strict=True)
    ]
    sampler = PatchSampler(run, cases)
    rng = np.random.default_rng(0)
    drawn = [sampler.focus(rng) for _ in range(1000)]
    assert {index for _, index in drawn} == {1}
    assert np.mean([case is cases[0] for case, _ in drawn]) == pytest.approx(share, abs=0.05)


def test_pictures_can_be_normalised_by_their_own_statistics(tmp_path: Path) -> None:
    how = {**PLAIN, "statistics": "case"}
    run = pictures(
        tmp_path, splits="tt", preprocessing=how, patches={"size": 16, "mosaic": True, "min_piece": 8}
    )
    cases = open_cases(run).train
    for case in cases:
        values, _ = case.read(case.source.geometry.whole)
        assert case.stats is not None
        np.testing.assert_allclose(case.stats.mean, values.mean(axis=(1, 2)), rtol=1e-6)
    inputs = PatchSampler(run, cases).batch(1).inputs
    assert abs(inputs.mean().item()) < 1
    assert 0.2 < inputs.std().item() < 2


@pytest.mark.parametrize("axes", ["yx", "zyx"])
def test_flips_and_turns_reach_every_symmetry_and_move_image_and_truth_alike(
    tmp_path: Path, axes: str
) -> None:
    size: tuple[int, ...] = (12, 12) if axes == "yx" else (6, 8, 4)
    case = colored(tmp_path).cases[0] if axes == "yx" else open_cases(volumes(tmp_path, count=2)).train[0]
    how = Augmentation(flip=axes, quarter_turns=axes == "yx")
    rng, seen = np.random.default_rng(0), set()
    centre = np.array(case.shape) // 2 + 0.0
    region = tuple(slice(int(c) - n // 2, int(c) + n // 2) for c, n in zip(centre, size, strict=True))
    plain = case.read(region)
    for _ in range(60):
        matrix = draw_matrix(how, axes, rng)
        values, truth = cut(case, centre, matrix, size)
        seen.add(values.tobytes())
        np.testing.assert_array_equal(np.sort(truth.ravel()), np.sort(plain[1].ravel()))
        np.testing.assert_array_equal(np.sort(values.ravel()), np.sort(plain[0].ravel()))
        if axes == "yx":
            np.testing.assert_array_equal(values[0], truth * 30)
    assert len(seen) == 8


@pytest.mark.parametrize("axes", ["yx", "zyx"])
def test_warped_patches_are_those_of_an_independent_resampler(tmp_path: Path, axes: str) -> None:
    run = pictures(tmp_path, splits="t") if axes == "yx" else volumes(tmp_path, count=2)
    case = open_cases(run).train[0]
    image, truth = case.read(case.source.geometry.whole)
    size = (20, 28) if axes == "yx" else (24, 32, 20)
    how = Augmentation(flip=axes, rotation_deg=30, zoom=(0.7, 1.4), zoom_each_axis=True)
    rng, mirrored = np.random.default_rng(1), set()
    for _ in range(8):
        matrix = draw_matrix(how, axes, rng)
        mirrored.add(bool(np.linalg.det(matrix) < 0))
        centre = anywhere(case.shape, np.abs(matrix) @ np.array(size), rng)
        values, marks = cut(case, centre, matrix, size)
        corners = np.stack(np.meshgrid(*(np.arange(n) + 0.5 - n / 2 for n in size), indexing="ij"))
        at = np.tensordot(matrix, corners, axes=1) + centre.reshape(-1, *(1,) * len(size)) - 0.5
        fill = case.source.outside
        linear = ndimage.map_coordinates(image[0].astype(float), at, order=1, mode="grid-constant", cval=fill)
        nearest = ndimage.map_coordinates(truth.astype(int), at, order=0, mode="grid-constant", cval=VOID)
        np.testing.assert_allclose(
            values[0], linear, rtol=0, atol=0.51 if axes == "yx" else 1e-3 * image.max()
        )
        assert (marks != nearest).mean() < 5e-3  # ties may be broken otherwise
    assert mirrored == {True, False}


def test_a_case_is_cut_at_every_place_or_lies_at_every_place_of_a_larger_patch() -> None:
    rng = np.random.default_rng(0)
    starts = {tuple(anywhere((10, 4), np.array([8.0, 6.0]), rng) - (4, 3)) for _ in range(200)}
    assert starts == {(y, x) for y in range(3) for x in range(-2, 1)}


def test_every_pixel_of_a_class_can_be_the_centre(tmp_path: Path) -> None:
    case = colored(tmp_path).cases[0]
    _, truth = case.read(case.source.geometry.whole)
    rng = np.random.default_rng(0)
    found = {tuple(on_a_pixel(case, 4, rng)) for _ in range(4000)}
    assert found <= {(y + 0.5, x + 0.5) for y, x in np.argwhere(truth == 4)}
    assert len(found) > 0.9 * (truth == 4).sum()


def test_pieces_partition_a_patch_in_two_and_three_dimensions() -> None:
    for shape in ((40, 64), (24, 32, 20)):
        rng = np.random.default_rng(0)
        for _ in range(20):
            count = np.zeros(shape, int)
            for place in pieces(tuple(slice(0, n) for n in shape), 8, rng):
                assert min(s.stop - s.start for s in place) >= 8
                count[place] += 1
            assert (count == 1).all()


def test_batches_depend_on_seed_step_and_index_alone(tmp_path: Path) -> None:
    how = {"histology": {"stain_jitter": 0.1, "blur_px": 1, "jpeg_quality": 40}}
    sampler = colored(tmp_path, augmentation=how)
    in_order = {step: batch.inputs for step, batch in ahead(sampler, range(1, 7), workers=0)}
    by_threads = {step: batch.inputs for step, batch in ahead(sampler, range(1, 7), workers=3)}
    assert list(by_threads) == list(range(1, 7))
    for step, inputs in in_order.items():
        torch.testing.assert_close(by_threads[step], inputs, rtol=0, atol=0)
    torch.testing.assert_close(sampler.batch(4).inputs, in_order[4], rtol=0, atol=0)
    assert (in_order[1] != in_order[2]).any()
    assert (in_order[1][0] != in_order[1][1]).any()


def random_rgb(shape: tuple[int, int]) -> Any:
    return np.random.default_rng(0).integers(30, 250, (3, *shape), dtype=np.uint8)


def test_stains_are_those_of_scikit_image() -> None:
    image = random_rgb((40, 30))
    stains = np.moveaxis(rgb2hed(np.moveaxis(image, 0, -1)), -1, 0)
    np.testing.assert_allclose(histology.to_stains(image), stains, atol=1e-6)
    back = np.moveaxis(hed2rgb(np.moveaxis(stains, 0, -1)), -1, 0) * 255
    np.testing.assert_allclose(histology.to_rgb(stains.astype(np.float32)), back, atol=0.51)


def test_stain_jitter_is_one_linear_map_of_densities() -> None:
    colors = random_rgb((40, 30))
    plain = Histology(stain_jitter=1e-9, stain_offset=0)
    same = histology.jitter_stain(colors, plain, np.random.default_rng(1))
    np.testing.assert_allclose(same, colors, atol=1)

    how = Histology(stain_jitter=0.3, stain_offset=0)
    vectors = histology.STAINS["ruifrok-hed"]
    for seed in range(5):
        made = histology.jitter_stain(colors, how, np.random.default_rng(seed))
        before, after = (-np.log((np.float64(image) + 1) / 256) for image in (colors, made))
        inner = (made > 20).all(axis=0) & (made < 240).all(axis=0)
        amounts = [np.linalg.inv(vectors.T) @ density[:, inner] for density in (before, after)]
        ratios = [np.median(new / old) for old, new in zip(*amounts, strict=True)]
        assert all(0.69 < ratio < 1.45 for ratio in ratios)
        fitted = np.diag(ratios) @ amounts[0]
        assert np.abs(vectors.T @ (fitted - amounts[1])).max() < 0.05


@pytest.mark.parametrize(
    ("how", "moves_glass"),
    [({"stain_offset": 0}, False), ({"stain_offset": 0.1}, True), ({"white_point": 0.1}, True)],
)
def test_what_moves_the_white_of_the_slide(how: dict[str, float], moves_glass: bool) -> None:
    glass = np.full((3, 4, 5), 255, np.uint8)
    settings = Histology(stain_jitter=0.2, **{"stain_offset": 0.0, **how})
    found = [histology.jitter_stain(glass, settings, np.random.default_rng(seed)) for seed in range(8)]
    lowest = min(int(image.min()) for image in found)
    assert (lowest < 252) == moves_glass
    assert lowest > 150


def test_stain_vectors_are_drawn_and_turned() -> None:
    colors = random_rgb((10, 10))

    def made(seed: int, **how: Any) -> Any:
        return histology.jitter_stain(
            colors, Histology(stain_jitter=0.3, **how), np.random.default_rng(seed)
        ).astype(int)

    turned = [made(seed, stain_turn=0.05) - made(seed) for seed in range(3)]
    assert all(np.abs(change).max() > 3 for change in turned)
    three = [made(seed, stain_vectors=tuple(histology.STAINS)) for seed in range(12)]
    of_first = [made(seed, stain_vectors=("ruifrok-hed", "ruifrok-hed", "ruifrok-hed")) for seed in range(12)]
    same = sum(bool((a == b).all()) for a, b in zip(three, of_first, strict=True))
    assert 0 < same < 12
    for vectors in histology.STAINS.values():
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
    for name in ("ruifrok-he", "macenko-he"):
        np.testing.assert_allclose(histology.STAINS[name][2] @ histology.STAINS[name][:2].T, 0, atol=1e-9)


def test_blur_is_a_gaussian_and_jpeg_loses_little() -> None:
    image = random_rgb((40, 30))
    expected = [ndimage.gaussian_filter(c.astype(float), 1.2, mode="mirror", radius=4) for c in image]
    np.testing.assert_allclose(histology.blur(image, sigma_px=1.2), expected, atol=0.6)
    np.testing.assert_array_equal(histology.blur(image, sigma_px=1e-9), image)
    smooth = histology.blur(image, sigma_px=4)
    assert 0 < np.abs(histology.compress(smooth, quality=90).astype(int) - smooth).max() < 20


def test_a_bias_field_is_smooth_positive_and_common_to_all_channels() -> None:
    how = Mri(bias_field=0.4)
    voxels = np.stack([np.full((12, 16, 10), 100.0), np.full((12, 16, 10), 7.0)]).astype(np.float32)
    made = vary_voxels(voxels, how, np.random.default_rng(0))
    np.testing.assert_allclose(made[0] / 100, made[1] / 7, rtol=1e-5)
    assert made.min() > 0
    assert made[0].std() > 1
    assert np.abs(np.diff(made[0], axis=1)).max() < 0.5 * np.ptp(made[0])
    again = vary_voxels(voxels, how, np.random.default_rng(0))
    np.testing.assert_array_equal(again, made)
    assert (vary_voxels(voxels, how, np.random.default_rng(1)) != made).any()


def test_gamma_keeps_the_range_and_noise_and_contrast_are_of_their_size() -> None:
    inputs = torch.linspace(0, 1, 1000).view(1, 10, 10, 10)
    bent = vary_inputs(inputs, Mri(gamma=2.0), np.random.default_rng(0))
    assert bent.min() == pytest.approx(0, abs=1e-4)
    assert bent.max() == pytest.approx(1, abs=1e-4)
    assert (bent.flatten().diff() >= 0).all()
    exponent = np.log(bent.flatten()[500].item()) / np.log(inputs.flatten()[500].item())
    assert 0.5 <= exponent <= 2.0
    assert abs(exponent - 1) > 0.01
    noisy = vary_inputs(torch.zeros(1, 20, 20, 20), Mri(noise=0.2), np.random.default_rng(0))
    assert 0 < noisy.std() < 0.2
    moved = vary_inputs(inputs, Mri(intensity_jitter=0.1), np.random.default_rng(0))
    assert 0 < (moved - inputs).abs().max() < 0.2
