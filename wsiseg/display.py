"""Results as tables that a person can read, and the small look-ups of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

from wsiseg.errors import IncompleteStore, MissingSpacing
from wsiseg.metrics import Scores
from wsiseg.models.card import RESEARCH_USE
from wsiseg.objects import to_path
from wsiseg.plan import plan_of
from wsiseg.reliability import Calibration
from wsiseg.report import DiagnosisReport, Report
from wsiseg.sources import open_source
from wsiseg.sources.volume import VolumeSource
from wsiseg.store import CaseStore
from wsiseg.volume_scores import VolumeScores

if TYPE_CHECKING:
    from wsiseg.reviews.truth import ReviewReport
    from wsiseg.scoring import Evaluation  # loads torch

AXES = ("z", "y", "x")
SCORE_COLUMNS = ("IoU", "Dice", "prec.", "recall", "truth px", "pred. px")
VOLUME_COLUMNS = ("Dice", "IoU", "HD95 mm", "ASD mm", "truth ml", "pred. ml")


def new_console() -> Console:
    """Where results are printed: paths and figures stay whole and plain."""
    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def describe(path: str | Path, *, mpp: float | None) -> dict[str, Any]:
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
    console = new_console()
    names = f" ({', '.join(found['channel_names'])})" if found["channel_names"] else ""
    console.print(
        f"{found['path']}: {found['format']}, axes {found['axes']}, {found['channels']} channel"
        f"{'' if found['channels'] == 1 else 's'}{names}"
    )
    table = Table("level", f"shape ({', '.join(found['axes'])})", f"spacing ({found['unit']})")
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
    console = new_console()
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
        print_calibration(scores.calibration, unit="voxels" if scores.volume_scores else "pixels")
    if scores.review is not None:
        print_review(scores.review)


def print_review(said: ReviewReport) -> None:
    """What a reviewer says, and how far reviewers agree."""
    other = "" if said.of_this_mask else "; the mask was made anew since"
    lines = [f"{said.reviewer}: {said.verdict}, {said.polygons} polygons{other}"]
    lines += [f"{said.reviewer}: {said.comment}"] if said.comment else []
    for pair in said.agreement:
        each = ", ".join(f"{name} {_figure(iou)}" for name, iou in pair.iou.items() if iou is not None)
        lines.append(
            f"{' and '.join(pair.reviewers)} on {pair.pixels} pixels that both marked: "
            f"kappa {_figure(pair.kappa)}; IoU {each or '-'}"
        )
    new_console().print("\n".join(lines))


def print_calibration(found: Calibration, *, unit: str) -> None:
    """How far the confidence can be trusted, with the bins that have pixels."""
    said = [f"{b.confidence:.2f} {b.accuracy:.2f} ({b.pixels})" for b in found.bins if b.pixels]
    new_console().print(
        f"expected calibration error {_figure(found.expected_calibration_error)} over {found.pixels} "
        f"{unit}, without what is background in mask and truth; mean confidence and share that is right: "
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
    console = new_console()
    console.print(table)
    console.print(
        f"mean Dice over classes present, without the background {_figure(scores.mean_dice)}; "
        f"{scores.counted_voxels} voxels counted, {scores.void_voxels} void"
    )


def _how(report: Report) -> str:
    execution, flat = report.execution, len(report.mask_shape) == 2
    if execution["executor"] == "streaming":
        return f"one exact pass in bands of {execution['band']} {'rows' if flat else 'slices'}"
    return f"windows of {execution['core'][0]} + 2 x {execution['halo'][0]} {'pixels' if flat else 'voxels'}"


def print_report(report: Report) -> None:
    """Areas, remarks and where the files are."""
    console = new_console()
    flat = len(report.mask_shape) == 2
    unit = "pixels" if flat else "voxels"
    size = f"{' x '.join(map(str, report.mask_shape))} {unit} ({', '.join(AXES[-len(report.mask_shape) :])})"
    console.print(f"{report.case}: {report.status}, mask of {size}, model {report.model['name']}")
    console.print(f"{_how(report)}: {100 * report.work.repeated_share:.3g} % of the {unit} computed again")
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
            f"{sure.pixels} {unit}"
        )
    if report.diagnosis is not None:
        print_diagnosis(report.diagnosis)
    if report.volume_scores is not None:
        print_volume_scores(report.volume_scores)
    elif report.scores is not None:
        print_scores(report.scores)
    if sure is not None and sure.calibration is not None:
        print_calibration(sure.calibration, unit=unit)
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
    console = new_console()
    console.print(table)
    console.print(f"windows {diagnosis.table}\nmap     {diagnosis.picture}")


def print_demo(slide: Report, crop: Report, volume: Report) -> None:
    """The three parts of the demonstration and where to look."""
    console = new_console()
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


def print_export(out: str, details: Mapping[str, Any]) -> None:
    """What was written where; tables and structures are in the file itself."""
    console = new_console()
    for name, value in details.items():
        if name in ("areas", "structure", "case", "notice"):
            continue
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        console.print(f"{name.replace('_', ' ')}: {shown}")
    console.print(f"written {out}\n{RESEARCH_USE}")


def verify(store: str | Path) -> list[str]:
    """Sentences for what is not as it was written. Raises IncompleteStore."""
    path = to_path(store)
    plan = plan_of(path)
    if plan is None:
        raise IncompleteStore(f"{path} is not a wsiseg result: it has no ledger")
    return CaseStore(path, plan).verify()
