"""Reviews over HTTP: taken from the viewer's own page, stored beside the result and nowhere else."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_store import finished, make_plan
from tests.test_viewer import CLASSES
from wsiseg.viewer.server import ViewerServer, open_viewer

SQUARE = [[[[2, 3], [8, 3], [8, 9], [2, 9]]]]
NAME = "4e77223b-bd4f-4f05-8d28-8fb326cbd0c1"
AREA = {"polygons": SQUARE, "index": 1, "version": 0}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    mask = np.zeros((40, 50), np.uint8)
    finished(tmp_path / "results" / "a b.ome.zarr", make_plan(shape=mask.shape, classes=CLASSES), mask)
    return tmp_path / "results"


@contextmanager
def serving(results: Path, **how: Any) -> Iterator[ViewerServer]:
    with open_viewer(results, **how) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def server(results: Path) -> Iterator[ViewerServer]:
    with serving(results) as running:
        yield running


def send(server: ViewerServer, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status, and what was answered: JSON or a sentence."""
    host, port = server.server_address[:2]
    connection = http.client.HTTPConnection(str(host), int(port), timeout=20)
    text = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    given = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    connection.request(method, path, body=text, headers=given)
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    return answer.status, json.loads(said) if answer.status == 200 else said.decode()


def test_what_a_page_sends_is_stored_and_answered(server: ViewerServer, results: Path) -> None:
    status, layer = send(server, "PUT", f"/api/review/a%20b/AB/{NAME}", AREA)
    assert (status, [one["id"] for one in layer["features"]]) == (200, [NAME])
    path = results / "a b.review.AB.geojson"
    assert json.loads(path.read_text()) == layer
    verdict = {"verdict": "accepted", "comment": "ä", "version": 0}
    assert send(server, "PUT", "/api/review/a%20b/AB", verdict)[1]["wsiseg"]["comment"] == "ä"
    assert send(server, "GET", "/api/review/a%20b")[1] == {"AB": json.loads(path.read_text())}
    assert send(server, "GET", "/api/cases")[1][0]["verdicts"] == {"AB": "accepted"}
    assert send(server, "PUT", f"/api/review/a%20b/AB/{NAME}", AREA) == (
        409, "the polygon was changed in another window",
    )  # fmt: skip
    assert send(server, "DELETE", f"/api/review/a%20b/AB/{NAME}?version=1")[1]["features"] == []
    assert sorted(p.name for p in results.iterdir()) == ["a b.ome.zarr", path.name]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("a%20b/..%2FAB", {"verdict": "open", "version": 0}, 422, "no initials"),
        ("a%20b/AB/..%2F..", AREA, 422, "no id of a polygon"),
        ("a%20b/AB", {"verdict": "great", "version": 0}, 400, "verdict"),
        ("a%20b/AB", {"verdict": "open", "version": 0, "more": 1}, 400, "more"),
        (f"a%20b/AB/{NAME}", b"{", 400, "JSON"),
        (f"a%20b/AB/{NAME}", {**AREA, "polygons": [[[["x", 1]]]]}, 400, "number"),
        (f"a%20b/AB/{NAME}", {**AREA, "index": 9}, 422, "no class 9"),
        (f"a%20b/AB/{NAME}", {**AREA, "polygons": [[[[1, 1], [2, 2], [3, 3]]]]}, 422, "no area"),
        ("other/AB", {"verdict": "open", "version": 0}, 404, "nothing at this address"),
        ("a%20b", {}, 404, "nothing at this address"),
        ("..%2F..%2Fa/AB", {"verdict": "open", "version": 0}, 404, "nothing at this address"),
    ],
)
def test_what_is_no_review_is_refused_in_a_sentence(
    server: ViewerServer, results: Path, path: str, body: Any, status: int, said: str
) -> None:
    before = sorted(results.parent.rglob("*"))
    found = send(server, "PUT", f"/api/review/{path}", body)
    assert found[0] == status
    assert said in found[1]
    assert sorted(results.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Origin": "http://evil.example"}, "another site"),
        ({"Origin": "null"}, "another site"),
        ({"Host": "evil.example"}, "served to the machine"),
        ({"Content_Type": "text/plain"}, "application/json"),
        ({"Content_Length": str(1 << 40)}, "at most"),
        ({"Content_Length": "-1"}, "at most"),
    ],
)
def test_a_page_of_another_site_changes_nothing(
    server: ViewerServer, results: Path, headers: dict[str, str], said: str
) -> None:
    status, text = send(server, "PUT", f"/api/review/a%20b/AB/{NAME}", AREA, **headers)
    assert (status, said in text) == (403, True)
    assert [p.name for p in results.iterdir()] == ["a b.ome.zarr"]


def test_the_viewers_own_origin_is_taken(server: ViewerServer) -> None:
    own = server.url.rstrip("/")
    assert send(server, "PUT", f"/api/review/a%20b/AB/{NAME}", AREA, Origin=own)[0] == 200


def test_a_viewer_that_is_read_only_stores_nothing(results: Path) -> None:
    with serving(results, read_only=True) as server:
        status, said = send(server, "PUT", f"/api/review/a%20b/AB/{NAME}", AREA)
        assert (status, said) == (403, "this viewer was started with --read-only: it stores no reviews")
        assert send(server, "GET", "/api/case/a%20b")[1]["read_only"] is True
    assert [p.name for p in results.iterdir()] == ["a b.ome.zarr"]


def test_a_layer_that_is_damaged_hides_no_other(server: ViewerServer, results: Path) -> None:
    send(server, "PUT", f"/api/review/a%20b/AB/{NAME}", AREA)
    (results / "a b.review.CD.geojson").write_text("{")
    layers = send(server, "GET", "/api/review/a%20b")[1]
    assert [one["id"] for one in layers["AB"]["features"]] == [NAME]
    assert "a b.review.CD.geojson is no layer of a review" in layers["CD"]["error"]
    (case,) = send(server, "GET", "/api/cases")[1]
    assert case["verdicts"] == {"AB": "open", "CD": "cannot be read"}
    assert send(server, "GET", "/api/case/a%20b")[0] == 200
    assert send(server, "PUT", f"/api/review/a%20b/CD/{NAME}", AREA)[0] == 422
