"""The viewer shows every pixel where it is, and answers nobody but the pages that it serves."""

from __future__ import annotations

import http.client
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import wsiseg
from tests.cases import SMALL
from tests.conftest import array_source, random_image
from tests.test_store import finished, make_plan
from wsiseg.annotations import Labels
from wsiseg.classes import MaskClass
from wsiseg.errors import AnnotationError, MissingSpacing, UsageError
from wsiseg.geometry import Region
from wsiseg.pyramid import mean, pick
from wsiseg.viewer.cases import Case, find, least_sure
from wsiseg.viewer.loose import LooseMask
from wsiseg.viewer.places import Places
from wsiseg.viewer.server import LOOPBACK, ViewerServer, open_viewer
from wsiseg.viewer.tiles import APRON, TILE, ImageLayer, IndexLayer, TruthLevels, top_level

ODD = (1301, 2111)
CLASSES = tuple(
    MaskClass(index=n, name=name, color=(40 * n, 0, 0))
    for n, name in enumerate(("background", "a", "b", "c"))
)


def checkerboard(shape: tuple[int, ...], *, side: int) -> NDArray[np.uint8]:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.asarray((y // side + x // side) % 3 + 1, np.uint8)


def halves(array: NDArray[np.uint8], shrink: Any, *, until: int) -> list[NDArray[np.uint8]]:
    found = [array]
    while max(found[-1].shape[-2:]) > until:
        found.append(shrink(found[-1]))
    return found


# Tiles


@pytest.mark.parametrize(
    "until", [512, 2000]
)  # the second has too few levels: the rest is picked as it is read
def test_a_pixel_of_every_tile_is_the_one_of_the_mask_at_its_corner(until: int) -> None:
    mask = checkerboard(ODD, side=37)
    layer = IndexLayer(halves(mask, pick, until=until))
    top = top_level(ODD)
    assert top == 3
    for level in range(top + 1):
        step = 2**level
        far = tuple((-(-n // step) - 1) // TILE for n in ODD)
        for row, column in ((0, 0), far, (far[0], 0)):
            found = layer.read(level, row, column)
            side = TILE + APRON
            expected = np.full((side, side), 255, np.uint8)
            part = mask[row * TILE * step :: step, column * TILE * step :: step][:side, :side]
            expected[: part.shape[0], : part.shape[1]] = part
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(
                np.asarray(Image.open(io.BytesIO(layer.tile(level, row, column)))), found
            )
    assert (layer.read(0, 99, 99) == 255).all()


class Leveled:
    """A source of several levels."""

    def __init__(self, levels: list[NDArray[np.uint8]]) -> None:
        self.levels = [array_source(level, spacing=0.5) for level in levels]


def test_the_image_lies_on_the_mask_pixel_by_pixel_at_every_level() -> None:
    image = random_image(ODD)
    levels = halves(image, mean, until=512)
    layer = ImageLayer(cast(Any, Leveled(levels)), shape=ODD)
    for level, expected in enumerate(levels):
        found = layer.read(level, 0, 0)
        height, width = (min(TILE, n) for n in expected.shape[1:])
        np.testing.assert_array_equal(found[:height, :width], np.moveaxis(expected, 0, -1)[:height, :width])
        assert (found[height + 1 :] == 255).all()
        assert (found[:, width + 1 :] == 255).all()
    assert (layer.read(0, 50, 0) == 255).all()


@pytest.mark.parametrize("factor", [2, 4])
def test_edges_of_an_image_of_another_pixel_size_are_those_of_the_mask(factor: int) -> None:
    shape = (1024, 1536)
    mask = checkerboard(shape, side=64)
    image = np.repeat(mask[None, ::factor, ::factor] * 80, 3, axis=0)
    layer = ImageLayer(cast(Any, Leveled([image])), shape=shape)
    for level in range(2):
        step = 2**level
        found = np.rint(layer.read(level, 0, 1)[..., 0] / 80)
        expected = mask[: TILE * step : step, TILE * step : 2 * TILE * step : step]
        height, width = expected.shape
        right = found[:height, :width] == expected
        y, x = (np.arange(n) % (64 // step) for n in (height, width))
        near = factor // step  # where colours of two squares are mixed
        inside = [(at >= near) & (at < 64 // step - near) for at in (y, x)]
        assert right[np.ix_(*inside)].all()
        assert right.mean() > 0.85


def test_a_slide_read_with_steps_that_are_no_powers_of_two_is_not_moved() -> None:
    whole = checkerboard((1500, 1500), side=150)
    levels = [np.repeat(whole[None] * 80, 3, axis=0), np.repeat(whole[None, 1::3, 1::3] * 80, 3, axis=0)]
    layer = ImageLayer(cast(Any, Leveled(levels)), shape=(1500, 1500))
    found = np.rint(layer.read(2, 0, 0)[:375, :375, 0] / 80)
    assert (found == whole[::4, ::4]).mean() > 0.95
    inside = np.arange(375) * 4 % 150
    keep = (inside > 8) & (inside < 142)
    np.testing.assert_array_equal(found[np.ix_(keep, keep)], whole[2::4, 2::4][np.ix_(keep, keep)])


def test_levels_of_annotations_are_those_of_the_whole() -> None:
    mask = checkerboard(ODD, side=29)

    def read(region: Region) -> NDArray[np.uint8]:
        return mask[region]

    levels = TruthLevels(cast(Labels, SimpleNamespace(shape=ODD, read=read)))
    layer, whole = IndexLayer(levels), IndexLayer([mask])
    for level, row, column in ((0, 1, 2), (1, 1, 0), (2, 0, 1), (3, 0, 0)):
        np.testing.assert_array_equal(layer.read(level, row, column), whole.read(level, row, column))


def test_places_of_doubt_are_squares_by_their_mean_without_glass() -> None:
    cells = np.full((48, 60), 200, np.uint8)
    cells[:24, 24:48] = 51
    cells[24:, :24] = 102
    cells[24:, 48:] = 0
    found = least_sure(cells)
    assert [(round(sure, 3), y, x, h, w) for sure, y, x, h, w in found[:2]] == [
        (0.2, 0, 24, 24, 24),
        (0.4, 24, 0, 24, 24),
    ]
    assert len(found) == 5


def slide_of(path: Path, places: Places) -> Case:
    (case,) = find(path, places=places).values()
    assert isinstance(case, Case)
    return case


def test_a_result_has_its_image_its_doubt_and_its_truth(
    slide: Path, picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    made = wsiseg.segment(slide, tmp_path / "out", "breast-tissue3", **{**SMALL, "confidence": True})
    mask = np.asarray(wsiseg.open_store(made.store).mask()[:])
    Image.fromarray(mask[:, ::-1].copy()).save(tmp_path / "scene.png")
    case = slide_of(tmp_path / "out", Places(truth=tmp_path))
    facts = case.facts()
    assert facts["layers"] == ["confidence", "image", "mask", "truth"]
    assert [c["area_mm2"] for c in facts["classes"]] == [c.area_mm2 for c in made.classes]
    assert facts["unsure"] == sorted(facts["unsure"], key=lambda place: place["confidence"])

    def tile(layer: str) -> NDArray[np.uint8]:
        return np.asarray(Image.open(io.BytesIO(case.layers[layer].tile(0, 0, 0))))[: len(mask), :TILE]

    np.testing.assert_array_equal(tile("mask"), mask[:, :TILE])
    np.testing.assert_array_equal(tile("truth"), mask[:, ::-1][:, :TILE])
    sure = wsiseg.open_store(made.store).confidence()
    assert sure is not None
    np.testing.assert_array_equal(tile("confidence"), np.asarray(sure[:, :TILE]))
    image = tile("image")
    assert np.abs(image.astype(int) - picture[:, :TILE]).mean() < 6  # it went through a JPEG
    at = case.at(3, 5)
    assert at["index"] == mask[3, 5]
    assert at["confidence"] == int(np.asarray(sure[3, 5])) / 255
    # Without its image a result finds the slide by name.
    bare = wsiseg.segment(slide, tmp_path / "bare", "breast-tissue3", **{**SMALL, "image": "none"})
    case = slide_of(bare.store, Places())
    assert sorted(case.layers) == ["mask"]
    case = slide_of(bare.store, Places(images=slide.parent))
    np.testing.assert_array_equal(tile("image"), image)


# The server


@pytest.fixture
def results(tmp_path: Path) -> Path:
    mask = checkerboard((600, 700), side=50)
    plan = make_plan(shape=mask.shape, classes=CLASSES, slab_rows=128, chunk=64)
    finished(tmp_path / "a b.ome.zarr", plan, mask)
    finished(tmp_path / "deep" / "é.ome.zarr", plan, np.zeros_like(mask))
    (tmp_path / "half.ome.zarr" / "ledger").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def server(results: Path) -> Iterator[ViewerServer]:
    with open_viewer(results) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield running
        running.shutdown()


def ask(server: ViewerServer, path: str, *, host: str | None = None) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)  # type: ignore[arg-type]
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.headers)
    connection.close()
    return found


def test_a_page_its_parts_facts_and_tiles_are_served(server: ViewerServer) -> None:
    assert server.server_address[0] == LOOPBACK
    for path, start in (
        ("/", b"<!doctype html>"),
        ("/static/openseadragon.min.js", b"//! openseadragon 6.1.1"),
    ):
        status, body, _ = ask(server, path)
        assert (status, body[: len(start)]) == (200, start)
    status, body, headers = ask(server, "/api/cases")
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    assert [(one["name"], one["layers"]) for one in json.loads(body)] == [
        ("a b", ["mask"]),
        ("deep/é", ["mask"]),
    ]
    facts = json.loads(ask(server, "/api/case/a%20b")[1])
    assert (facts["height"], facts["width"], facts["levels"]) == (600, 700, 1)
    assert [c["name"] for c in facts["classes"]] == [c.name for c in CLASSES]
    status, body, headers = ask(server, "/tiles/mask/0/1/1/a%20b")
    tile = np.asarray(Image.open(io.BytesIO(body)))
    np.testing.assert_array_equal(tile[:88, :188], checkerboard((600, 700), side=50)[512:, 512:])
    assert headers["Content-Type"] == "image/png"
    assert "'self'" in headers["Content-Security-Policy"]
    at = json.loads(ask(server, "/api/at/a%20b?row=51&column=699")[1])
    assert (at["index"], at["name"], at["confidence"]) == (3, "c", None)
    assert json.loads(ask(server, "/api/at/a%20b?row=600&column=0")[1]) == {}
    assert json.loads(ask(server, "/api/at/deep%2F%C3%A9?row=1&column=0")[1])["name"] == "background"


@pytest.mark.parametrize(
    "path",
    [
        "/nothing", "/static/../server.py", "/static/..%2Fserver.py", "/static/.hidden", "/static/layers.py",
        "/api/case/other", "/api/case/..%2F..", "/api/at/a%20b", "/api/at/a%20b?row=x&column=1",
        "/tiles/mask/9/0/0/a%20b", "/tiles/mask/0/-1/0/a%20b", "/tiles/image/0/0/0/a%20b",
        "/tiles/mask/0/0/0/x",
        "/tiles/mask/0/x/0/a%20b",
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_found(server: ViewerServer, path: str) -> None:
    status, body, _ = ask(server, path)
    assert (status, body) == (404, b"there is nothing at this address")


def test_a_name_of_somebody_elses_that_leads_here_is_refused(server: ViewerServer) -> None:
    port = server.server_address[1]
    assert ask(server, "/api/cases", host=f"evil.example:{port}")[0] == 403
    assert ask(server, "/api/cases", host=f"localhost:{port}")[0] == 200


def test_a_slide_is_shown_with_a_mask_that_is_no_result(tmp_path: Path) -> None:
    image, mask = random_image((70, 90)), checkerboard((70, 90), side=10)
    Image.fromarray(np.moveaxis(image, 0, -1)).save(tmp_path / "slide.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with open_viewer(tmp_path / "slide.png", mask=LooseMask(tmp_path / "mask.png", mpp=0.5)) as server:
        case = server.slide("slide")
        assert sorted(case.layers) == ["image", "mask"]
        tile = np.asarray(Image.open(io.BytesIO(server.tile("slide", "mask", 0, 0, 0)[0])))
        np.testing.assert_array_equal(tile[:70, :90], mask)
        at = case.at(11, 89)
        assert (at["index"], at["um"]) == (mask[11, 89], [5.75, 44.75])
        assert case.facts()["reviewable"] is False
        with pytest.raises(UsageError, match="reviews lie beside results"):
            assert case.corrections
    with pytest.raises(MissingSpacing, match="slide.png"):
        open_viewer(tmp_path / "slide.png", mask=LooseMask(tmp_path / "mask.png"))
    Image.fromarray(mask[1:]).save(tmp_path / "small.png")
    with pytest.raises(AnnotationError, match="69 x 90 pixels"):
        open_viewer(tmp_path / "slide.png", mask=LooseMask(tmp_path / "small.png", mpp=0.5))


def test_what_cannot_be_viewed_is_said_in_one_sentence(results: Path, server: ViewerServer) -> None:
    with pytest.raises(UsageError, match="is neither a result"):
        open_viewer(results / "none")
    (results / "empty").mkdir()
    with pytest.raises(UsageError, match="has no finished results; segment into it first"):
        open_viewer(results / "empty")
    with pytest.raises(UsageError, match="no such file or folder"):
        open_viewer(results, truth=results / "none.geojson")
    with pytest.raises(UsageError, match=r"port \d+ of 127.0.0.1 cannot be used: .*; try --port 0"):
        open_viewer(results, port=int(server.server_address[1]))


def test_a_browser_that_leaves_in_the_middle_is_no_error(
    server: ViewerServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    handle = type(server).handle_error

    def noted(self: ViewerServer, *request: Any) -> None:
        seen.append(type(sys.exception()).__name__)
        handle(self, *request)

    monkeypatch.setattr(type(server), "handle_error", noted)
    host, port = server.server_address[:2]
    with socket.create_connection((str(host), int(port)), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        time.sleep(0.2)  # the server waits for the rest
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed at once
    deadline = time.monotonic() + 20
    while not seen and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen == ["ConnectionResetError"]
    assert capsys.readouterr().err == ""


def test_the_command_serves_until_it_is_interrupted(results: Path) -> None:
    command = [sys.executable, "-m", "wsiseg", "view", str(results), "--port", "0", "--json"]
    # Tests that run in the background of a shell have Ctrl+C ignored, and so would the process.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=heard,  # noqa: PLW1509
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        found = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
        assert found["cases"] == ["a b", "deep/é"]
        address = urlsplit(found["url"])
        assert address.hostname == LOOPBACK
        connection = http.client.HTTPConnection(address.netloc, timeout=20)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
        assert process.stderr.read() == ""


def test_the_result_of_another_model_is_shown_beside_it_by_name(tmp_path: Path) -> None:
    mask = checkerboard((60, 70), side=10)
    plan = make_plan(shape=mask.shape, classes=CLASSES)
    finished(tmp_path / "one" / "a.ome.zarr", plan, mask)
    finished(tmp_path / "two" / "a.ome.zarr", plan, mask[:, ::-1])
    for truth in (tmp_path / "two", tmp_path / "two" / "a.ome.zarr"):
        with open_viewer(tmp_path / "one", truth=truth) as server:
            tile = np.asarray(Image.open(io.BytesIO(server.tile("a", "truth", 0, 0, 0)[0])))
            np.testing.assert_array_equal(tile[:60, :70], mask[:, ::-1])
    with open_viewer(tmp_path / "one", truth=tmp_path / "one") as server:
        assert sorted(server.slide("a").layers) == ["mask"]  # not beside itself
