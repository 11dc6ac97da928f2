"""`wsiseg export`: a finished mask as a file for another program."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from wsiseg import display
from wsiseg.bars import show_progress
from wsiseg.cli.common import FrameName, JsonFlag, print_json
from wsiseg.objects import to_path


class ExportKind(StrEnum):
    """What is written."""

    geojson = "geojson"
    ome_tiff = "ome-tiff"
    nifti = "nifti"
    png = "png"
    csv = "csv"
    dicom_seg = "dicom-seg"
    training_manifest = "training-manifest"


def export(
    store: Annotated[str, typer.Argument(help="A result (.ome.zarr).")],
    to: Annotated[ExportKind, typer.Option(help="What to write.")],
    out: Annotated[str, typer.Option(help="Path of the file.")],
    tolerance: Annotated[
        float | None, typer.Option(metavar="UM", help="geojson: simplify outlines by up to so many µm.")
    ] = None,
    min_area: Annotated[
        float | None,
        typer.Option(metavar="UM2", help="geojson: drop smaller pieces; csv --structure: list none."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="geojson: cut no polygon; all are kept in memory.")
    ] = False,
    frame: Annotated[
        FrameName | None, typer.Option(help="geojson: (0, 0) is level 0's, or that of the slide's bounds.")
    ] = None,
    background: Annotated[bool, typer.Option("--background", help="geojson: write background too.")] = False,
    input: Annotated[
        str | None,
        typer.Option(
            help="nifti, dicom-seg, training-manifest, --frame bounds: what the mask was made from."
        ),
    ] = None,
    colors: Annotated[bool, typer.Option("--colors", help="ome-tiff: colours, not class indices.")] = False,
    mpp: Annotated[
        float | None, typer.Option(help="png, csv --structure: pixel size in µm to work at.")
    ] = None,
    regions: Annotated[str | None, typer.Option(help="csv: GeoJSON, also the areas in each polygon.")] = None,
    structure: Annotated[
        bool, typer.Option("--structure", help="csv: boundaries, pieces, layers round epithelium.")
    ] = False,
    around: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS", help="csv --structure: layers round these classes; repeatable."),
    ] = None,
    reviewer: Annotated[
        str | None, typer.Option(help="training-manifest: initials of whose polygons are the truth.")
    ] = None,
    patient: Annotated[
        str | None, typer.Option(help="training-manifest: whose slide it is; splits divide no patient.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="training-manifest: train (if none is named), validation or test.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="training-manifest: of the slide.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    json: JsonFlag = False,
) -> None:
    """Write a finished mask as a file for another program."""
    from wsiseg.export.command import Frame, export_store

    done = export_store(
        store,
        to=to.value,
        out=out,
        overwrite=overwrite,
        progress=show_progress,
        tolerance=tolerance,
        min_area=min_area,
        merge=merge,
        frame=frame and Frame(frame.value),
        background=background,
        input=to_path(input) if input else None,
        colors=colors,
        mpp=mpp,
        regions=to_path(regions) if regions else None,
        structure=structure,
        around=tuple(around) if around else None,
        reviewer=reviewer,
        patient=patient,
        split=split,
        licence=licence,
    )
    print_json(done.model_dump(mode="json")) if json else display.print_export(done.out, done.details)
