"""Scores of volumes: overlap of one confusion matrix, distances in mm, volumes in ml, groups of classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from wsiseg.classes import VOID, anonymous_classes
from wsiseg.geometry import Geometry
from wsiseg.groups import BRATS_GROUPS, ClassGroup, check_groups
from wsiseg.metrics import ConfusionMatrix, score
from wsiseg.report import class_areas
from wsiseg.surface import surface_distances
from wsiseg.volume_scores import RegionScore, VolumeScores, volume_scores

Volume = NDArray[np.uint8]
SPACING = (2.0, 0.7, 0.5)
VOXEL_ML = 2.0 * 0.7 * 0.5 / 1000


def shells(*, shift: int) -> Volume:
    """Nested boxes: 1 outside, 2 within it, 3 in the middle, moved along z."""
    volume = np.zeros((16, 14, 15), np.uint8)
    for value, margin in ((1, 0), (2, 1), (3, 3)):
        volume[
            1 + margin + shift : 11 + shift - margin, 2 + margin : 12 - margin, 3 + margin : 13 - margin
        ] = value
    return volume


def random_pair(seed: int, *, classes: int) -> tuple[Volume, Volume]:
    """Truth and a prediction that is right in most places, with void in both."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (4, 5, 6), dtype=np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, classes, truth.shape))
    for volume in (truth, prediction):
        volume[rng.random(volume.shape) < 0.1] = VOID
    return truth, prediction.astype(np.uint8)


def by_name(scores: VolumeScores) -> dict[str, RegionScore]:
    return {region.name: region for region in (*scores.classes, *scores.groups)}


def test_moved_shells_have_the_figures_counted_by_hand() -> None:
    scores = volume_scores(
        shells(shift=0), shells(shift=1), classes=anonymous_classes(4), spacing_mm=SPACING, background=0
    )
    inner = scores.classes[3]
    # 4 x 4 x 4 voxels, three of four planes in common.
    assert inner.dice == pytest.approx(3 / 4)
    assert inner.iou == pytest.approx(48 / 80)
    assert inner.truth_ml == inner.predicted_ml == pytest.approx(64 * VOXEL_ML)
    assert (inner.volume_difference_ml, inner.relative_volume_difference) == (0.0, 0.0)
    # A plane on lies the whole face in front, 2 mm away; of the other face the 2 x 2 voxels within the rim
    # are 1 voxel from the side (0.5 mm), the rest of the surface lies on the other's.
    assert inner.hausdorff_95_mm == pytest.approx(2.0)
    assert inner.average_surface_distance_mm == pytest.approx((16 * 2.0 + 4 * 0.5) / 56)


def test_volumes_are_in_ml_and_differences_have_a_sign() -> None:
    truth, prediction = (np.zeros((5, 10, 20), np.uint8) for _ in range(2))
    truth[0], prediction[:2, :5], prediction[2] = 1, 1, 2
    one, two = volume_scores(
        truth, prediction, classes=anonymous_classes(3), spacing_mm=(5.0, 2.0, 1.0)
    ).classes[1:]
    assert (one.truth_ml, one.predicted_ml, one.volume_difference_ml) == (2.0, 2.0, 0.0)
    assert (two.truth_ml, two.predicted_ml, two.volume_difference_ml) == (0.0, 2.0, 2.0)
    assert (one.relative_volume_difference, two.relative_volume_difference) == (0.0, None)
    swapped = volume_scores(
        prediction, np.minimum(prediction, 1), classes=anonymous_classes(3), spacing_mm=(5.0, 2.0, 1.0)
    ).classes[1:]
    assert [r.volume_difference_ml for r in swapped] == [2.0, -2.0]
    assert [r.relative_volume_difference for r in swapped] == [1.0, -1.0]


