"""`wsiseg models`: cards of the models."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wsiseg.bars import show_progress
from wsiseg.cli.cards import print_card, print_compression, print_facts, print_models, shipped_cards
from wsiseg.cli.common import JsonFlag, json_object, print_json


class Split(StrEnum):
    """Cases of a manifest."""

    train = "train"
    validation = "validation"
    test = "test"


models_app = typer.Typer(
    no_args_is_help=True, help="Cards of the models: list, show, import, ensemble, calibrate."
)


@models_app.command("list")
def models_list(json: JsonFlag = False) -> None:
    """Names of the shipped models."""
    cards = shipped_cards()
    print_json(cards) if json else print_models(cards)


@models_app.command("show")
def models_show(
    name: str,
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Run code that the card names.")] = False,
    json: JsonFlag = False,
) -> None:
    """The card of a model, its parameters, what a megapixel costs, its receptive field."""
    from wsiseg.models.facts import card_facts
    from wsiseg.models.zoo import load_card

    card = load_card(name)
    facts = card_facts(card, name, trust_code=trust_code)
    if json:
        print_json({**card.model_dump(mode="json"), "facts": dataclasses.asdict(facts)})
    else:
        print_card(card)
        print_facts(facts)


@models_app.command("ensemble")
def models_ensemble(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Shipped models or cards.")],
    out: Annotated[Path, typer.Option(help="Path of the card (.json); the weights go beside it.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a card that is there.")] = False,
    json: JsonFlag = False,
) -> None:
    """Make one model of several: the class of the highest mean probability."""
    from wsiseg.models.ensemble import combine

    card = combine(models, out, overwrite=overwrite)
    print_json(card.model_dump(mode="json")) if json else print_card(card)


@models_app.command("import")
def models_import(
    checkpoint: Path,
    out: Annotated[Path, typer.Option(help="Path of the card (.json); the weights go beside it.")],
    network: Annotated[
        str | None, typer.Option(help="What it belongs to (monai:UNet, ...); default: told by its keys.")
    ] = None,
    arguments: Annotated[str | None, typer.Option(metavar="JSON", help="Arguments of the network.")] = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run code in a .pt2 file or a named module.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a card that is there.")] = False,
    json: JsonFlag = False,
) -> None:
    """Turn a checkpoint, or an exported graph (.onnx, .pt2), into weights and a card.

    Nothing in a checkpoint is executed.
    """
    from wsiseg.models.importing import import_checkpoint

    card = import_checkpoint(
        checkpoint,
        out,
        network=network,
        arguments=json_object(arguments),
        trust_code=trust_code,
        overwrite=overwrite,
    )
    print_json(card.model_dump(mode="json")) if json else print_card(card)


@models_app.command("calibrate")
def models_calibrate(
    model: Annotated[str, typer.Argument(help="Name of a shipped model, or path of a card.")],
    manifest: Annotated[Path, typer.Argument(help="CSV of annotated cases that it was not trained on.")],
    out: Annotated[Path, typer.Option(help="Path of the new card (.json); the weights go beside it.")],
    root: Annotated[
        Path | None, typer.Option(help="Folder of the manifest's paths; default: its own.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Cases to take.")] = Split.validation,
    allow_upsampling: Annotated[
        bool, typer.Option("--allow-upsampling", help="Accept cases coarser than the model.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Run code that the card names.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a card that is there.")] = False,
    json: JsonFlag = False,
) -> None:
    """Fit how sure a model says it is to annotated cases; masks stay as they are."""
    from wsiseg.training.calibration import calibrate_model
    from wsiseg.training.sections import Data

    card = calibrate_model(
        model,
        out,
        Data(manifest=manifest, root=root, allow_upsampling=allow_upsampling),
        split=split.value,
        device=device,
        trust_code=trust_code,
        overwrite=overwrite,
        progress=show_progress,
    )
    print_json(card.model_dump(mode="json")) if json else print_card(card)


def compress(
    model: Annotated[str, typer.Argument(help="Name of a shipped model, or path of a card.")],
    manifest: Annotated[Path, typer.Argument(help="CSV of annotated cases with splits.")],
    out: Annotated[Path, typer.Option(help="Path of the new card (.json); the weights go beside it.")],
    root: Annotated[
        Path | None, typer.Option(help="Folder of the manifest's paths; default: its own.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Cases to score on.")] = Split.validation,
    allow_upsampling: Annotated[
        bool, typer.Option("--allow-upsampling", help="Accept cases coarser than the model.")
    ] = False,
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Run code that the card names.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a card that is there.")] = False,
    json: JsonFlag = False,
) -> None:
    """Make a model of 8-bit numbers, and say what it loses and gains on annotated cases."""
    from wsiseg.training.compressing import compress as compress_model
    from wsiseg.training.sections import Data

    card = compress_model(
        model,
        out,
        Data(manifest=manifest, root=root, allow_upsampling=allow_upsampling),
        split=split.value,
        trust_code=trust_code,
        overwrite=overwrite,
        progress=show_progress,
    )
    print_json(card.model_dump(mode="json")) if json else print_compression(card)
