"""`wsiseg view`: results in the browser."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from wsiseg.cli.common import (
    AnnotationFrame,
    AnnotationOverlap,
    AnnotationUnits,
    ClassNames,
    JsonFlag,
    UnannotatedArea,
    given,
    print_json,
)
from wsiseg.config import make_rules


def view(
    path: Annotated[Path, typer.Argument(help="A result (.ome.zarr), a folder of results, or a slide.")],
    images: Annotated[
        Path | None, typer.Option(help="Slides, or a folder of them, of results without an image.")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="Annotations, or a folder of them, to compare with.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="PATH is a slide: class indices or drawn marks to show on it.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="--mask: whose classes it has.")] = None,
    mpp: Annotated[
        float | None, typer.Option(help="--mask: µm per pixel of a slide that does not say it.")
    ] = None,
    class_names: ClassNames = None,
    annotation_overlap: AnnotationOverlap = None,
    unannotated: UnannotatedArea = None,
    annotation_units: AnnotationUnits = None,
    annotation_frame: AnnotationFrame = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    host: Annotated[str, typer.Option(help="Address to serve at; others than this machine can reach it.")] = (
        "127.0.0.1"
    ),
    read_only: Annotated[bool, typer.Option("--read-only", help="Store no reviews.")] = False,
    json: JsonFlag = False,
) -> None:
    """Look at results in the browser and review them, until Ctrl+C."""
    from wsiseg.viewer.loose import LooseMask
    from wsiseg.viewer.server import open_viewer

    rules = make_rules(
        given(
            class_names=class_names,
            annotation_overlap=annotation_overlap,
            unannotated=unannotated,
            annotation_units=annotation_units,
            annotation_frame=annotation_frame,
        )
    )
    loose = None if mask is None else LooseMask(mask, model, mpp)
    with open_viewer(
        path, images=images, truth=truth, rules=rules, host=host, port=port, read_only=read_only, mask=loose
    ) as server:
        found = {"url": server.url, "cases": list(server.cases)}
        print_json(found) if json else typer.echo(f"{len(server.cases)} cases at {server.url} (Ctrl+C ends)")
        with suppress(KeyboardInterrupt):  # the usual end
            server.serve_forever()
