"""The command line: each verb parses, calls one public function, and prints what it gave.

Exit status: 0 all done; 1 some case failed, the others are finished and listed; 2 the command itself
was wrong (an option, a model, a run file). Every error is one sentence on stderr.
"""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import wsiseg
from wsiseg import display
from wsiseg.bars import TrainingBars, show_progress
from wsiseg.cli.common import (
    COMMAND_ERRORS,
    AnnotationFrame,
    AnnotationOverlap,
    AnnotationUnits,
    ClassNames,
    JsonFlag,
    UnannotatedArea,
    given,
    print_json,
)
from wsiseg.cli.exporting import export
from wsiseg.cli.models import compress, models_app
from wsiseg.cli.segmenting import is_batch, segment_batch, segment_each
from wsiseg.cli.viewing import view
from wsiseg.errors import UsageError, WsisegError

INTERRUPTED = 130
app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
app.add_typer(models_app, name="models")
app.command()(export)
app.command()(view)

# The base of all that typer says of a command line; typer may bring its own click, so click's is another.
_ParserError: type[Exception] = typer.BadParameter.__bases__[0]


class ExecutorName(StrEnum):
    """How rows are computed."""

    auto = "auto"
    streaming = "streaming"
    windowed = "windowed"


class BackendName(StrEnum):
    """What computes the network."""

    auto = "auto"
    torch = "torch"
    openvino = "openvino"
    onnxruntime = "onnxruntime"


class PrecisionName(StrEnum):
    """Of the network's numbers."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class StoredImage(StrEnum):
    """What image is stored beside the mask."""

    full = "full"
    model = "model"
    none = "none"


@app.command()
def info(input: str, mpp: float | None = None, json: JsonFlag = False) -> None:
    """What the file is: format, size, spacing, levels, problems."""
    found = display.describe(input, mpp=mpp)
    print_json(found) if json else display.print_description(found)


@app.command()
def segment(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Slides, volumes, folders, patterns, manifests.")
    ],
    out: Annotated[str, typer.Option(help="Folder for masks, reports and pictures.")],
    model: Annotated[str | None, typer.Option(help="Name of a shipped model, or path of a card.")] = None,
    annotations: Annotated[
        str | None, typer.Option(help="Truth to score against; of many inputs a folder, paired by name.")
    ] = None,
    class_names: ClassNames = None,
    annotation_overlap: AnnotationOverlap = None,
    unannotated: UnannotatedArea = None,
    annotation_units: AnnotationUnits = None,
    annotation_frame: AnnotationFrame = None,
    region: Annotated[str | None, typer.Option(help="GeoJSON: segment inside its polygons only.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    mpp: Annotated[float | None, typer.Option(help="Level-0 pixel size in µm; overrides the file's.")] = None,
    executor: Annotated[ExecutorName | None, typer.Option(help="One exact pass, or windows.")] = None,
    backend: Annotated[
        BackendName | None, typer.Option(help="What computes the network; in windows on a CPU.")
    ] = None,
    precision: Annotated[
        PrecisionName | None, typer.Option(help="Of the network's numbers; float16 on GPUs only.")
    ] = None,
    memory: Annotated[int | None, typer.Option(metavar="MB", help="What streaming may take.")] = None,
    taper: Annotated[
        int | None, typer.Option(help="Half-width of the cross-fade over core borders, pixels.")
    ] = None,
    exact: Annotated[
        bool | None, typer.Option("--exact", help="Halo as large as the receptive field.")
    ] = None,
    image: Annotated[StoredImage | None, typer.Option(help="Stored image: level 0, model's, none.")] = None,
    confidence: Annotated[bool | None, typer.Option("--confidence", help="Store how sure it is.")] = None,
    structure: Annotated[
        bool | None, typer.Option("--structure", help="Also count how a slide's tissue is built.")
    ] = None,
    no_tissue_filter: Annotated[bool, typer.Option("--no-tissue-filter", help="Segment glass too.")] = False,
    allow_upsampling: Annotated[
        bool | None, typer.Option("--allow-upsampling", help="Accept a slide coarser than the model.")
    ] = None,
    trust_code: Annotated[
        bool | None, typer.Option("--trust-code", help="Run code that the model's card names.")
    ] = None,
    keep_identifiers: Annotated[
        bool | None,
        typer.Option("--keep-identifiers", help="Patient and specimen into the report."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML or YAML with further settings.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cases at once, each in a process.")] = 1,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="Every n-th case, for one of n machines.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start again where a result is there.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Write a full-resolution mask, a report and a picture for each slide or volume.

    INPUT is a slide or volume, a folder of them, a pattern in quotes, or a manifest (.csv).
    """
    options = {
        "device": device,
        "mpp": mpp,
        "executor": executor and executor.value,
        "backend": backend and backend.value,
        "precision": precision and precision.value,
        "memory": memory,
        "taper": taper,
        "exact": exact,
        "image": image and image.value,
        "confidence": confidence,
        "structure": structure,
        "tissue_filter": False if no_tissue_filter else None,
        "allow_upsampling": allow_upsampling,
        "trust_code": trust_code,
        "keep_identifiers": keep_identifiers,
    } | given(
        class_names=class_names,
        annotation_overlap=annotation_overlap,
        unannotated=unannotated,
        annotation_units=annotation_units,
        annotation_frame=annotation_frame,
    )
    shared: dict[str, Any] = {"annotations": annotations, "overwrite": overwrite, "config": config}
    if jobs > 1 or part is not None or is_batch(inputs):
        if region is not None:
            raise UsageError("--region belongs to one slide; segment slides with a region one by one")
        failed = segment_batch(inputs, out, model, jobs=jobs, part=part, json=json, **shared, **options)
    else:
        failed = segment_each(inputs, out, model, region=region, json=json, **shared, **options)
    if failed:
        raise typer.Exit(1)