def test_a_region_that_nobody_has_is_absent_and_counts_nowhere() -> None:
    truth = shells(shift=0)
    truth[truth == 3] = 0
    scores = volume_scores(
        truth, truth, classes=anonymous_classes(5), groups=BRATS_GROUPS["brats-3"], spacing_mm=SPACING
    )
    for region in (scores.classes[3], scores.classes[4], by_name(scores)["enhancing tumour"]):
        assert region.absent
        assert (region.dice, region.iou, region.missing, region.relative_volume_difference) == (None,) * 4
        assert (region.hausdorff_95_mm, region.average_surface_distance_mm) == (None, None)
        assert (region.truth_ml, region.predicted_ml, region.volume_difference_ml) == (0.0, 0.0, 0.0)
    assert scores.mean_dice == 1.0


def test_a_region_on_one_side_only_has_no_overlap_no_distance_and_a_flag() -> None:
    with_it, without = shells(shift=0), shells(shift=0)
    without[without == 3] = 2
    lost = volume_scores(with_it, without, classes=anonymous_classes(4), spacing_mm=SPACING).classes[3]
    made_up = volume_scores(without, with_it, classes=anonymous_classes(4), spacing_mm=SPACING).classes[3]
    for region in (lost, made_up):
        assert (region.dice, region.iou, region.absent) == (0.0, 0.0, False)
        assert (region.hausdorff_95_mm, region.average_surface_distance_mm) == (None, None)
    assert (lost.missing, made_up.missing) == ("prediction", "truth")
    assert (lost.relative_volume_difference, made_up.relative_volume_difference) == (-1.0, None)


def test_the_mean_is_over_present_classes_without_the_background() -> None:
    with_it, without = shells(shift=0), shells(shift=0)
    without[without == 3] = 2
    scores = volume_scores(with_it, without, classes=anonymous_classes(5), spacing_mm=SPACING, background=0)
    two = 2 * (512 - 64) / (512 - 64 + 512)
    assert scores.classes[2].dice == pytest.approx(two)
    assert scores.mean_dice == pytest.approx((1.0 + two + 0.0) / 3)
    background = scores.classes[0]
    assert (background.dice, background.hausdorff_95_mm, background.missing) == (1.0, None, None)
    everything = volume_scores(with_it, without, classes=anonymous_classes(5), spacing_mm=SPACING)
    assert everything.classes[0].hausdorff_95_mm == 0.0
    assert everything.mean_dice == pytest.approx((1.0 + 1.0 + two + 0.0) / 4)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_overlap_is_that_of_the_confusion_matrix_and_distances_those_of_the_masks(
    seed: int, num_classes: int
) -> None:
    truth, prediction = random_pair(seed, classes=num_classes)
    classes = anonymous_classes(num_classes)
    matrix = ConfusionMatrix.of(truth=truth, prediction=prediction, num_classes=num_classes)
    flat = score(matrix, classes)
    scores = volume_scores(truth, prediction, classes=classes, spacing_mm=SPACING)
    assert (scores.counted_voxels, scores.void_voxels) == (flat.counted_pixels, flat.void_pixels)
    counted = (truth != VOID) & (prediction != VOID)
    for region, expected in zip(scores.classes, flat.classes, strict=True):
        assert (region.dice, region.iou) == (expected.dice, expected.iou)
        assert region.truth_ml == pytest.approx(expected.truth_pixels * VOXEL_ML)
        masks = [(volume == expected.index) & counted for volume in (truth, prediction)]
        distances = surface_distances(masks[0], masks[1], spacing=SPACING)
        assert region.hausdorff_95_mm == distances.hausdorff_95
        assert region.average_surface_distance_mm == distances.average


