"""The smallest honest trainer: one loop, a fixed number of steps, every figure from held-out cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wsiseg.errors import ManifestError
from wsiseg.files import writing
from wsiseg.manifest import read_manifest
from wsiseg.metrics import ConfusionMatrix, Scores, score
from wsiseg.models.registry import build_network
from wsiseg.preprocess import apply, fit
from wsiseg.training.loss import class_weights, weighted_cross_entropy
from wsiseg.training.outcome import Steps, loss_log, write_model
from wsiseg.training.patches import PatchSampler, TrainingCase, open_cases
from wsiseg.training.run import AnyRun, RunFile, write_run
from wsiseg.training.volume_loop import train_volumes


def train(run: AnyRun, *, progress: Callable[[str, Iterable[int], int], Iterable[int]] | None = None) -> Path:
    """Train what a run describes; returns the path of the card.

    Volumes are scored on the cases whose split is validation. On pictures, with
    `leave_one_patient_out` one more network is trained without each patient and scored on what it has
    not seen; those scores go on the card. Raises WsisegError where the run cannot be used.
    """
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    if not isinstance(run, RunFile):
        return train_volumes(
            run, steps=lambda s: s if progress is None else progress("volumes", s, run.steps)
        )
    mpp = run.spacing.value
    assert not isinstance(mpp, tuple)  # the run was checked
    cases = open_cases(read_manifest(run.manifest, root=run.root), run.mask_classes, mpp=mpp)
    with writing(run.out):
        run.out.mkdir(parents=True, exist_ok=True)

    def wrap(what: str) -> Steps:
        return lambda steps: steps if progress is None else progress(what, steps, run.steps)

    quality: dict[str, Any] = {"note": "no held-out figures: trained on every case"}
    if run.leave_one_patient_out:
        if len({case.row.patient for case in cases}) < 2:
            raise ManifestError("leave_one_patient_out needs cases of at least two patients")
        total = ConfusionMatrix.empty(len(run.mask_classes))
        folds = {}
        for patient in sorted({case.row.patient for case in cases}):
            kept = [case for case in cases if case.row.patient != patient]
            left_out = [case for case in cases if case.row.patient == patient]
            network = train_network(
                run,
                kept,
                log=run.out / f"{run.name}-without-{patient}.log.csv",
                steps=wrap(f"without {patient}"),
            )
            matrix = confusion_on(network, left_out, run)
            total += matrix
            scores = score(matrix, run.mask_classes)
            folds[patient] = _summary(scores)
            held_out = {"left out": patient, "on the patient left out": _summary(scores)}
            write_model(run, network, name=f"{run.name}-without-{patient}", quality=held_out)
        quality = {
            "method": "leave one patient out: each crop scored by weights that never saw its patient",
            "all": _summary(score(total, run.mask_classes)),
            "per patient": folds,
        }
    network = train_network(run, cases, log=run.out / f"{run.name}.log.csv", steps=wrap("all cases"))
    card = write_model(run, network, name=run.name, quality=quality)
    write_run(run, run.out / f"{run.name}.run.yaml")
    return card


def train_network(run: RunFile, cases: Sequence[TrainingCase], *, log: Path, steps: Steps) -> nn.Module:
    """One network trained on `cases`, in eval mode; losses go to the CSV file `log`."""
    torch.manual_seed(run.seed)
    rng = np.random.default_rng(run.seed)
    network = build_network(run.network.name, **run.network.arguments)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = torch.from_numpy(
        class_weights(
            (case.truth.read(case.source.geometry.whole) for case in cases),
            num_classes=len(run.mask_classes),
            c=run.class_weight_c,
        )
    )
    sampler = PatchSampler(
        cases=cases,
        size=run.patch,
        zoom=run.zoom,
        stain_jitter=run.stain_jitter,
        min_piece=run.min_piece,
        glass_share=run.glass_share,
        glass=run.background,
    )
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=run.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=run.learning_rate, total_steps=run.steps)
    network.train()
    with loss_log(log, run) as note:
        for step in steps(range(1, run.steps + 1)):
            images, truth = sampler.batch(run.batch, rng)
            inputs = apply(images, None, run.preprocessing).contiguous(memory_format=torch.channels_last)
            loss = weighted_cross_entropy(network(inputs), truth, weights)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            note(step, loss.item(), float(schedule.get_last_lr()[0]))
    network.eval()
    return network


def confusion_on(network: nn.Module, cases: Sequence[TrainingCase], run: RunFile) -> ConfusionMatrix:
    """Confusion of a network on whole cases."""
    total = ConfusionMatrix.empty(len(run.mask_classes))
    for case in cases:
        image, truth = case.whole()
        with torch.inference_mode():
            scores = network(apply(image, fit(case.source, run.preprocessing), run.preprocessing))
        prediction = scores[0].argmax(0).to(torch.uint8).numpy()
        total += ConfusionMatrix.of(truth=truth, prediction=prediction, num_classes=len(run.mask_classes))
    return total


def _summary(scores: Scores) -> dict[str, Any]:
    """Figures for a card: a class without truth pixels has no IoU worth reporting."""
    iou = {c.name: None if c.iou is None else round(c.iou, 4) for c in scores.classes if c.truth_pixels}
    return {
        "IoU of classes in the truth": iou,
        "pixel accuracy": round(scores.pixel_accuracy or 0.0, 4),
        "frequency-weighted IoU": round(scores.frequency_weighted_iou or 0.0, 4),
        "pixels": scores.counted_pixels,
    }