@app.command()
def evaluate(
    prediction: Annotated[str, typer.Option(help="A result (.ome.zarr), or class indices.")],
    truth: Annotated[
        str | None,
        typer.Option(help="Class indices (image, volume, OME-Zarr labels), or a file of drawn marks."),
    ] = None,
    corrected: Annotated[
        str | None, typer.Option(help="Initials of a reviewer whose polygons count instead, where they lie.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Also write the scores there, as JSON.")] = None,
    model: Annotated[str | None, typer.Option(help="Whose classes a plain image has.")] = None,
    input: Annotated[
        str | None, typer.Option(help="The slide that was drawn on: NDPA, --annotation-frame bounds.")
    ] = None,
    class_names: ClassNames = None,
    annotation_overlap: AnnotationOverlap = None,
    unannotated: UnannotatedArea = None,
    annotation_units: AnnotationUnits = None,
    annotation_frame: AnnotationFrame = None,
    json: JsonFlag = False,
) -> None:
    """Per-class IoU, Dice, precision and recall of a mask against truth."""
    rules = given(
        class_names=class_names,
        annotation_overlap=annotation_overlap,
        unannotated=unannotated,
        annotation_units=annotation_units,
        annotation_frame=annotation_frame,
    )
    scores = wsiseg.evaluate(
        prediction, truth, corrected=corrected, out=out, model=model, input=input, **rules
    )
    print_json(scores.model_dump(mode="json")) if json else display.print_evaluation(scores)


@app.command()
def verify(store: str, json: JsonFlag = False) -> None:
    """Recompute the hashes of what was written."""
    problems = display.verify(store)
    if json:
        print_json({"store": str(store), "problems": problems})
    else:
        for problem in problems:
            typer.echo(problem, err=True)
        if not problems:
            typer.echo(f"{store}: everything is as it was written")
    if problems:
        raise typer.Exit(1)


@app.command()
def train(run: Path, json: JsonFlag = False) -> None:
    """Train what a run file describes; write weights and card. Safe to interrupt and to call again."""
    from wsiseg.training.loop import train as train_run
    from wsiseg.training.run import read_run

    card = train_run(read_run(run), watch=TrainingBars())
    print_json({"card": str(card)}) if json else typer.echo(f"card: {card}")


app.command()(compress)


@app.command()
def demo(out: Path = Path("demo"), json: JsonFlag = False) -> None:
    """The whole job on the shipped samples: a slide, then an annotated crop and a volume with scores."""
    from wsiseg.demo import run_demo

    cases = run_demo(out, progress=show_progress)
    if json:
        print_json({"cases": [c.model_dump(mode="json") for c in cases], "failures": []})
    else:
        display.print_demo(*cases)


def main() -> None:
    """Entry point: errors become one sentence and an exit status."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("wsiseg").setLevel(logging.INFO)
    try:
        status = app(prog_name="wsiseg", standalone_mode=False)
    except _ParserError as err:
        typer.echo(_refusal(err), err=True)
        sys.exit(2)
    except WsisegError as err:
        typer.echo(f"error: {err}", err=True)
        sys.exit(2 if isinstance(err, COMMAND_ERRORS) else 1)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    if status == INTERRUPTED:
        typer.echo("interrupted: what is written stays; the same command continues", err=True)
    sys.exit(status or 0)


def _refusal(err: Any) -> str:
    """What is wrong with a command line, in one sentence; of a command that was given nothing its help."""
    message = " ".join(err.format_message().split()).removesuffix(".")
    help, command = (err.ctx.get_help(), err.ctx.command_path) if err.ctx else ("", "wsiseg")
    return help if err.message == help else f"error: {message}; see {command} --help"