@pytest.mark.parametrize("convention", ["brats-3", "brats-4"])
def test_a_group_scores_like_the_union_of_its_classes(convention: str) -> None:
    truth, prediction = random_pair(7, classes=5)
    groups = BRATS_GROUPS[convention]
    scores = volume_scores(truth, prediction, classes=anonymous_classes(5), groups=groups, spacing_mm=SPACING)
    assert [g.name for g in scores.groups] == ["whole tumour", "tumour core", "enhancing tumour"]
    for group, region in zip(groups, scores.groups, strict=True):
        one = [
            np.where(v == VOID, v, np.isin(v, group.indices)).astype(np.uint8) for v in (truth, prediction)
        ]
        alone = volume_scores(one[0], one[1], classes=anonymous_classes(2), spacing_mm=SPACING).classes[1]
        same = {"name": region.name, "indices": region.indices}
        assert alone.model_copy(update=same) == region


def test_both_conventions_find_the_same_tumour() -> None:
    # 1 necrotic core, 2 oedema, enhancing 3 or 4.
    truth, prediction = shells(shift=0), shells(shift=1)
    old = [np.where(v == 3, 4, v).astype(np.uint8) for v in (truth, prediction)]
    new_scores = volume_scores(
        truth, prediction, classes=anonymous_classes(4), groups=BRATS_GROUPS["brats-3"], spacing_mm=SPACING
    )
    old_scores = volume_scores(
        old[0], old[1], classes=anonymous_classes(5), groups=BRATS_GROUPS["brats-4"], spacing_mm=SPACING
    )
    for new, before in zip(new_scores.groups, old_scores.groups, strict=True):
        assert new.model_copy(update={"indices": before.indices}) == before
    assert by_name(old_scores)["enhancing tumour"].indices == (4,)
    assert by_name(old_scores)["enhancing tumour"].truth_ml == pytest.approx(64 * VOXEL_ML)
    assert by_name(new_scores)["whole tumour"].truth_ml == pytest.approx(1000 * VOXEL_ML)
    assert by_name(new_scores)["tumour core"].truth_ml == pytest.approx((1000 - 512 + 64) * VOXEL_ML)


def test_non_enhancing_core_belongs_to_the_core_of_the_older_numbering() -> None:
    volume = np.full((2, 2, 2), 3, np.uint8)
    scores = by_name(
        volume_scores(
            volume, volume, classes=anonymous_classes(5), groups=BRATS_GROUPS["brats-4"], spacing_mm=SPACING
        )
    )
    assert (scores["whole tumour"].dice, scores["tumour core"].dice) == (1.0, 1.0)
    assert scores["enhancing tumour"].absent


@pytest.mark.parametrize("side", [0, 1])
def test_void_planes_on_either_side_are_as_if_they_were_cut_off(side: int) -> None:
    volumes = [shells(shift=0), shells(shift=1)]
    classes, groups = anonymous_classes(4), BRATS_GROUPS["brats-3"]
    cut = volume_scores(volumes[0][4:], volumes[1][4:], classes=classes, groups=groups, spacing_mm=SPACING)
    volumes[side][:4] = VOID
    void = volume_scores(volumes[0], volumes[1], classes=classes, groups=groups, spacing_mm=SPACING)
    assert (cut.void_voxels, void.void_voxels) == (0, 4 * 14 * 15)
    assert void.model_copy(update={"void_voxels": 0}) == cut


def test_where_everything_is_void_there_are_no_scores() -> None:
    void = np.full((2, 3, 4), VOID, np.uint8)
    scores = volume_scores(
        void, shells(shift=0)[:2, :3, :4], classes=anonymous_classes(2), spacing_mm=SPACING
    )
    assert (scores.counted_voxels, scores.void_voxels, scores.mean_dice) == (0, 24, None)
    assert all(region.absent for region in scores.classes)


def test_volumes_in_zarr_score_like_those_in_memory() -> None:
    truth, prediction = random_pair(3, classes=4)
    stored = [zarr.array(v, chunks=(2, 5, 6)) for v in (truth, prediction)]
    classes = anonymous_classes(4)
    assert volume_scores(stored[0], stored[1], classes=classes, spacing_mm=SPACING) == volume_scores(
        truth, prediction, classes=classes, spacing_mm=SPACING
    )


