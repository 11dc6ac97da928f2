"""The viewer's server: a page, facts and tiles of the cases, on this machine only unless asked otherwise.

    GET /                                        the page
    GET /static/NAME                             its scripts and styles
    GET /api/cases                               every case: name, scores, size
    GET /api/case/NAME                           a case: classes, layers, levels, places of doubt
    GET /api/at/NAME?row=R&column=C              class and confidence at a level-0 pixel
    GET /tiles/LAYER/LEVEL/ROW/COLUMN/NAME       a tile

NAME is one percent-encoded part of the path. Answers to a page of another site are refused by looking at the
Host header: a name of somebody else's that leads to this machine is none of ours.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from wsiseg.config import DRAWN, AnnotationRules
from wsiseg.errors import UsageError, WsisegError
from wsiseg.viewer.cases import Case, Places, find

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


class NotThere(Exception):
    """A path that names nothing."""


class ViewerServer(ThreadingHTTPServer):
    """Serves cases until it is shut down; `url` is where. Port 0 takes a free one."""

    daemon_threads = True

    def __init__(self, cases: Mapping[str, Case], *, host: str = LOOPBACK, port: int = 0) -> None:
        self.cases = cases
        self.tile: Callable[[str, str, int, int, int], tuple[bytes, str]] = lru_cache(KEPT_TILES)(self._tile)
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Of the page."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"

    def case(self, name: str) -> Case:
        """A case by name. Raises NotThere."""
        try:
            return self.cases[name]
        except KeyError:
            raise NotThere from None

    def _tile(self, name: str, layer: str, level: int, row: int, column: int) -> tuple[bytes, str]:
        found = self.case(name)
        if layer not in found.layers or not 0 <= level <= found.facts()["levels"] or min(row, column) < 0:
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
) -> ViewerServer:
    """A server of what `path` holds, which does not serve yet. Raises UsageError, IncompleteStore."""
    for place in (images, truth):
        if place is not None and not place.exists():
            raise UsageError(f"no such file or folder: {place}")
    cases = find(path, places=Places(images, truth, rules))
    try:
        return ViewerServer(cases, host=host, port=port)
    except OSError as err:
        raise UsageError(f"port {port} of {host} cannot be used: {err.strerror}; try --port 0") from None


class _Handler(BaseHTTPRequestHandler):
    server: ViewerServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        try:
            if not self._from_here():
                raise PermissionError
            body, media_type, keep = self._answer()
            self._send(HTTPStatus.OK, body, media_type, keep=keep)
        except (NotThere, KeyError, ValueError):
            self._send(HTTPStatus.NOT_FOUND, b"there is nothing at this address", "text/plain")
        except PermissionError:
            self._send(HTTPStatus.FORBIDDEN, b"this page is served to the machine it runs on", "text/plain")
        except WsisegError as err:
            self._send(HTTPStatus.UNPROCESSABLE_ENTITY, str(err).encode(), "text/plain; charset=utf-8")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the page went on before the tile was there

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
            case ["api", "cases"]:
                return _json([_in_list(one) for one in self.server.cases.values()])
            case ["api", "case", name]:
                return _json(self.server.case(unquote(name)).facts())
            case ["api", "at", name]:
                given = parse_qs(address.query)
                row, column = (int(given[key][0]) for key in ("row", "column"))
                return _json(self.server.case(unquote(name)).at(row, column))
            case ["tiles", layer, level, row, column, name]:
                tile = self.server.tile(unquote(name), layer, int(level), int(row), int(column))
                return *tile, True
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


def _in_list(case: Case) -> dict[str, Any]:
    facts = case.facts()
    return {name: facts[name] for name in ("name", "height", "width", "levels", "layers", "mean_iou")}


def _static(name: str) -> tuple[bytes, str, bool]:
    file = files("wsiseg.viewer") / "static" / name
    ending = name[name.rfind(".") :]
    if "/" in name or name.startswith(".") or ending not in TYPES or not file.is_file():
        raise NotThere
    return file.read_bytes(), TYPES[ending], False


def _json(value: Any) -> tuple[bytes, str, bool]:
    return json.dumps(value, ensure_ascii=False).encode(), "application/json", False
