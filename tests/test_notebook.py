"""The viewer in a notebook: the whole page as text, and what it asks for handed to the server."""

from __future__ import annotations

import base64
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import wsiseg
from tests.test_store import finished, make_plan
from tests.test_viewer import CLASSES, checkerboard
from wsiseg.errors import UsageError
from wsiseg.viewer import notebook
from wsiseg.viewer.notebook import Review, forward, whole_page
from wsiseg.viewer.server import ViewerServer, open_viewer


@pytest.fixture
def results(tmp_path: Path) -> Path:
    mask = checkerboard((600, 700), side=50)
    finished(tmp_path / "a b.ome.zarr", make_plan(shape=mask.shape, classes=CLASSES), mask)
    return tmp_path


@pytest.fixture
def server(results: Path) -> Iterator[ViewerServer]:
    with open_viewer(results) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield running
        running.shutdown()


def asked(address: str, **more: Any) -> dict[str, Any]:
    return {"method": "GET", "address": address, "body": None, "headers": [], **more}


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = whole_page()
    assert "static/" not in page
    assert re.findall(r"<(?:script|link)[^>]* (?:src|href)=\"(?!data:)[^\"]*\"", page) == []
    imports = json.loads(re.findall(r"<script type='importmap'>(.*?)</script>", page, re.DOTALL)[0])[
        "imports"
    ]
    wanted = set(re.findall(r"from '([^']+)'", page))
    for name, address in imports.items():
        text = base64.b64decode(address.removeprefix("data:text/javascript;base64,")).decode()
        assert "export " in text, name
        wanted |= set(re.findall(r"from '([^']+)'", text))
    assert {"view.js", "volume.js", "layers.js"} <= wanted <= set(imports)
    # The bridge comes before whatever asks for something.
    assert page.index("window.fetch =") < page.index("importmap") < page.index("openseadragon 6.1.1")


def test_what_a_page_asks_for_is_what_the_server_answers(server: ViewerServer) -> None:
    answer, body = forward(server, asked("api/cases"))
    assert answer == {"status": 200, "type": "application/json"}
    assert [one["name"] for one in json.loads(body)] == ["a b"]
    answer, body = forward(server, asked("tiles/mask/0/0/0/a%20b"))
    assert (answer, body[:4]) == ({"status": 200, "type": "image/png"}, b"\x89PNG")
    assert forward(server, asked("api/case/other"))[0]["status"] == 404
    assert forward(server, asked("../../etc/passwd"))[0]["status"] == 404
    assert forward(server, asked("static/..%2Fserver.py"))[0]["status"] == 404
    assert forward(server, asked("//elsewhere.example/api/cases"))[0]["status"] == 404


@pytest.mark.parametrize(
    "wrong", [{"method": "CONNECT"}, {"method": None}, {"address": 3}, {"address": None}, {"body": [1]}]
)
def test_what_no_page_asks_is_refused(server: ViewerServer, wrong: dict[str, Any]) -> None:
    answer, body = forward(server, asked("api/cases") | wrong)
    assert (answer["status"], body) == (400, b"this is no question of the viewer's page")


def test_a_question_that_cannot_be_asked_is_answered(server: ViewerServer) -> None:
    assert "does not answer" in forward(server, asked("api/\r\nX: y"))[0]["failed"]
    server.shutdown()
    server.server_close()
    assert "does not answer" in forward(server, asked("api/cases"))[0]["failed"]


def test_what_a_page_sends_reaches_the_server_as_from_its_own_page(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Connection:
        def __init__(self, host: str, port: int, timeout: float) -> None:
            seen.append((host, port))

        def request(self, *arguments: Any, **more: Any) -> None:
            seen.append((*arguments, more))

        def getresponse(self) -> Any:
            return SimpleNamespace(status=409, headers={"Content-Type": "text/plain"}, read=lambda: b"other")

        def close(self) -> None: ...

    monkeypatch.setattr("http.client.HTTPConnection", Connection)
    server: Any = SimpleNamespace(url="http://127.0.0.1:5/", server_address=("127.0.0.1", 5))
    question = asked("api/x", method="PUT", body="é", headers=[["Content-Type", "application/json"]])
    assert forward(server, question) == ({"status": 409, "type": "text/plain"}, b"other")
    headers = {"Origin": "http://127.0.0.1:5", "Content-Type": "application/json"}
    assert seen == [("127.0.0.1", 5), ("PUT", "/api/x", {"body": "é".encode(), "headers": headers})]


def test_only_the_frame_that_asked_is_answered(results: Path) -> None:
    pytest.importorskip("anywidget", reason="pip install '.[notebook]'")
    shown = Review(open_viewer(results), height=321)
    sent: list[Any] = []
    shown._widget.send = lambda content, buffers=None: sent.append((content, buffers))
    shown._answer(None, {"view": "one", "open": True}, [])
    assert sent.pop() == ({"view": "one", "page": whole_page(), "height": 321}, None)
    shown._answer(None, {"view": "two", "id": 7, **asked("api/at/a%20b?row=0&column=0")}, [])
    content, (body,) = sent.pop()
    assert content == {"view": "two", "id": 7, "status": 200, "type": "application/json"}
    assert json.loads(body)["index"] == int(checkerboard((1, 1), side=50)[0, 0])
    assert "application/vnd.jupyter.widget-view+json" in shown._repr_mimebundle_()[0]
    assert shown.url.startswith("http://127.0.0.1:")
    shown.close()
    assert "does not answer" in forward(shown._server, asked("api/cases"))[0]["failed"]


def test_outside_of_a_notebook_the_command_is_named(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'wsiseg\[notebook\]'; in a terminal `wsiseg view"):
        wsiseg.review(results)
    monkeypatch.setattr(notebook, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match="this is none; in a terminal `wsiseg view .*` shows the same"):
        wsiseg.review(results)
    monkeypatch.setattr(notebook, "_in_notebook", lambda: True)
    with pytest.raises(UsageError, match="is neither a result"):
        wsiseg.review(str(results / "none"))


def test_a_notebook_is_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    for shell, expected in ((None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=1), True)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda s=shell: s))
        assert notebook._in_notebook() is expected
    monkeypatch.delitem(sys.modules, "IPython")
    assert notebook._in_notebook() is False
