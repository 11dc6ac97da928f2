"""Reviews over HTTP: what a page asks of the layers of a case, and what it may change.

    GET    /api/review/NAME                      the layers of all reviewers, by initials
    PUT    /api/review/NAME/INITIALS             a verdict: {"verdict", "comment", "version"}
    PUT    /api/review/NAME/INITIALS/ID          a polygon: {"polygons", "index", "version"}
    DELETE /api/review/NAME/INITIALS/ID?version= a polygon

Every change is answered with the reviewer's layer as it is then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from email.message import Message
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from wsiseg.errors import AnnotationError
from wsiseg.reviews.corrections import Corrections, Layer, Review

UNREADABLE = "cannot be read"
LARGEST_BODY = 4 << 20
"""Bytes of a change: a polygon of the most corners has about half of them."""


class NotThere(Exception):
    """A path that names nothing."""


class Refused(Exception):
    """A request that this server does not take from whoever sends it."""


class ReviewBody(Review):
    """What a page sends of a verdict."""

    version: int = Field(ge=0)


class PolygonBody(BaseModel):
    """What a page sends of a polygon."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    polygons: list[list[list[tuple[float, float]]]]
    index: int
    version: int = Field(ge=0)


def all_layers(corrections: Corrections) -> dict[str, Any]:
    """The layers of all reviewers by initials, as GeoJSON; of one that cannot be read, an "error"."""
    found: dict[str, Any] = {}
    for initials in corrections.reviewers():
        try:
            found[initials] = corrections.layer(initials).geojson
        except AnnotationError as err:
            found[initials] = {"error": str(err)}
    return found


def verdicts(corrections: Corrections) -> dict[str, str]:
    """Verdicts by initials."""
    layers = all_layers(corrections)
    return {
        initials: str(layer["wsiseg"]["verdict"]) if "wsiseg" in layer else UNREADABLE
        for initials, layer in layers.items()
    }


def change(
    corrections: Corrections,
    method: str,
    parts: Sequence[str],
    *,
    query: Mapping[str, list[str]],
    body: bytes,
) -> Layer:
    """Carry out what is asked of INITIALS or INITIALS/ID.

    Raises NotThere, Outdated, WsisegError, and ValueError for a body or a query that is none.
    """
    match method, parts:
        case "PUT", [initials]:
            said = ReviewBody.model_validate_json(body)
            review = Review(verdict=said.verdict, comment=said.comment)
            return corrections.say(initials, review, version=said.version)
        case "PUT", [initials, name]:
            drawn = PolygonBody.model_validate_json(body)
            return corrections.draw(initials, name, drawn.polygons, index=drawn.index, version=drawn.version)
        case "DELETE", [initials, name]:
            return corrections.remove(initials, name, version=int(query["version"][0]))
    raise NotThere


def check_sender(headers: Message, *, content_type: str | None, read_only: bool) -> None:
    """Raises Refused for a change that a page of another site may have sent, or where none is taken."""
    if read_only:
        raise Refused("this viewer was started with --read-only: it stores no reviews")
    own = f"http://{headers['Host']}"
    if headers.get("Origin", own) != own:
        raise Refused("a page of another site cannot change a review")
    if content_type is not None and content_type != "application/json":
        # A page of another site can send nothing of this type unless it is asked whether it may.
        raise Refused("a change is sent as application/json")
