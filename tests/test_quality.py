from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.quality import recipes
from benchmarks.quality.__main__ import options
from benchmarks.quality.figures import (
    Found,
    figures_of,
    mean_iou,
    mean_of,
    mean_recall,
    site_of,
)
from benchmarks.quality.intervals import Interval, bootstrap, draws, mean_over_seeds, paired, verdict
from benchmarks.quality.page import decision
from benchmarks.quality.prepare import VOID, discs, glass, prepare, read_dots
from benchmarks.quality.recipes import Benchmark
from benchmarks.quality.scoring import crops, dots
from tests.conftest import card_of
from wsiseg.errors import ManifestError
from wsiseg.manifest import read_manifest
from wsiseg.predict import NetworkPredictor, Outputs
from wsiseg.training.cases import open_case
from wsiseg.training.run import Run

ALL = [recipes.load(recipes.RUNS / f"{name}.yaml") for name in recipes.names()]


def mean(values: Any) -> float:
    return float(np.mean(values))


def test_images_that_are_all_alike_leave_no_doubt() -> None:
    found = bootstrap(np.full((5, 1), 0.25), mean, patients=list("abcde"))
    assert found == Interval(0.25, 0.25, 0.25)


def test_the_interval_of_a_share_is_that_of_the_binomial() -> None:
    values = np.repeat([0.0, 1.0], 50)
    found = bootstrap(values, mean, patients=[str(i) for i in range(100)], rounds=20_000)
    # Percentiles of 100 draws that are 1 with chance 1/2, by the binomial distribution: 40 and 60.
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.40, 0.60))


def test_the_images_of_a_patient_are_drawn_together() -> None:
    for drawn in draws(["b", "a", "b"], rounds=50, seed=0):
        assert sorted(drawn) in ([1, 1], [0, 1, 2], [0, 0, 2, 2])
    values = np.array([0.0, 1.0, 0.0])
    assert bootstrap(values, mean, patients=["b", "a", "b"]).high == 1.0


def test_a_difference_is_taken_on_the_same_images() -> None:
    one = np.array([0.1, 0.5, 0.9, 0.3])
    found = paired(one + 0.1, one, mean, patients=list("abcd"))
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="not of the same images"):
        paired(one, one[:3], mean, patients=list("abcd"))


def test_draws_without_the_class_are_left_out_and_counted() -> None:
    def figure(values: Any) -> float:
        return float(np.sum(values)) if np.sum(values) else np.nan

    found = bootstrap(np.array([1.0, 0.0]), figure, patients=list("ab"), rounds=4000)
    assert (found.low, found.high) == (1.0, 2.0)
    assert found.undefined == pytest.approx(0.25, abs=0.03)
    nowhere = bootstrap(np.zeros(2), figure, patients=list("ab"))
    assert np.isnan(nowhere.value)
    assert nowhere.undefined == 1.0


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (Interval(0.2, 0.1, 0.3), "confirmed"),
        (Interval(-0.2, -0.3, -0.1), "refuted"),
        (Interval(0.2, -0.1, 0.3), "undecided"),
        (Interval(np.nan, np.nan, np.nan), "undecided"),
    ],
)
def test_a_claim_is_decided_by_an_interval_on_one_side_of_its_bound(interval: Interval, said: str) -> None:
    assert verdict(interval, more_than=0.0) == said


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([0.1, 0.2, 0.3], "confirmed"),
        ([0.1, 0.2], "undecided: 2 of 3 seeds"),
        ([0.7, -0.1, -0.1], "undecided: 1 of 3 seeds are above the bound"),
    ],
)
def test_a_claim_is_decided_only_where_every_seed_says_the_same(seeds: list[float], said: str) -> None:
    found = Found(Interval(0.2, 0.1, 0.3), seeds)
    assert decision(found, more_than=0.0, seeds=len(seeds)) == said


