"""Losses, optimisers and schedules as published, and the running mean of the weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from tests.conftest import REPOSITORY
from tests.training_data import PICTURES, merged, pictures
from wsiseg.classes import VOID
from wsiseg.models.registry import build_network
from wsiseg.training.losses import (
    Objective,
    class_weights,
    dice,
    focal,
    on_grid_of,
    outputs_of,
    weighted_cross_entropy,
)
from wsiseg.training.optimisers import follow, layer_groups, make_optimiser, make_schedule, rate_share
from wsiseg.training.patches import Batch
from wsiseg.training.run import Run
from wsiseg.training.sections import Schedule
from wsiseg.training.session import Session

CPU = torch.device("cpu")


def run_with(**changes: Any) -> Run:
    return Run(**merged(PICTURES, changes))


def test_class_weights_are_those_of_a_correct_histogram(shared: Path) -> None:
    expected = json.loads((shared / "fixtures" / "class_weights.json").read_text())
    masks = REPOSITORY / "wsiseg" / "samples" / "ynet-breast8" / "masks"
    truths = [np.asarray(Image.open(p))[..., 0] for p in sorted(masks.glob("*.png"))]
    counts = sum(np.bincount(t.ravel(), minlength=8) for t in truths)
    assert isinstance(counts, np.ndarray)
    np.testing.assert_allclose(class_weights(counts), expected["correct_weights"], rtol=1e-6)
    counts[0] = 0
    assert class_weights(counts)[0] == pytest.approx(1 / np.log(1.1), rel=1e-6)


def test_cross_entropy_is_the_golden_one(shared: Path) -> None:
    stored = np.load(shared / "fixtures" / "loss_ce.npz")
    logits, weights = torch.from_numpy(stored["logits"]), torch.from_numpy(stored["weights"])
    for target, value in (("target", "weighted_ce"), ("target_ignore255", "weighted_ce_ignore255")):
        loss = weighted_cross_entropy(logits, torch.from_numpy(stored[target]), weights)
        assert loss.item() == pytest.approx(float(stored[value]), rel=1e-6)
    nothing = weighted_cross_entropy(logits.requires_grad_(), torch.full((*logits[:, 0].shape,), VOID))
    nothing.backward()  # type: ignore[no-untyped-call]
    assert nothing.item() == 0


def test_dice_is_that_of_monai_where_all_is_labelled_and_ignores_void() -> None:
    losses = pytest.importorskip("monai.losses")
    torch.manual_seed(0)
    scores, truth = torch.randn(2, 3, 4, 5, 6), torch.randint(0, 3, (2, 4, 5, 6))
    for background in (0, None):
        theirs = losses.DiceLoss(
            to_onehot_y=True, softmax=True, batch=True, include_background=background is None
        )
        torch.testing.assert_close(dice(scores, truth, background=background), theirs(scores, truth[:, None]))
    half = truth.clone()
    half[:, 2:] = VOID
    first = dice(scores[:, :, :2], truth[:, :2], background=0)
    torch.testing.assert_close(dice(scores, half, background=0), first)
    # Any class can be the background: here the last, moved to the front for theirs.
    turned = dice(scores, truth, background=2)
    other = dice(scores.roll(1, dims=1), (truth + 1) % 3, background=0)
    torch.testing.assert_close(turned, other)


def test_focal_is_its_formula_and_ignores_void() -> None:
    torch.manual_seed(0)
    scores, truth = torch.randn(2, 3, 6, 5), torch.randint(0, 3, (2, 6, 5))
    truth[:, :2] = VOID
    weights = torch.tensor([1.0, 2.0, 0.5])
    labelled = truth != VOID
    log_p = scores.log_softmax(1).gather(1, truth.where(labelled, torch.tensor(0))[:, None])[:, 0]
    w = weights[truth.where(labelled, torch.tensor(0))]
    expected = (w * (1 - log_p.exp()) ** 2 * -log_p)[labelled].mean()
    torch.testing.assert_close(focal(scores, truth, weights, gamma=2.0), expected)
    plain = focal(scores, truth, gamma=0.0)
    torch.testing.assert_close(plain, functional.cross_entropy(scores, truth, ignore_index=VOID))


def test_losses_on_several_outputs_are_weighted_and_named() -> None:
    run = run_with(
        losses=[
            {"kind": "cross-entropy", "class_weights": "equal"},
            {"kind": "dice", "output": 1, "weight": 0.5},
            {"kind": "cross-entropy", "output": 0, "class_weights": [1, 1, 1, 1, 9], "weight": 2},
        ]
    )
    torch.manual_seed(0)
    scores, small, truth = torch.randn(2, 5, 8, 8), torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 8, 8))
    parts = Objective(run, np.ones(5, np.int64), device=CPU)(
        nn.Identity(), (scores, small), Batch(scores, {"truth": truth})
    )
    assert list(parts) == ["cross-entropy 0 (0)", "dice 1", "cross-entropy 0 (2)"]
    first, second, third = parts.values()
    torch.testing.assert_close(first, functional.cross_entropy(scores, truth))
    torch.testing.assert_close(second, 0.5 * dice(small, truth[:, 1::2, 1::2], background=0))
    weights = torch.tensor([1.0, 1, 1, 1, 9])
    torch.testing.assert_close(third, 2 * functional.cross_entropy(scores, truth, weight=weights))


def test_truth_follows_coarse_scores_and_scores_of_a_part() -> None:
    truth = torch.arange(64).view(1, 8, 8)
    coarse = on_grid_of(torch.zeros(1, 2, 2, 4), truth, network=nn.Identity())
    assert coarse[0].tolist() == [[17, 19, 21, 23], [49, 51, 53, 55]]

    class Part(nn.Module):
        output_offset, output_size = (1, 2), (3, 4)

    part = on_grid_of(torch.zeros(1, 2, 3, 4), truth, network=Part())
    np.testing.assert_array_equal(part[0], truth[0, 1:4, 2:6])


def test_stacked_masks_of_deep_supervision_are_outputs_of_their_own() -> None:
    made = torch.randn(2, 3, 5, 8, 8)
    found = outputs_of(made, ndim=2)
    assert len(found) == 3
    torch.testing.assert_close(found[1], made[:, 1])
    assert outputs_of(made[:, 0], ndim=2)[0].shape == (2, 5, 8, 8)


def rates(kind: str, steps: int, **how: Any) -> list[float]:
    run = run_with(steps=steps, schedule={"kind": kind, **how}, optimiser={"learning_rate": 1.0})
    optimiser = make_optimiser(run, nn.Linear(2, 2))
    schedule = make_schedule(run, optimiser)
    found = []
    for _ in range(steps):
        found.append(float(optimiser.param_groups[0]["lr"]))
        optimiser.step()
        schedule.step()
    return found


def test_schedules_are_those_of_the_originals(shared: Path) -> None:
    golden = json.loads((shared / "fixtures" / "lr_schedules.json").read_text())["hybrid_0.009"]
    np.testing.assert_allclose(rates("hybrid", 100), np.array(golden) / 0.045, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(rates("hybrid", 300)[::3], np.array(golden) / 0.045, rtol=1e-9, atol=1e-12)
    assert rates("step", 6, every=2, factor=0.5) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    np.testing.assert_allclose(rates("poly", 4, power=0.9), [(1 - k / 4) ** 0.9 for k in range(4)])
    assert rates("constant", 3) == [1, 1, 1]


def test_cosine_rises_and_falls_to_its_floor_and_one_cycle_is_that_of_torch() -> None:
    found = rates("cosine", 12, warmup=2, floor=0.1)
    np.testing.assert_allclose(found[:3], [1 / 3, 2 / 3, 1])
    assert found[7] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert rate_share(Schedule(kind="cosine", warmup=2, floor=0.1), 12, steps=12) == pytest.approx(0.1)
    one = rates("one-cycle", 10)
    assert one[0] == pytest.approx(1 / 25)
    assert max(one) == one[2] == 1


def test_optimisers_are_those_that_were_asked_for() -> None:
    network = nn.Linear(2, 2)
    sgd = make_optimiser(run_with(optimiser={"kind": "sgd", "momentum": 0.8, "nesterov": True}), network)
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, True)
    adam = make_optimiser(run_with(optimiser={"kind": "adam", "betas": [0.8, 0.9]}), network)
    assert type(adam) is torch.optim.Adam
    assert adam.defaults["betas"] == (0.8, 0.9)
    assert type(make_optimiser(run_with(), network)) is torch.optim.AdamW


def test_deeper_layers_learn_faster_by_the_factor() -> None:
    network = build_network("espnet", classes=5, p=1, q=1)
    groups = layer_groups(network, factor=16.0)
    shares = [share for share, _ in groups]
    np.testing.assert_allclose([shares[0], shares[-1]], [1 / 16, 1.0])
    ratios = np.array(shares[1:]) / shares[:-1]
    np.testing.assert_allclose(ratios, ratios[0])
    assert groups[0][1][0] is network.get_parameter("encoder.stem.conv.weight")
    assert groups[-1][1][0] is network.get_parameter("up_half.weight")
    assert sum(p.numel() for _, own in groups for p in own) == sum(p.numel() for p in network.parameters())
    run = run_with(optimiser={"depth_factor": 16.0, "learning_rate": 0.5})
    rate = [group["lr"] for group in make_optimiser(run, network).param_groups]
    np.testing.assert_allclose([rate[0], rate[-1]], [0.5 / 16, 0.5])
    schedule = make_schedule(run, make_optimiser(run, network))
    assert schedule.get_last_lr()[-1] / schedule.get_last_lr()[0] == pytest.approx(16)


def test_the_running_mean_follows_weights_and_statistics() -> None:
    kept, network = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        network.weight.fill_(3.0)
        network.running_mean.fill_(10.0)  # type: ignore[union-attr]
        network.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    follow(kept, network, decay=0.75)
    assert kept.weight.tolist() == [1.5, 1.5]
    assert kept.running_mean.tolist() == [2.5, 2.5]  # type: ignore[union-attr]
    assert kept.num_batches_tracked.item() == 7  # type: ignore[union-attr]
    follow(kept, network, decay=0)
    assert kept.weight.tolist() == [3.0, 3.0]


def test_gradients_are_clipped_to_their_norm(tmp_path: Path) -> None:
    run = pictures(tmp_path, splits="t", optimiser={"kind": "sgd", "momentum": 0, "clip_norm": 0.5,
                   "weight_decay": 0, "learning_rate": 1.0}, schedule={"kind": "constant"})  # fmt: skip
    network = nn.Linear(3, 1)
    before = network.weight.detach().clone()
    session = Session(run, network, path=tmp_path / "x.pt", identity={}, device=CPU)
    session.learn(1, {"loss": 100 * network(torch.ones(1, 3)).sum()})
    moved = torch.cat([(network.weight - before).flatten(), network.bias.grad])  # type: ignore[list-item]
    assert torch.cat([p.grad.flatten() for p in network.parameters()]).norm() == pytest.approx(0.5)  # type: ignore[union-attr]
    assert moved[:3].norm() < 0.5
