"""The trainer on one page: check everything, step, score what was held out, write what came of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsiseg.errors import ManifestError
from wsiseg.files import writing
from wsiseg.memory import keep_memory
from wsiseg.metrics import ConfusionMatrix
from wsiseg.models.card import ModelCard
from wsiseg.predict import execution_record, pick_device
from wsiseg.training.calibration import calibrate, labelled
from wsiseg.training.cases import Case, Cases, class_counts, open_cases
from wsiseg.training.curves import LOG_EVERY
from wsiseg.training.distilling import Distilled, check_teacher
from wsiseg.training.losses import Objective
from wsiseg.training.outcome import draft_card, write_model
from wsiseg.training.patches import PatchSampler, ahead
from wsiseg.training.run import Run, portable
from wsiseg.training.selfsupervised import INNER, Pretext, PretextObjective, PretextSampler
from wsiseg.training.session import Session
from wsiseg.training.start import build, check_start, filled, take_over, try_network
from wsiseg.training.validation import confusion_on, summary
from wsiseg.training.watch import Silent, Watch

NOT_DECISIVE = {"threads", "device", "checkpoint_every", "card"}
"""Settings that may change between a kill and the next start."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network in eval mode and what it cost."""

    network: nn.Module
    cost: dict[str, Any]


def train(run: Run, *, watch: Watch | None = None) -> Path:
    """Train what a run describes; returns the path of the card.

    Killed at any moment and called again, it goes on from its last checkpoint and ends, on a CPU, with the
    same weights. Raises WsisegError, before any step is taken, where the run cannot be used.
    """
    watch = watch or Silent()
    device = ready(run)
    cases = open_cases(run)
    check_cases(run, cases)
    try_network(run)
    draft = draft_card(run, build(run))
    with writing(run.out):
        run.out.mkdir(parents=True, exist_ok=True)

    quality: dict[str, Any] = {}
    if run.validation.leave_one_patient_out:
        quality = {"leave one patient out": leave_one_out(run, cases, draft, device, watch)}
    trained = train_network(run, cases, draft, device, watch)
    quality |= held_out(run, trained.network, cases, draft, device)
    calibrated, figures = calibrate(run, trained.network, cases, draft, device)
    quality |= {**figures, "training": trained.cost}
    card = write_model(run, trained.network, calibrated, name=run.name, quality=quality)
    for name in [run.name, *(fold_name(run, case.row.patient) for case in cases.train)]:
        state_path(run, name).unlink(missing_ok=True)
    return card


def state_path(run: Run, name: str) -> Path:
    """Where a training leaves its state."""
    return run.out / f"{name}.checkpoint.pt"


def fold_name(run: Run, patient: str) -> str:
    """Name of the model that never saw a patient."""
    return f"{run.name}-without-{patient}"


def ready(run: Run) -> torch.device:
    """The device of a run, with its threads. Raises UsageError, ManifestError."""
    device = pick_device(run.device)
    if run.precision == "bfloat16" and device.type == "cpu":
        raise ManifestError(
            "precision bfloat16 is for a GPU and this run is on the CPU: set precision: float32, "
            "or device: cuda"
        )
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    keep_memory()
    return device


def check_cases(run: Run, cases: Cases) -> None:
    """Raises ManifestError where the run asks for cases that the manifest does not have."""
    if run.validation.every and not (cases.validation or run.pretext):
        raise ManifestError("validation.every needs cases whose split is validation; the manifest has none")
    if run.validation.calibrate and not (labelled(cases.validation) or run.pretext):
        raise ManifestError(
            "validation.calibrate needs labelled pixels in cases whose split is validation; there are none"
        )
    if run.validation.leave_one_patient_out and len({case.row.patient for case in cases.train}) < 2:
        raise ManifestError("leave_one_patient_out needs cases of at least two patients")
    asked = run.validation
    if run.pretext and (asked.every or asked.leave_one_patient_out or asked.calibrate):
        raise ManifestError("a pretext has no masks to score: take validation out of the run")
    check_start(run)
    check_teacher(run)


def train_network(run: Run, cases: Cases, draft: ModelCard, device: torch.device, watch: Watch) -> Trained:
    """One network trained on the cases of split train, or what a kill left of it, trained to the end."""
    network = build(run)
    start = take_over(run, network)
    network, sampler, objective = task_of(run, network, cases, device)
    session = Session(
        run,
        network,
        path=state_path(run, run.name),
        identity=identity_of(run, cases, device),
        device=device,
    )
    session.resume()

    left = range(session.step + 1, 1 if session.is_over else run.steps + 1)
    batches = ahead(sampler, left, workers=run.patches.workers)
    for step, drawn in watch.steps(batches, done=session.step, total=run.steps, what=run.name):
        session.prepare(step)
        batch = drawn.to(device, session.format)
        parts = objective(network, session.forward(batch), batch)
        watch.loss(step, session.learn(step, parts))
        if run.validation.every and step % run.validation.every == 0:
            matrices = confusion_on(filled(run, session.weights), cases.validation, card=draft, device=device)
            watch.scored(step, session.judge(matrices))
            session.history.write(run.out, run.name, run.mask_classes)
        elif step % LOG_EVERY == 0:
            session.history.write_tables(run.out, run.name)
        if step % run.checkpoint_every == 0 or session.is_over:
            session.save()
        if session.is_over:
            break

    session.history.write(run.out, run.name, run.mask_classes)
    state = session.final_weights
    if run.pretext is not None:  # its heads have served
        state = {key.removeprefix(INNER): value for key, value in state.items() if key.startswith(INNER)}
    return Trained(filled(run, state), cost_of(session, cases, start))


