"""Training on volumes: what the last step leaves is kept, and scored once on the held-out cases."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wsiseg.errors import ManifestError
from wsiseg.files import writing
from wsiseg.manifest import read_manifest
from wsiseg.metrics import ConfusionMatrix, score
from wsiseg.models.importing import window_spec
from wsiseg.models.registry import build_network
from wsiseg.training.loss import dice_cross_entropy
from wsiseg.training.outcome import Steps, loss_log, write_model
from wsiseg.training.run import VolumeRun, write_run
from wsiseg.training.volumes import VolumeCase, VolumeSampler, open_volumes


def train_volumes(run: VolumeRun, *, steps: Steps) -> Path:
    """Train on the cases of split `train` (or none), score those of `validation`; the card's path.

    Raises WsisegError where the run cannot be used.
    """
    manifest = read_manifest(run.manifest, root=run.root)
    cases, held_out = (open_volumes(run, manifest, split=split) for split in ("train", "validation"))
    if not cases:
        raise ManifestError("the manifest has no case whose split is train or empty")
    shared = {case.row.patient for case in cases} & {case.row.patient for case in held_out}
    if shared:
        raise ManifestError(f"patient {min(shared)!r} is in train and in validation; splits are by patient")
    with writing(run.out):
        run.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    network = train_network(run, cases, log=run.out / f"{run.name}.log.csv", steps=steps)
    seconds = round(time.monotonic() - start)
    quality: dict[str, Any] = {"note": "no held-out figures: the manifest has no validation cases"}
    if held_out:
        stride = window_spec(network, ndim=len(run.axes)).output_stride
        quality = {
            "method": "scored once, after the last step, on cases that training never saw; "
            "Dice of each whole volume on its own grid",
            "split": f"rows marked validation in {run.manifest.name}",
            **summary(run, [dice_of(network, case, run, stride=stride) for case in held_out]),
        }
    cost = {"volumes trained on": len(cases), "seconds": seconds, "steps": run.steps, "seed": run.seed}
    card = write_model(run, network, name=run.name, quality=quality | {"training": cost})
    write_run(run, run.out / f"{run.name}.run.yaml")
    return card


def train_network(run: VolumeRun, cases: Sequence[VolumeCase], *, log: Path, steps: Steps) -> nn.Module:
    """One network trained on `cases`, in eval mode; losses go to the CSV file `log`."""
    torch.manual_seed(run.seed)
    rng = np.random.default_rng(run.seed)
    network = build_network(run.network.name, **run.network.arguments)
    give_each_class_a_channel(network)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    kept = copy.deepcopy(network)
    sampler = VolumeSampler(cases, run)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=run.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=run.learning_rate, total_steps=run.steps)
    network.train()
    with loss_log(log, run) as note:
        for step in steps(range(1, run.steps + 1)):
            inputs, truth = sampler.batch(rng)
            scores = network(inputs.contiguous(memory_format=torch.channels_last_3d))
            loss = dice_cross_entropy(scores, truth, background=run.background)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            # A mean over few steps holds little of the first, random weights.
            follow(kept, network, decay=min(run.average, 1 - 1 / step))
            note(step, loss.item(), float(schedule.get_last_lr()[0]))
    return kept.eval()


def give_each_class_a_channel(network: nn.Module) -> None:
    """Let the last convolution, one voxel wide, begin as the identity.

    Nothing that comes into it is negative (ReLU) and it has no bias: a class that random weights all
    make negative cannot score above 0 anywhere, and one structure was never found in a whole training.
    """
    last = [module for module in network.modules() if isinstance(module, nn.Conv3d)][-1]
    nn.init.dirac_(last.weight)


@torch.no_grad()
def follow(kept: nn.Module, network: nn.Module, *, decay: float) -> None:
    """Move weights and running statistics of `kept` towards those of `network`; decay 0 copies them."""
    for mean, value in zip(kept.state_dict().values(), network.state_dict().values(), strict=True):
        if decay and mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def dice_of(network: nn.Module, case: VolumeCase, run: VolumeRun, *, stride: int) -> dict[str, float | None]:
    """Dice of every class but the background, None where neither truth nor mask has it."""
    with torch.inference_mode():
        scores = network(case.whole(run, stride=stride))  # (1, K, *padded)
    inside = tuple(slice(0, n) for n in case.truth.shape)
    mask = scores[0].argmax(dim=0)[inside].to(torch.uint8).numpy()
    matrix = ConfusionMatrix.of(truth=case.truth, prediction=mask, num_classes=len(run.classes))
    return {c.name: c.dice for c in score(matrix, run.classes).classes if c.index != run.background}


def summary(run: VolumeRun, dice: Sequence[dict[str, float | None]]) -> dict[str, Any]:
    """Mean and lowest Dice of each structure over volumes, for a card."""
    figures: dict[str, Any] = {"volumes": len(dice)}
    found = {name: [value for d in dice if (value := d[name]) is not None] for name in dice[0]}
    means = {name: round(float(np.mean(values)), 4) for name, values in found.items() if values}
    figures["Dice, mean over volumes"] = means
    figures["Dice, lowest of a volume"] = {n: round(min(v), 4) for n, v in found.items() if v}
    figures["Dice, mean over structures"] = round(float(np.mean(list(means.values()))), 4) if means else None
    return figures
