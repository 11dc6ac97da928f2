"""The viewer in a browser, as a pathologist uses it: look, correct, and the score follows."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import wsiseg
from tests.browsers import Page, browser, errors, skip_without_browser
from tests.test_store import finished, make_plan
from wsiseg.annotations import open_truth
from wsiseg.classes import MaskClass
from wsiseg.reviews.corrections import Corrections
from wsiseg.store import open_store
from wsiseg.viewer.server import open_viewer

pytestmark = pytest.mark.browser

SAMPLES = Path(wsiseg.__file__).parent / "samples" / "ynet-breast8"
CASE = "2204_1_18400_11800_1.33"
LOADED = "window.wsisegViewer?.items.mask?.getFullyLoaded() && wsisegViewer.items.image.getFullyLoaded()"
CORNERS = [(-120, -80), (90, -100), (110, 70), (-90, 90)]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    skip_without_browser()
    with browser() as driver:
        yield Page(driver)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    image, truth = SAMPLES / "images" / f"{CASE}.png", SAMPLES / "masks" / f"{CASE}.png"
    wsiseg.segment(
        image, tmp_path / "results", model="demo-breast8-without-2204", annotations=truth, mpp=0.3325,
        confidence=True, device="cpu",
    )  # fmt: skip
    return tmp_path / "results"


@pytest.fixture
def url(results: Path) -> Iterator[str]:
    with open_viewer(results, truth=SAMPLES / "masks") as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server.url
        server.shutdown()


def opened(page: Page, url: str, *, initials: str = "AB") -> Any:
    """The page of the case, all of it there; returns the element that shows the slide."""
    page.driver.get("about:blank")
    page.driver.get(url)
    page.wait(LOADED)
    page.run("document.getElementById('initials').value = arguments[0]", initials)
    page.run("document.getElementById('initials').onchange()")
    return page.find("slide")


def drawn(page: Page) -> list[str]:
    """Ids of the polygons on the slide."""
    return list(page.run("[...document.querySelectorAll('#drawing path[data-id]')].map(p => p.dataset.id)"))


def draw(page: Page, slide: Any, corners: list[tuple[int, int]]) -> None:
    page.find("draw").click()
    page.click(slide, corners)
    page.keys("\ue007")  # Enter
    page.wait("document.getElementById('review-state').textContent === 'saved'")
    page.keys("\ue00c")  # Escape


def test_pan_zoom_opacity_classes_curtain_and_unsure_places(page: Page, url: str) -> None:
    slide = opened(page, url)
    page.shot("1-opened")

    centre = page.run("wsisegViewer.osd.viewport.getCenter(true).x")
    page.actions().move_to_element(slide).click_and_hold().move_by_offset(80, 40).release().perform()
    page.wait(f"Math.abs(wsisegViewer.osd.viewport.getCenter(true).x - {centre}) > 0.02")
    zoom = page.run("wsisegViewer.osd.viewport.getZoom()")
    page.keys("h", "+")
    assert page.run("wsisegViewer.osd.viewport.getZoom()") == pytest.approx(1.5 * zoom, rel=0.2)
    page.keys("h")

    page.run("(o => { o.value = 0.8; o.oninput(); })(document.getElementById('opacity'))")
    assert page.run("wsisegViewer.items.mask.getOpacity()") == 0.8
    before = page.run("wsisegViewer.paints.mask.colors[2]")
    page.keys("3")  # the third class: malignant epithelium
    assert [before != 0, page.run("wsisegViewer.paints.mask.colors[2]")] == [True, 0]
    assert not page.run("document.querySelector('#classes input[value=\"2\"]').checked")
    page.shot("2-a-class-off")
    page.keys("3", "c")
    assert page.run("[wsisegViewer.state.curtain, document.getElementById('curtain').hidden]") == [0.5, False]
    page.wait("wsisegViewer.items.truth.getFullyLoaded()")
    assert page.run("wsisegViewer.items.truth.getOpacity()") == 0.8
    page.shot("3-curtain")
    page.keys("c", "u")
    said = str(page.run("document.getElementById('unsure-at').textContent"))
    assert said.startswith("1 of ")
    page.wait(LOADED)
    page.shot("4-unsure")
    assert errors(page.driver) == []


def test_what_is_drawn_is_there_again_and_the_score_follows(page: Page, results: Path, url: str) -> None:
    slide = opened(page, url)
    page.run("document.getElementById('as-class').value = '6'")  # blood
    draw(page, slide, CORNERS)
    page.shot("5-drawn")
    names = drawn(page)
    assert len(names) == 1

    opened(page, url)
    page.wait("document.querySelectorAll('#drawing path[data-id]').length")
    assert drawn(page) == names
    assert "AB: open" in page.run("document.getElementById('cases').innerText")
    page.shot("6-opened-again")

    store, truth = open_store(results / f"{CASE}.ome.zarr"), SAMPLES / "masks" / f"{CASE}.png"
    marks = open_truth(Corrections(store).path("AB"), geometry=store.geometry, classes=store.plan.classes)
    inside = marks.read(store.geometry.whole) == 6
    seen = page.run("wsisegViewer.items.mask.viewportToImageZoom(wsisegViewer.osd.viewport.getZoom(true))")
    x, y = np.array(CORNERS).T / seen
    area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    assert inside.sum() == pytest.approx(area, rel=0.02)
    expected = open_truth(truth, geometry=store.geometry, classes=store.plan.classes)
    corrected = np.where(inside, 6, expected.read(store.geometry.whole))
    scores = wsiseg.evaluate(store.path, truth, corrected="AB")
    mask = np.asarray(store.mask()[:])
    counted = (corrected != 255) & (mask != 255)
    assert scores.pixel_accuracy == pytest.approx((mask == corrected)[counted].mean())
    assert scores.pixel_accuracy != wsiseg.evaluate(store.path, truth).pixel_accuracy
    assert errors(page.driver) == []


def test_polygons_are_chosen_given_another_class_deleted_and_all_of_it_undone(
    page: Page, results: Path, url: str
) -> None:
    slide = opened(page, url)
    draw(page, slide, CORNERS)
    layer = Corrections(open_store(results / f"{CASE}.ome.zarr"))

    def classes() -> list[str]:
        page.wait("document.getElementById('review-state').textContent === 'saved'")
        return [one["properties"]["classification"]["name"] for one in layer.layer("AB").features]

    first = classes()
    page.click(slide, [(0, 0)])
    page.wait("document.querySelector('#drawing path.selected')")
    page.run("(o => { o.value = '6'; o.onchange(); })(document.getElementById('as-class'))")
    assert classes() == ["blood"] != first
    page.keys("\ue017")  # Delete
    assert classes() == []
    for expected in (["blood"], first, []):
        page.find("undo").click()
        assert classes() == expected
    page.find("redo").click()
    assert classes() == first
    page.driver.find_elements("name", "verdict")[2].click()
    page.find("comment").send_keys("ducts\ue004")
    assert classes() == first
    about = layer.layer("AB").about
    assert (about.verdict, about.comment) == ("rejected", "ducts")
    assert errors(page.driver) == []


def test_two_tabs_do_not_overwrite_one_another(page: Page, results: Path, url: str) -> None:
    slide = opened(page, url)
    page.run("void (crypto.randomUUID = undefined)")  # as on a page of another machine without https
    draw(page, slide, CORNERS)
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    other = opened(page, url)
    page.wait("document.querySelectorAll('#drawing path[data-id]').length")
    draw(page, other, [(150, 100), (200, 100), (200, 150)])  # another polygon: both stay
    page.click(other, [(0, 0)])
    page.keys("\ue017")
    page.wait("document.getElementById('review-state').textContent === 'saved'")

    # The first tab does not know it yet: a tab that is not looked at hears nothing.
    page.driver.switch_to.window(first)
    page.run("document.dispatchEvent(new Event('visibilitychange'))")
    stored = json.loads(Corrections(open_store(results / f"{CASE}.ome.zarr")).path("AB").read_text())
    assert len(stored["features"]) == 1
    page.wait("document.querySelectorAll('#drawing path[data-id]').length === 1")
    assert drawn(page) == [stored["features"][0]["id"]]
    page.driver.switch_to.window(page.driver.window_handles[-1])
    page.driver.close()
    page.driver.switch_to.window(first)


def test_what_cannot_be_sent_is_kept_and_sent_later(page: Page, results: Path, url: str) -> None:
    slide = opened(page, url)
    page.run("(window.sent = window.fetch, window.fetch = () => Promise.reject(new TypeError('gone')))")
    page.find("draw").click()
    page.click(slide, CORNERS)
    page.keys("\ue007")
    page.wait("document.getElementById('review-state').textContent.includes('not saved')")
    assert len(drawn(page)) == 1
    page.shot("7-not-saved")
    page.run("window.fetch = window.sent")
    page.wait("document.getElementById('review-state').textContent === 'saved'")
    found = Corrections(open_store(results / f"{CASE}.ome.zarr")).layer("AB").features
    assert [one["id"] for one in found] == drawn(page)


CELL = 64
"""Of the checkerboard: whole pixels at every level."""
COLORED = tuple(
    MaskClass(index=n, name=f"c{n}", color=color)
    for n, color in enumerate(((255, 255, 255), (200, 30, 40), (30, 60, 200), (20, 160, 60)))
)


def shown_classes(page: Page) -> NDArray[np.int64]:
    """The class whose colour is nearest, for every pixel of what is drawn."""
    page.wait(LOADED)
    time.sleep(0.5)  # the last tile fades in
    address = str(page.run("wsisegViewer.osd.drawer.canvas.toDataURL('image/png')"))
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")
    colors = np.asarray(picture, np.int64)
    known = np.array([c.color for c in COLORED])
    return np.asarray(((colors[..., None, :] - known) ** 2).sum(axis=-1).argmin(axis=-1))


def test_the_mask_lies_on_the_slide_to_the_pixel_at_every_zoom(page: Page, tmp_path: Path) -> None:
    shape = (1536, 2112)
    y, x = np.ogrid[: shape[0], : shape[1]]
    mask = np.asarray((y // CELL + 2 * (x // CELL)) % 3 + 1, np.uint8)
    finished(tmp_path / "board.ome.zarr", make_plan(shape=shape, classes=COLORED, spacing=(0.5, 0.5)), mask)
    colors = np.array([c.color for c in COLORED], np.uint8)
    Image.fromarray(colors[mask]).save(tmp_path / "board.png")
    with open_viewer(tmp_path / "board.ome.zarr", images=tmp_path / "board.png") as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        opened(page, server.url)
        page.run("wsisegViewer.update({ opacity: 1 })")
        seen = set()
        for zoom in (0.25, 0.31, 0.5, 0.77, 1.0, 1.6, 3.0):
            page.run(
                "void wsisegViewer.osd.viewport.zoomTo("
                "wsisegViewer.items.mask.imageToViewportZoom(arguments[0]), null, true)",
                zoom,
            )
            page.run("wsisegViewer.update({ shown: true })")
            over = shown_classes(page)
            page.run("wsisegViewer.update({ shown: false })")
            bare = shown_classes(page)
            seen |= set(np.unique(bare))
            assert int((over != bare).sum()) == 0, zoom
        assert {1, 2, 3} <= seen
        server.shutdown()
