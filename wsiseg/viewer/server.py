"""The viewer's server: a page, facts and tiles of the cases, on this machine only unless asked otherwise.

    GET /                                        the page
    GET /static/NAME                             its scripts and styles
    GET /api/cases                               every case: name, scores, size
    GET /api/case/NAME                           a case: classes, layers, levels, places of doubt
    GET /api/at/NAME?row=R&column=C              class and confidence at a level-0 pixel
    GET /tiles/LAYER/LEVEL/ROW/COLUMN/NAME       a tile of a slide
    GET /slices/LAYER/AXIS/INDEX/CHANNEL/NAME    the numbers of a slice of a volume, row by row, little-endian
    GET /thumbnail/NAME                          a small picture of a volume
    GET, PUT, DELETE /api/review/NAME/...        reviews of a slide, see `reviews`

NAME is one percent-encoded part of the path. Answers to a page of another site are refused by looking at
the Host header: a name of somebody else's that leads to this machine is none of ours. A change that another
window has overtaken is answered with status 409.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import ValidationError

from wsiseg.bounded import in_short
from wsiseg.config import DRAWN, AnnotationRules
from wsiseg.errors import UsageError, WsisegError
from wsiseg.reviews.corrections import Outdated
from wsiseg.viewer.cases import AnyCase, SlideCase, find
from wsiseg.viewer.loose import LooseCase, LooseMask
from wsiseg.viewer.places import Places
from wsiseg.viewer.reviews import LARGEST_BODY, NotThere, Refused, all_layers, change, check_sender
from wsiseg.viewer.tiles import top_level
from wsiseg.viewer.volumes import VolumeCase

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
KEPT_TILES = 512
"""Encoded tiles in memory, about 100 kB each."""
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".css": "text/css",
    ".txt": "text/plain",
}
POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'"


class ViewerServer(ThreadingHTTPServer):
    """Serves cases until it is shut down; `url` is where. Port 0 takes a free one."""

    daemon_threads = True

    def __init__(
        self, cases: Mapping[str, AnyCase], *, host: str = LOOPBACK, port: int = 0, read_only: bool = False
    ) -> None:
        self.cases, self.read_only = cases, read_only
        self._volume: VolumeCase | None = None
        self.tile: Callable[[str, str, int, int, int], tuple[bytes, str]] = lru_cache(KEPT_TILES)(self._tile)
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves before it has its answer is no error, and nothing to print."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Of the page."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"

    def case(self, name: str) -> AnyCase:
        """A case by name. Raises NotThere."""
        try:
            return self.cases[name]
        except KeyError:
            raise NotThere from None

    def slide(self, name: str) -> SlideCase:
        """A slide by name. Raises NotThere."""
        found = self.case(name)
        if isinstance(found, VolumeCase):
            raise NotThere
        return found

    def volume(self, name: str) -> VolumeCase:
        """A volume by name; the one before lets go of what it holds in memory. Raises NotThere."""
        found = self.case(name)
        if not isinstance(found, VolumeCase):
            raise NotThere
        before, self._volume = self._volume, found
        if before is not None and before is not found:
            before.forget()
        return found

    def slice(self, name: str, layer: str, axis: int, index: int, channel: int) -> bytes:
        """Numbers of a slice of a volume. Raises NotThere, WsisegError."""
        layers = self.volume(name).layers
        if layer not in layers:
            raise NotThere
        try:
            return layers[layer].encoded(axis, index, channel=channel)
        except IndexError:
            raise NotThere from None

    def _tile(self, name: str, layer: str, level: int, row: int, column: int) -> tuple[bytes, str]:
        found = self.slide(name)
        if layer not in found.layers or not 0 <= level <= top_level(found.shape) or min(row, column) < 0:
            raise NotThere
        chosen = found.layers[layer]
        return chosen.tile(level, row, column), chosen.media_type


def open_viewer(
    path: Path,
    *,
    images: Path | None = None,
    truth: Path | None = None,
    rules: AnnotationRules = DRAWN,
    host: str = LOOPBACK,
    port: int = 0,
    read_only: bool = False,
    mask: LooseMask | None = None,
) -> ViewerServer:
    """A server of what `path` holds, which does not serve yet; `read_only` takes no reviews.

    With `mask` the path is a slide. Raises WsisegError.
    """
    slide = None if mask is None else path
    for place in (images, truth, slide, mask.path if mask else None):
        if place is not None and not place.exists():
            raise UsageError(f"no such file or folder: {place}")
    places = Places(images, truth, rules)
    if mask is None:
        cases = find(path, places=places)
    else:
        loose = LooseCase(path, mask, places=places)
        cases = {loose.name: loose}
    try:
        return ViewerServer(cases, host=host, port=port, read_only=read_only)
    except OSError as err:
        raise UsageError(f"port {port} of {host} cannot be used: {err.strerror}; try --port 0") from None


class _Handler(BaseHTTPRequestHandler):
    server: ViewerServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    """Or each body waits 40 ms for the page to acknowledge the header before it."""

    def do_GET(self) -> None:
        self._respond(self._answer)

    def do_PUT(self) -> None:
        self._respond(self._changed)

    def do_DELETE(self) -> None:
        self._respond(self._changed)

    def _respond(self, answer: Callable[[], tuple[bytes, str, bool]]) -> None:
        try:
            if not self._from_here():
                raise Refused("this page is served to the machine it runs on")
            body, media_type, keep = answer()
            self._send(HTTPStatus.OK, body, media_type, keep=keep)
        except ValidationError as err:
            self._say(HTTPStatus.BAD_REQUEST, in_short(err))
        except (NotThere, KeyError, ValueError):
            self._say(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        except Refused as err:
            self._say(HTTPStatus.FORBIDDEN, str(err))
        except Outdated as err:
            self._say(HTTPStatus.CONFLICT, str(err))
        except WsisegError as err:
            self._say(HTTPStatus.UNPROCESSABLE_ENTITY, str(err))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the page went on before the tile was there

    def _say(self, status: HTTPStatus, text: str) -> None:
        self.close_connection = True  # what a refused request still has to say is not read
        self._send(status, text.encode(), "text/plain; charset=utf-8")

    def _from_here(self) -> bool:
        host, _ = self.server.server_address[:2]
        return host != LOOPBACK or urlsplit(f"//{self.headers['Host']}").hostname in (LOOPBACK, "localhost")

    def _answer(self) -> tuple[bytes, str, bool]:
        """Body, media type, and whether the browser may keep it."""
        address = urlsplit(self.path)
        match address.path.lstrip("/").split("/"):
            case [""]:
                return _static("index.html")
            case ["static", name]:
                return _static(name)
            case ["api", *parts]:
                return _json(self._facts(parts, parse_qs(address.query)))
            case ["tiles" | "slices" | "thumbnail", *_] as parts:
                return self._pixels(parts)
        raise NotThere

    def _facts(self, parts: list[str], query: dict[str, list[str]]) -> Any:
        match parts:
            case ["cases"]:
                return [one.summary() for one in self.server.cases.values()]
            case ["case", name]:
                return self.server.case(unquote(name)).facts() | {"read_only": self.server.read_only}
            case ["at", name]:
                row, column = (int(query[key][0]) for key in ("row", "column"))
                return self.server.slide(unquote(name)).at(row, column)
            case ["review", name]:
                return all_layers(self.server.slide(unquote(name)).corrections)
        raise NotThere

    def _changed(self) -> tuple[bytes, str, bool]:
        """Carry out a change of a review."""
        address = urlsplit(self.path)
        match address.path.lstrip("/").split("/"):
            case ["api", "review", name, *parts]:
                found = self.server.slide(unquote(name)).corrections
            case _:
                raise NotThere
        sends = self.command != "DELETE"
        kind = self.headers.get_content_type() if sends else None
        check_sender(self.headers, content_type=kind, read_only=self.server.read_only)
        length = int(self.headers.get("Content-Length", "")) if sends else 0
        if not 0 <= length <= LARGEST_BODY:
            raise Refused(f"a change has at most {LARGEST_BODY} bytes")
        query = parse_qs(address.query)
        layer = change(found, self.command, parts, query=query, body=self.rfile.read(length))
        return _json(layer.geojson)

    def _pixels(self, parts: list[str]) -> tuple[bytes, str, bool]:
        match parts:
            case ["tiles", layer, level, row, column, name]:
                tile = self.server.tile(unquote(name), layer, int(level), int(row), int(column))
                return *tile, True
            case ["slices", layer, axis, index, channel, name]:
                numbers = self.server.slice(unquote(name), layer, int(axis), int(index), int(channel))
                return numbers, "application/octet-stream", True
            case ["thumbnail", name]:
                return self.server.volume(unquote(name)).thumbnail, "image/png", True
        raise NotThere

    def _send(self, status: HTTPStatus, body: bytes, media_type: str, *, keep: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "private, max-age=3600" if keep else "no-store")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def _static(name: str) -> tuple[bytes, str, bool]:
    file = files("wsiseg.viewer") / "static" / name
    ending = name[name.rfind(".") :]
    if "/" in name or name.startswith(".") or ending not in TYPES or not file.is_file():
        raise NotThere
    return file.read_bytes(), TYPES[ending], False


def _json(value: Any) -> tuple[bytes, str, bool]:
    return json.dumps(value, ensure_ascii=False).encode(), "application/json", False
