"""The viewer in a notebook, where the browser may be far from the kernel and reach none of its ports.

    page in a frame  ->  widget  ->  Jupyter's own connection to the kernel  ->  server on 127.0.0.1

The frame is given the whole page as text, and has no origin: it can load nothing and ask nobody but the
widget, which hands what it asks to the server and the answer back. So it works wherever cells run.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import sys
import threading
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wsiseg.errors import UsageError
from wsiseg.viewer.server import ViewerServer, open_viewer

STATIC = files("wsiseg.viewer") / "static"
METHODS = ("GET", "POST", "PUT", "DELETE")
LONGEST_S = 60.0
"""That an answer of the server may take."""
_SCRIPT = re.compile(r'<script(?P<kind> type="module")? src="static/(?P<name>[\w.-]+)"></script>')
_STYLE = re.compile(r'<link rel="stylesheet" href="static/(?P<name>[\w.-]+)">')
_IMPORT = re.compile(r"""from (['"])\./([\w.-]+)\1""")


class Review:
    """The viewer of some results, shown by the last line of a cell; `url` is where it is served too."""

    def __init__(self, server: ViewerServer, *, height: int) -> None:
        from anywidget import AnyWidget

        self._server = server
        self._height = height
        threading.Thread(target=server.serve_forever, daemon=True).start()
        kind = type("ReviewWidget", (AnyWidget,), {"_esm": _text("widget.js")})
        self._widget: Any = kind()
        self._widget.on_msg(self._answer)

    @property
    def url(self) -> str:
        """Where a browser on the kernel's own machine finds the same page."""
        return self._server.url

    def close(self) -> None:
        """End the viewer and its server."""
        self._widget.close()
        self._server.shutdown()
        self._server.server_close()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self._widget._repr_mimebundle_(**options)

    def _answer(self, _: Any, asked: dict[str, Any], buffers: Any) -> None:
        """What a frame asked for; only the frame that asked takes the answer."""
        view = str(asked.get("view"))
        if asked.get("open"):
            self._widget.send({"view": view, "page": whole_page(), "height": self._height})
            return
        answer, body = forward(self._server, asked)
        self._widget.send({"view": view, "id": asked.get("id"), **answer}, [body])


def review(
    path: str | Path,
    *,
    images: str | Path | None = None,
    truth: str | Path | None = None,
    height: int = 640,
) -> Review:
    """The viewer of a result, or of a folder of them, in a Jupyter notebook; `height` in pixels.

    `images` and `truth` are as in `wsiseg view`. Raises UsageError outside of a notebook, and what
    `wsiseg view` refuses.
    """
    outside = f"in a terminal `wsiseg view {path}` shows the same page"
    if find_spec("anywidget") is None:
        raise UsageError(f"wsiseg.review needs anywidget: pip install 'wsiseg[notebook]'; {outside}")
    if not _in_notebook():
        raise UsageError(f"wsiseg.review shows results in a Jupyter notebook, and this is none; {outside}")
    server = open_viewer(
        Path(path),
        images=None if images is None else Path(images),
        truth=None if truth is None else Path(truth),
    )
    return Review(server, height=height)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


def forward(server: ViewerServer, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The server's answer to what a page asked for, as status and type, and its body."""
    method, address, body = asked.get("method"), asked.get("address"), asked.get("body")
    if method not in METHODS or not isinstance(address, str) or not isinstance(body, str | None):
        return {"status": 400, "type": "text/plain"}, b"this is no question of the viewer's page"
    given = {str(name).lower(): str(value) for name, value in asked.get("headers") or ()}
    headers = {"Origin": server.url.rstrip("/"), "Content-Type": given.get("content-type", "text/plain")}
    host, port = server.server_address[:2]
    connection = http.client.HTTPConnection(str(host), port, timeout=LONGEST_S)
    try:
        sent = None if body is None else body.encode()
        connection.request(method, "/" + address.lstrip("/"), body=sent, headers=headers if sent else {})
        answer = connection.getresponse()
        return {"status": answer.status, "type": answer.headers["Content-Type"]}, answer.read()
    except (OSError, ValueError, http.client.HTTPException) as err:
        return {"failed": f"the viewer's server does not answer: {err}"}, b""
    finally:
        connection.close()


def whole_page() -> str:
    """The viewer's page with everything that it loads in it."""
    page = _text("index.html")
    page = _STYLE.sub(lambda found: f"<style>{_text(found['name'])}</style>", page)
    modules = {
        file.name: _as_data(_bare(file.read_text(encoding="utf-8")))
        for file in STATIC.iterdir()
        if file.name.endswith(".js") and "\nexport " in file.read_text(encoding="utf-8")
    }
    known = json.dumps({"imports": modules})
    before = f"<script>{_text('bridge.js')}</script><script type='importmap'>{known}</script>"
    page = _SCRIPT.sub(
        lambda found: f"<script{found['kind'] or ''}>{_bare(_text(found['name']))}</script>", page
    )
    return page.replace("<head>", f"<head>{before}", 1)


def _text(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def _bare(script: str) -> str:
    """A module whose imports are looked up by name: text in a page has no folder to look in."""
    return _IMPORT.sub(r"from '\2'", script)


def _as_data(script: str) -> str:
    return "data:text/javascript;base64," + base64.b64encode(script.encode()).decode()