def task_of(
    run: Run, network: nn.Module, cases: Cases, device: torch.device
) -> tuple[nn.Module, PatchSampler, Any]:
    """What is trained, what it sees, and what is asked of it."""
    classes = len(run.mask_classes)
    if run.pretext is not None:
        heads = Pretext(network, classes=classes)
        return heads, PretextSampler(run, cases.train), PretextObjective(run)
    counts = class_counts(cases.train, num_classes=classes)
    objective = Objective(run, counts, device=device)
    asked = Distilled(run, objective, device=device) if run.distil else objective
    return network, PatchSampler(run, cases.train), asked


def identity_of(run: Run, cases: Cases, device: torch.device) -> dict[str, Any]:
    """All that decides the weights: settings, data, device, threads, versions."""
    settings = {key: value for key, value in portable(run).items() if key not in NOT_DECISIVE}
    settings["patches"].pop("workers")
    card, teacher = check_start(run), check_teacher(run)
    machine = {**execution_record(device), "threads": torch.get_num_threads()}
    return {
        **settings,
        "start_weights": card.sha256 if card else None,
        "teacher_weights": teacher.sha256 if teacher else None,
        "cases": cases.fingerprints,
        "machine": {name: str(value) for name, value in machine.items()},  # torch's version is no plain text
    }


def cost_of(session: Session, cases: Cases, start: dict[str, Any]) -> dict[str, Any]:
    """What a training took, for the card."""
    run = session.run
    cost: dict[str, Any] = {
        "cases": len(cases.train),
        "steps": session.step,
        "patches": session.step * run.patches.batch,
        "patch": list(run.patch),
        "seconds": round(session.seconds),
        "seed": run.seed,
        "threads": torch.get_num_threads(),
        "device": session.device.type,
    }
    if run.validation.keep == "best":
        cost["kept"] = f"weights of step {session.best['step']}"
    return cost | ({"start": start} if start else {})


def held_out(
    run: Run, network: nn.Module, cases: Cases, draft: ModelCard, device: torch.device
) -> dict[str, Any]:
    """Figures of the cases of split validation and test, with how they were obtained."""
    if run.pretext is not None:
        return {"note": "learned without labels: weights to start another run from, no segmentation"}
    chosen = run.validation.keep == "best"
    methods = {
        "validation": "the weights were chosen by these cases, so that the figures are somewhat too high"
        if chosen
        else "scored once, after the last step, on cases that training never saw",
        "test": "scored once, after the last step, on cases that neither training nor any choice saw",
    }
    figures: dict[str, Any] = {}
    for split, method in methods.items():
        found: tuple[Case, ...] = getattr(cases, split)
        if found:
            matrices = confusion_on(network, found, card=draft, device=device)
            source = f"rows marked {split} in {run.data.manifest.name}"
            figures[split] = {"method": method, "split": source, **summary(matrices, run)}
    if not figures and not run.validation.leave_one_patient_out:
        figures["note"] = "no held-out figures: the manifest has no validation or test cases"
    return figures


def leave_one_out(
    run: Run, cases: Cases, draft: ModelCard, device: torch.device, watch: Watch
) -> dict[str, Any]:
    """One more network without each patient in turn, written and scored on what it has not seen."""
    total: list[ConfusionMatrix] = []
    folds = {}
    for patient in sorted({case.row.patient for case in cases.train}):
        name = fold_name(run, patient)
        without, apart = split_off(cases, patient)
        fold = run.model_copy(update={"name": name})
        trained = train_network(fold, without, draft, device, watch)
        matrices = confusion_on(trained.network, apart, card=draft, device=device)
        total += matrices
        folds[patient] = summary(matrices, run)
        quality = {"left out": patient, "on the patient left out": folds[patient], "training": trained.cost}
        write_model(fold, trained.network, draft, name=name, quality=quality)
    return {
        "method": "each case scored by weights that never saw its patient",
        "all": summary(total, run),
        "per patient": folds,
    }


def split_off(cases: Cases, patient: str) -> tuple[Cases, tuple[Case, ...]]:
    """The cases without a patient's, and that patient's."""
    kept = tuple(case for case in cases.train if case.row.patient != patient)
    apart = tuple(case for case in cases.train if case.row.patient == patient)
    return dataclasses.replace(cases, train=kept), apart