def test_seeds_are_averaged_inside_an_image() -> None:
    made = mean_over_seeds(np.array([[[1.0, np.nan]], [[3.0, np.nan]], [[np.nan, np.nan]]]))
    np.testing.assert_array_equal(made, [[2.0, np.nan]])


def test_iou_and_recall_are_of_the_sum_of_all_images() -> None:
    one = [[3, 1, 0], [0, 2, 0], [0, 0, 0]]
    other = [[1, 0, 1], [2, 0, 0], [0, 0, 0]]
    values = np.array([one, other], float)  # sum: [[4, 1, 1], [2, 2, 0], [0, 0, 0]]
    assert mean_iou(values, classes=[0]) == pytest.approx(4 / 8)
    assert mean_iou(values, classes=[0, 1]) == pytest.approx((4 / 8 + 2 / 5) / 2)
    assert mean_recall(values, classes=[0, 1]) == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert np.isnan(mean_iou(values, classes=[0, 2]))
    assert np.isnan(mean_recall(values, classes=[2]))


def test_figures_of_volumes_are_means_of_what_is_defined() -> None:
    values = np.array(
        [[[0.8, 2.0, 0.1, -0.2], [0.6, np.nan, 0, 0.4]], [[0.9, 4.0, 0.1, 0.4], [0.7, 1, 0, 0]]]
    )
    assert mean_of(values, column=0) == pytest.approx(0.75)
    assert mean_of(values, column=3, structure=0) == pytest.approx(0.3)
    assert mean_of(values, column=1, structure=1) == 1.0
    assert np.isnan(mean_of(values[:1], column=1, structure=1))


@pytest.mark.parametrize("benchmark", ALL, ids=lambda b: b.name)
def test_every_entry_is_a_run_that_sees_the_same_patches(benchmark: Benchmark) -> None:
    for entry in benchmark.entries:
        seen = 0
        for stage in benchmark.recipe(entry):
            settings = {k: v for k, v in stage.items() if k != "checkpoint"}
            data = {**settings.get("data", {}), "manifest": "m.csv"}
            run = Run(**{**settings, "name": entry, "data": data})
            assert run.patch == Run(**{**benchmark.run, **settings, "name": entry, "data": data}).patch
            seen += run.steps * run.patches.batch
        assert seen == benchmark.patches
    known = {figure.name for figure in figures_of(benchmark)}
    for claim in benchmark.claims:
        assert claim.figure in known
        assert {claim.of, claim.against or claim.of} <= set(benchmark.entries)


def test_patches_that_are_no_whole_steps_are_refused() -> None:
    uneven = ALL[-1].model_copy(update={"patches": 281})
    with pytest.raises(ValueError, match="281 patches are no whole batches of 4"):
        uneven.recipe("espnet-q3")


def test_discs_take_the_class_of_the_nearest_dot() -> None:
    places, classes = np.array([[2, 2], [2, 5]]), np.array([1, 3], np.uint8)
    mask = discs(places, classes, size=(5, 9), radius_px=2.0)
    np.testing.assert_array_equal(mask[2], [1, 1, 1, 1, 3, 3, 3, 3, VOID])
    np.testing.assert_array_equal(mask[:, 2], [1, 1, 1, 1, 1])
    np.testing.assert_array_equal(mask[0], [VOID, VOID, 1, VOID, VOID, 3, VOID, VOID, VOID])


def test_discs_are_those_that_came_with_the_data(shared: Path) -> None:
    root = shared / "data" / "brca-m2c"
    path = sorted((root / "masks_disc6").glob("*.png"))[0]
    theirs = np.array(Image.open(path))
    ours = discs(*read_dots(root, path.stem), size=theirs.shape)
    np.testing.assert_array_equal(ours == VOID, theirs == VOID)
    assert (ours != theirs).sum() <= 5  # pixels as far from a dot of one class as from one of another


