"""A batch as one page for the browser, which needs no server and no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from wsiseg.batch.summary import Row, Summary
from wsiseg.files import write_whole, writing

PAGE = "index.html"


def write_page(summary: Summary, out: Path, *, title: str) -> None:
    """Write the page of a batch beside its results. Raises StoreError."""
    with writing(out):
        write_whole(out / PAGE, as_page(summary, title=title).encode())


def as_page(summary: Summary, *, title: str) -> str:
    """The page. Names of files come from anywhere, so that every value is escaped."""
    pages = Environment(
        loader=PackageLoader("wsiseg.batch", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    legends = {row.model: row.colors for row in summary.cases if row.colors}
    template = pages.get_template("batch.html")
    return template.render(
        title=title, summary=summary, rows=[_shown(row) for row in summary.cases], legends=legends
    )


def _shown(row: Row) -> dict[str, Any]:
    """What the page says of a case."""
    shares = sorted(((share, name) for name, share in row.shares.items() if share), reverse=True)
    return {
        "row": row,
        "overlay": quote(row.overlay),
        "report": quote(row.report),
        "size": " x ".join(map(str, row.mask_shape)),
        "bar": [(name, 100 * share, row.colors.get(name, "#999999")) for share, name in shares],
        "score": row.mean_dice if row.mean_dice is not None else row.mean_iou,
        "score_name": "Dice" if row.mean_dice is not None else "IoU",
    }