def test_scores_survive_json() -> None:
    truth, prediction = random_pair(5, classes=4)
    scores = volume_scores(
        truth, prediction, classes=anonymous_classes(4), groups=BRATS_GROUPS["brats-3"], spacing_mm=SPACING
    )
    assert VolumeScores.model_validate_json(scores.model_dump_json()) == scores


def test_sizes_of_classes_in_a_volume_are_in_ml_and_void_has_no_share() -> None:
    grid = Geometry(axes="zyx", shape=(9, 9, 9), spacing=(2.5, 2.0, 0.5), unit="millimeter")
    found = class_areas({0: 600, 2: 200, VOID: 900}, anonymous_classes(3), geometry=grid)
    assert [v.pixels for v in found] == [600, 0, 200]
    assert [v.volume_ml for v in found] == pytest.approx([1.5, 0.0, 0.5])
    assert [v.share for v in found] == [0.75, 0.0, 0.25]
    assert [v.area_mm2 for v in found] == [None, None, None]
    empty = class_areas({VOID: 9}, anonymous_classes(1), geometry=grid)
    assert (empty[0].name, empty[0].volume_ml, empty[0].share) == ("class 0", 0.0, 0.0)


def test_volumes_that_do_not_fit_are_refused() -> None:
    a, classes = np.zeros((2, 3, 4), np.uint8), anonymous_classes(2)
    with pytest.raises(ValueError, match=r"truth \(2, 3, 4\) and prediction \(4, 3, 2\) differ in shape"):
        volume_scores(a, a.T, classes=classes, spacing_mm=SPACING)
    with pytest.raises(ValueError, match="prediction has int16 values; class indices are uint8"):
        volume_scores(a, a.astype(np.int16), classes=classes, spacing_mm=SPACING)
    with pytest.raises(ValueError, match=r"truth has shape \(3, 4\); a volume has three axes: z, y, x"):
        volume_scores(a[0], a[0], classes=classes, spacing_mm=SPACING)
    with pytest.raises(ValueError, match="class 7 is not among the 2 classes"):
        volume_scores(a, a + np.uint8(7), classes=classes, spacing_mm=SPACING)
    with pytest.raises(ValueError, match="classes must be numbered 0, 1, 2, ... in order"):
        volume_scores(a, a, classes=classes[1:], spacing_mm=SPACING)
    for wrong in ((1.0, 1.0), (1.0, 1.0, 0.0), (1.0, math.nan, 1.0)):
        with pytest.raises(ValueError, match="must be three finite and positive sizes in mm: z, y, x"):
            volume_scores(a, a, classes=classes, spacing_mm=wrong)


def test_groups_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match="a group needs at least one class"):
        ClassGroup(name="nothing", indices=())
    with pytest.raises(ValidationError, match=r"a class is named twice in \(1, 2, 1\)"):
        ClassGroup(name="twice", indices=(1, 2, 1))
    for wrong in (VOID, -1):
        with pytest.raises(ValidationError, match=f"{wrong} cannot be a class: they are numbered 0 to 254"):
            ClassGroup(name="void", indices=(1, wrong))
    with pytest.raises(ValidationError, match="at least 1 character"):
        ClassGroup(name="", indices=(1,))


def test_groups_that_do_not_fit_the_classes_are_refused() -> None:
    a = np.zeros((2, 3, 4), np.uint8)
    with pytest.raises(
        ValueError, match="group 'whole tumour' has class 4, which is not among the classes 0, 1, 2, 3"
    ):
        volume_scores(a, a, classes=anonymous_classes(4), groups=BRATS_GROUPS["brats-4"], spacing_mm=SPACING)
    same = (ClassGroup(name="tumour", indices=(1,)), ClassGroup(name="tumour", indices=(2,)))
    with pytest.raises(ValueError, match="two groups are named 'tumour'"):
        check_groups(same, anonymous_classes(3))