def test_glass_is_bright_smooth_and_large() -> None:
    rng = np.random.default_rng(0)
    rgb = np.full((120, 120, 3), (200, 120, 180), np.uint8)
    rgb[10:50, 10:50] = 240  # glass
    rgb[70:82, 10:22] = 240  # a gap between cells
    rgb[60:110, 60:110] = np.clip(rng.normal(235, 20, (50, 50, 1)), 0, 255)  # pale fibres
    rgb[10:50, 70:110] = (250, 210, 240)  # stained, if faintly
    found = glass(rgb)
    assert found[22:38, 22:38].all()  # but for where the rim blurs
    found[10:50, 10:50] = False
    assert not found.any()


def test_data_that_are_missing_are_one_sentence(tmp_path: Path) -> None:
    for name in ("hippocampus", "tissue", "breast"):
        with pytest.raises(ManifestError, match="are not in .*: name the folder that has them with --shared"):
            prepare(name, shared=tmp_path, folder=tmp_path)


class RedPredictor:
    """Scores by the red of a pixel, 80 for each class; background is the highest everywhere."""

    network = torch.nn.Identity()
    card = card_of(4)

    def for_case(self, stats: object) -> RedPredictor:
        return self

    def __call__(self, images: Any) -> Outputs:
        classes = torch.from_numpy(images[:, 0] // 80).long()
        scores = torch.nn.functional.one_hot(classes, 4).movedim(-1, 1).float()
        scores[:, 0] = 2.0
        return Outputs(scores)


def test_dots_count_by_the_mask_at_their_pixel(tmp_path: Path) -> None:
    root, name = tmp_path / "data" / "brca-m2c", "TCGA-OL-1_x.png"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    image = np.full((40, 50, 3), 160, np.uint8)
    image[4, 30], image[30, 4] = 80, 240
    Image.fromarray(image).save(root / "images" / name)
    # The first and second dot are where red says so; at the third it says 2 instead of 1.
    (root / "labels" / "TCGA-OL-1_x_gt_class_coords.txt").write_text("4 30 1\n30 4 3\n20 20 1\n")
    (root / "index.csv").write_text(
        f"file,width,height,patient,split_patient_safe\n{name},50,40,TCGA-OL-1,test\n"
    )
    cases = prepare("breast", shared=tmp_path, folder=tmp_path / "work")
    breast = next(b for b in ALL if b.name == "breast")
    data = {**breast.run["data"], "manifest": cases.manifest}
    run = Run(**{**breast.recipe("espnet")[0], "name": "x", "data": data})
    manifest = read_manifest(cases.manifest, root=cases.root)
    case = open_case(run, manifest, manifest.cases[0])
    # A whole disc has 113 pixels; two lose 8 beyond the border.
    assert case.census.total.tolist() == [0, 113 + 105, 0, 105]

    found = dots(case, cast(NetworkPredictor, RedPredictor()), root=root)
    assert found.values == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert (found.patient, found.part, site_of(found)) == ("TCGA-OL-1", "held out", "OL")
    assert [figure.name for figure in figures_of(breast) if figure.has(found)][-1] == (
        "balanced accuracy, other sites"
    )


def test_crops_of_another_lab_count_epithelium_and_stroma_only() -> None:
    breast = next(b for b in ALL if b.name == "breast")
    data = {**breast.run["data"], "manifest": "m.csv"}
    run = Run(**{**breast.recipe("espnet")[0], "name": "x", "data": data})
    found = {case.case: case for case in crops(run, cast(NetworkPredictor, RedPredictor()))}
    truth = {name: case.array.sum(axis=1).tolist() for name, case in found.items()}
    # Pixels by class as the data's README counts them.
    assert truth["1222_1_7200_3600_2"] == [0, 15 + 76442, 69126]
    assert truth["1339_1_1000_9800_1.33"] == [0, 0, 38423]
    assert all(case.array[:, 0].sum() == 0 for case in found.values())


def test_a_trial_leaves_its_results_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(["tissue", "--work", "w", "--patches", "8"])
    assert "needs --results" in capsys.readouterr().err
    assert options(["tissue", "--work", "w", "--patches", "8", "--results", "r"]).patches == 8
