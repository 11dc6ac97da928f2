"""Cards of models as a person reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table

from wsiseg.display import new_console
from wsiseg.models.card import ModelCard, WindowSpec
from wsiseg.models.zoo import load_card, zoo_names

if TYPE_CHECKING:
    from wsiseg.models.facts import Facts  # loads torch


SECONDS = "CPU seconds a megapixel"


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
    new_console().print(table)


def print_card(card: ModelCard) -> None:
    """A card in words: what the model is for and how good it is, then how it is run."""
    console = new_console()
    arguments = ", ".join(f"{k}={v}" for k, v in card.network.arguments.items())
    console.print(f"{card.name}: {card.network.name}({arguments})\n{card.notice}\n")
    console.print(f"use          {card.intended_use.strip()}")
    for limit in card.limits:
        console.print(f"limit        {limit}")
    console.print(f"classes      {', '.join(c.name for c in card.classes)}")
    if card.spacing:
        assumed = ", assumed" if card.spacing.assumed else ""
        console.print(f"spacing      {card.spacing.value} {card.spacing.unit}{assumed}")
    console.print(f"training     {card.training_data}\nlicence      {card.licence}")
    for line in _lines(card.quality):
        console.print(f"quality      {line}")
    if card.temperature != 1:
        console.print(f"temperature  {card.temperature:g}: scores by it become probabilities")
    _print_windows(card.windows)
    console.print(f"weights      {card.weights}, sha256 {card.sha256}")


def _lines(found: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Figures of a card, one a line, what belongs together indented."""
    for name, value in found.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ")
        elif value not in ("", None, [], ()):
            shown = " x ".join(map(str, value)) if isinstance(value, list | tuple) else value
            yield f"{indent}{name}: {shown}"


def _print_windows(windows: WindowSpec) -> None:
    """What a network sees, and how images are cut for it."""
    console = new_console()
    if windows.receptive_field is None:
        only = f", {windows.size} a side and no other" if windows.size else ""
        fade = "" if windows.sides else f", cross-fade {windows.taper}"
        console.print(f"receptive    the whole window{only}; no halo is exact{fade}")
    else:
        before, after = windows.receptive_field
        console.print(f"receptive    {before} + 1 + {after} pixels wide, exact halo {windows.exact_halo}")
    if windows.sides is not None:
        sides = " x ".join(map(str, windows.sides))
        console.print(f"windows      {sides} like the patches it learned from, overlapping by a half")
    else:
        console.print(
            f"windows      core {windows.core}, halo {windows.halo}, output stride {windows.output_stride}"
        )
    for row in windows.agreement:
        console.print(f"             {row.core} + {row.halo}: {100 * row.agreement:.2f} % as one window")


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
    new_console().print(f"parameters   {parameters}\ncost         {cost}")


def print_compression(card: ModelCard) -> None:
    """What a compressed model loses and gains."""
    figures = card.quality["compression"]
    before, after = figures["before"], figures["after"]
    cases = f"{figures['cases']} {figures['split']} case" + "s" * (figures["cases"] != 1)
    table = Table("", figures["of"], card.name)
    table.add_row(f"mean IoU ({cases})", f"{before['mean IoU']:.4f}", f"{after['mean IoU']:.4f}")
    for name, value in before["IoU"].items():
        table.add_row(f"  {name}", f"{value:.4f}", f"{after['IoU'][name]:.4f}")
    seconds = [f[SECONDS] for f in (before, after)]
    table.add_row(SECONDS, *(f"{value:.3f}" for value in seconds))
    table.add_row("bytes", f"{before['bytes']:,}", f"{after['bytes']:,}")
    console = new_console()
    console.print(table)
    if seconds[1] >= seconds[0]:
        console.print(f"{card.name} is not faster than {figures['of']} on this machine")
