"""Results as tables that a person can read, and the small look-ups of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from wsiseg.errors import IncompleteStore, MissingSpacing
from wsiseg.metrics import Scores
from wsiseg.models.card import RESEARCH_USE, ModelCard
from wsiseg.models.facts import Facts
from wsiseg.models.registry import load_card, zoo_names
from wsiseg.plan import plan_of
from wsiseg.report import DiagnosisReport, Report
from wsiseg.scoring import Evaluation
from wsiseg.sources import open_source
from wsiseg.sources.volume import VolumeSource
from wsiseg.store import CaseStore
from wsiseg.volume_scores import VolumeScores

SCORE_COLUMNS = ("IoU", "Dice", "prec.", "recall", "truth px", "pred. px")
VOLUME_COLUMNS = ("Dice", "IoU", "HD95 mm", "ASD mm", "truth ml", "pred. ml")


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def describe(path: Path, *, mpp: float | None) -> dict[str, Any]:
    """Format, grid and levels of an input. Raises UnreadableSource."""
    problems = []
    try:
        source = open_source(path, mpp)
    except MissingSpacing as err:
        problems.append(str(err))
        source = open_source(path, 1.0)
    stated = not problems
    volume = source if isinstance(source, VolumeSource) else None
    return {
        "path": str(path),
        "format": source.format,
        "axes": source.geometry.axes,
        "shape": list(source.geometry.shape),
        "spacing": list(source.geometry.spacing) if stated else None,
        "unit": source.geometry.unit,
        "channels": source.num_channels,
        "levels": [
            {"shape": list(s.geometry.shape), "spacing": list(s.geometry.spacing) if stated else None}
            for s in source.levels
        ],
        "channel_names": list(volume.channel_names) if volume else None,
        "problems": problems + list(volume.problems if volume else ()),
    }


def print_description(found: dict[str, Any]) -> None:
    """What `describe` found."""
    console = _console()
    names = f" ({', '.join(found['channel_names'])})" if found["channel_names"] else ""
    console.print(
        f"{found['path']}: {found['format']}, axes {found['axes']}, {found['channels']} channel"
        f"{'' if found['channels'] == 1 else 's'}{names}"
    )
    table = Table("level", "shape", f"spacing ({found['unit']})")
    for number, level in enumerate(found["levels"]):
        spacing = " x ".join(f"{s:.4g}" for s in level["spacing"]) if level["spacing"] else "not known"
        table.add_row(str(number), " x ".join(map(str, level["shape"])), spacing)
    console.print(table)
    for problem in found["problems"]:
        console.print(f"problem: {problem}")


def _figure(value: float | None) -> str:
    return "absent" if value is None else f"{value:.4f}"


def class_scores(scores: Scores) -> str:
    """IoU and Dice of every class that is in the truth, in one line."""
    rows = [f"{c.name} IoU {_figure(c.iou)} Dice {_figure(c.dice)}" for c in scores.classes if c.truth_pixels]
    return ", ".join(rows)


def _figures(first: str, *names: str) -> Table:
    """A table of figures, which stay whole: where it is narrow, the names before them are wrapped."""
    columns = (Column(name, no_wrap=True, justify="right") for name in names)
    return Table(Column(first, overflow="fold"), *columns)


def print_scores(scores: Scores) -> None:
    """Per-class table and the overall figures."""
    console = _console()
    table = _figures("class", *SCORE_COLUMNS)
    for c in scores.classes:
        figures = [c.iou, c.dice] if c.absent else [c.iou, c.dice, c.precision, c.recall]
        cells = [_figure(f) if c.absent or f is not None else "-" for f in figures]
        cells += [""] * (4 - len(cells))
        table.add_row(c.name, *cells, str(c.truth_pixels), str(c.predicted_pixels))
    console.print(table)
    console.print(
        f"mean IoU over classes present {_figure(scores.mean_iou)}, "
        f"frequency-weighted {_figure(scores.frequency_weighted_iou)}, "
        f"pixel accuracy {_figure(scores.pixel_accuracy)}; "
        f"{scores.counted_pixels} pixels counted, {scores.void_pixels} void"
    )


def print_evaluation(scores: Evaluation) -> None:
    """One table: that of volumes says what the other does, and more."""
    if scores.volume_scores is None:
        print_scores(scores)
    else:
        print_volume_scores(scores.volume_scores)
    if scores.calibration is not None:
        found = scores.calibration
        said = [f"{b.confidence:.2f} {b.accuracy:.2f} ({b.pixels})" for b in found.bins if b.pixels]
        _console().print(
            f"expected calibration error {_figure(found.expected_calibration_error)} over {found.pixels} "
            "pixels, without what is background in mask and truth; mean confidence and share that is right: "
            f"{', '.join(said)}"
        )


def print_volume_scores(scores: VolumeScores) -> None:
    """Per class and group: overlap, distances, volumes; and the overall figures."""
    table = _figures("region", *VOLUME_COLUMNS)
    for r in (*scores.classes, *scores.groups):
        distances = (r.hausdorff_95_mm, r.average_surface_distance_mm)
        shown = ["-" if d is None else f"{d:.2f}" for d in distances]
        volumes = f"{r.truth_ml:.3f}", f"{r.predicted_ml:.3f}"
        table.add_row(r.name, _figure(r.dice), _figure(r.iou), *shown, *volumes)
    console = _console()
    console.print(table)
    console.print(
        f"mean Dice over classes present, without the background {_figure(scores.mean_dice)}; "
        f"{scores.counted_voxels} voxels counted, {scores.void_voxels} void"
    )


def _how(report: Report) -> str:
    execution = report.execution
    if execution["executor"] == "streaming":
        return f"one exact pass in bands of {execution['band']} rows"
    return f"windows of {execution['core'][0]} + 2 x {execution['halo'][0]} pixels"


def print_report(report: Report) -> None:
    """Areas, remarks and where the files are."""
    console = _console()
    size = " x ".join(map(str, report.mask_shape))
    console.print(f"{report.case}: {report.status}, mask of {size} pixels, model {report.model['name']}")
    console.print(f"{_how(report)}: {100 * report.work.repeated_share:.3g} % of the pixels computed again")
    flat = len(report.mask_shape) == 2
    sure = report.confidence
    names = ["class", "area mm²" if flat else "volume ml", "share", *(["confidence"] if sure else [])]
    table = Table(*names)
    for c in report.classes:
        if c.pixels:
            much = c.area_mm2 if flat else c.volume_ml
            cells = [c.name, f"{much:.4f}", f"{100 * c.share:.2f} %"]
            table.add_row(*cells, *([_rounded(c.mean_confidence)] if sure else []))
    console.print(table)
    if sure is not None:
        console.print(
            f"mean confidence {_rounded(sure.mean)} where the network decided, without the background: "
            f"{sure.pixels} pixels"
        )
    if report.diagnosis is not None:
        print_diagnosis(report.diagnosis)
    if report.volume_scores is not None:
        print_volume_scores(report.volume_scores)
    elif report.scores is not None:
        print_scores(report.scores)
    for remark in report.remarks:
        console.print(f"note: {remark}")
    console.print(f"mask    {report.store}")
    if report.nifti is not None:
        console.print(f"nifti   {report.nifti}")
    if sure is not None and sure.nifti is not None:
        console.print(f"nifti   {sure.nifti}")
    console.print(f"report  {report.report}\npicture {report.overlay}")
    if sure is not None:
        console.print(f"picture {sure.picture}")
    console.print(RESEARCH_USE)


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def print_diagnosis(diagnosis: DiagnosisReport) -> None:
    """Mean and highest probability of every diagnosis."""
    windows = f"{diagnosis.windows} window{'' if diagnosis.windows == 1 else 's'}"
    table = Table(f"of {windows}", "mean probability", "highest")
    for name, mean, highest in zip(diagnosis.names, diagnosis.mean, diagnosis.highest, strict=True):
        table.add_row(name, f"{mean:.3f}", f"{highest:.3f}")
    console = _console()
    console.print(table)
    console.print(f"windows {diagnosis.table}\nmap     {diagnosis.picture}")


def print_demo(slide: Report, crop: Report, volume: Report) -> None:
    """The three parts of the demonstration and where to look."""
    console = _console()
    print_report(slide)
    console.print(
        "The model has learned from breast and this slide's organ is not established: the mask shows how a "
        "result looks, not what the tissue is.\n"
    )
    print_report(crop)
    console.print(
        "The crop shows the eight classes of a demonstration, by weights that never saw its patient.\n"
    )
    print_report(volume)
    console.print(
        "The volume is one of those that its model was not trained on.\n\n"
        f"Look at {slide.overlay}, {crop.overlay} and {volume.overlay}"
    )


def shipped_cards() -> list[dict[str, Any]]:
    """Name, classes and spacing of each shipped model."""
    cards = [load_card(name) for name in zoo_names()]
    return [
        {
            "name": card.name,
            "network": card.network.name,
            "classes": len(card.classes),
            "spacing": card.spacing.model_dump() if card.spacing else None,
            "intended_use": card.intended_use,
        }
        for card in cards
    ]


def print_models(cards: list[dict[str, Any]]) -> None:
    """One row a model."""
    table = Table("name", "network", "classes", "intended use")
    for card in cards:
        table.add_row(card["name"], card["network"], str(card["classes"]), card["intended_use"].strip())
    _console().print(table)


def print_card(card: ModelCard) -> None:
    """A card in words."""
    console = _console()
    windows = card.windows
    arguments = ", ".join(f"{k}={v}" for k, v in card.network.arguments.items())
    console.print(f"{card.name}: {card.network.name}({arguments})\n{card.notice}\n")
    console.print(f"classes      {', '.join(c.name for c in card.classes)}")
    if card.spacing:
        assumed = ", assumed" if card.spacing.assumed else ""
        console.print(f"spacing      {card.spacing.value} {card.spacing.unit}{assumed}")
    if card.temperature != 1:
        console.print(f"temperature  {card.temperature:g}: scores by it become probabilities")
    if windows.receptive_field is None:
        only = f", {windows.size} a side and no other" if windows.size else ""
        console.print(f"receptive    the whole window{only}; no halo is exact, cross-fade {windows.taper}")
    else:
        before, after = windows.receptive_field
        console.print(f"receptive    {before} + 1 + {after} pixels wide, exact halo {windows.exact_halo}")
    console.print(
        f"windows      core {windows.core}, halo {windows.halo}, output stride {windows.output_stride}"
    )
    for row in windows.agreement:
        console.print(f"             {row.core} + {row.halo}: {100 * row.agreement:.2f} % as one window")
    console.print(
        f"training     {card.training_data}\nlicence      {card.licence}\nuse          {card.intended_use}"
    )
    for limit in card.limits:
        console.print(f"limit        {limit}")
    if card.quality:
        console.print("quality", card.quality)
    console.print(f"weights      {card.weights}, sha256 {card.sha256}")


def print_facts(facts: Facts) -> None:
    """What a network costs."""
    window = " x ".join(map(str, facts.window))
    known = facts.gmacs_per_megapixel is not None
    cost = (
        f"{facts.gmacs_per_megapixel:.2f} GMACs, {facts.activation_mb_per_megapixel:.0f} MB of features "
        f"alive at most, per megapixel (windows of {window})"
        if known
        else "not counted: the graph is exported"
    )
    parameters = "not counted" if facts.parameters is None else f"{facts.parameters:,}"
    _console().print(f"parameters   {parameters}\ncost         {cost}")


def verify(store: Path) -> list[str]:
    """Sentences for what is not as it was written. Raises IncompleteStore."""
    plan = plan_of(store)
    if plan is None:
        raise IncompleteStore(f"{store} is not a wsiseg result: it has no ledger")
    return CaseStore(store, plan).verify()
