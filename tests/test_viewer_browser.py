"""The pages of the viewer in a real browser: every voxel is drawn where it belongs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.browsers import browser, errors, skip_without_browser, wait_for
from tests.test_store import finished, make_plan
from tests.test_viewer import CLASSES as SLIDE_CLASSES
from tests.test_viewer import checkerboard
from tests.test_viewer_volumes import CLASSES, SHAPE, SPACING, checkers, stored
from tests.volume_files import random_voxels, save
from wsiseg.viewer.server import open_viewer

pytestmark = pytest.mark.browser

IMAGE = random_voxels((1, *SHAPE)).astype(np.int16)
LOW, HIGH = -500.0, 2500.0
VIEWS = {"axial": 0, "coronal": 1, "sagittal": 2}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    skip_without_browser()
    folder = tmp_path_factory.mktemp("results")
    stored(folder / "v.ome.zarr", checkers(SHAPE), image=IMAGE)
    save(folder / "v.mask.nii.gz", checkers(SHAPE).T.copy(), np.diag([*SPACING[::-1], 1.0]))
    with open_viewer(folder) as server, browser() as driver:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        driver.get(server.url)
        wait_for(driver, "window.wsisegViewer?.planes?.every(plane => plane.index >= 0)")
        yield driver
        assert errors(driver) == []
        server.shutdown()


def drawn(page: Any, plane: int) -> NDArray[np.uint8]:
    """Colours (rows, columns, 3) of the canvas of a plane."""
    height, width, data = page.execute_script(
        "const {canvas} = window.wsisegViewer.planes[arguments[0]];"
        "const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;"
        "return [canvas.height, canvas.width, Array.from(data)]",
        plane,
    )
    return np.array(data, np.uint8).reshape(height, width, 4)[..., :3]


def expected(axis: int, index: int, *, opacity: float) -> NDArray[Any]:
    """The same picture by numpy: superior or anterior up, the patient's right or the nose left."""
    grey = np.clip((IMAGE[0].take(index, axis) - LOW) * 255 / (HIGH - LOW), 0, 255)[..., None]
    mask = checkers(SHAPE).take(index, axis)
    colors = np.zeros((*mask.shape, 3))
    for one in CLASSES[1:]:
        colors[mask == one.index] = one.color
    marked = np.isin(mask, [c.index for c in CLASSES[1:]])[..., None]
    picture = np.where(marked, grey + opacity * (colors - grey), grey)
    return np.asarray(picture[::-1, ::-1])


@pytest.mark.parametrize("opacity", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("voxel", [(0, 0, 0), (39, 69, 22), (17, 31, 5)])
def test_every_voxel_of_the_three_slices_is_drawn_where_it_belongs(
    page: Any, voxel: tuple[int, ...], opacity: float
) -> None:
    z, y, x = voxel
    page.execute_async_script(
        "const [z, y, x, opacity, low, high, done] = arguments, view = window.wsisegViewer;"
        "view.contrast((low + high) / 2, high - low); view.update({opacity}); view.go({z, y, x}).then(done)",
        z, y, x, opacity, LOW, HIGH,
    )  # fmt: skip
    for axis, index in enumerate(voxel):
        found = drawn(page, axis)
        assert np.abs(found - expected(axis, index, opacity=opacity)).max() <= 1


def test_what_is_as_long_looks_as_long_and_the_sides_are_named(page: Any) -> None:
    page.execute_script("window.wsisegViewer.home()")
    sizes = page.execute_script(
        "return window.wsisegViewer.planes.map(({canvas}) => canvas.getBoundingClientRect())"
        ".map(({width, height}) => [height, width])"
    )
    mm = np.multiply(SHAPE, SPACING)
    scale = sizes[0][0] / mm[1]
    np.testing.assert_allclose(
        sizes, np.array([[mm[1], mm[2]], [mm[0], mm[2]], [mm[0], mm[1]]]) * scale, rtol=1e-3
    )
    letters = page.execute_script(
        "return window.wsisegViewer.planes.map(({element}) => ['left', 'right', 'top', 'bottom']"
        ".map(side => element.querySelector('.end.' + side).textContent).join(''))"
    )
    assert letters == ["RLAP", "RLSI", "APSI"]


def test_the_pointer_names_the_voxel_under_it_and_a_click_leads_there(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page.execute_async_script(
        "window.wsisegViewer.home(); window.wsisegViewer.go({z: 20, y: 9, x: 7}).then(arguments[0])"
    )
    coronal = page.execute_script("return window.wsisegViewer.planes[1].element")
    scale = page.execute_script("return window.wsisegViewer.scale")
    z, y, x = 31, 9, 3
    across, down = (
        (n / 2 - 0.5 - at) * mm * scale
        for n, at, mm in ((SHAPE[2], x, SPACING[2]), (SHAPE[0], z, SPACING[0]))
    )
    ActionChains(page).move_to_element_with_offset(coronal, round(across), round(down)).perform()
    value = int(checkers(SHAPE)[z, y, x])
    said = page.execute_script("return document.getElementById('cursor').textContent")
    assert said == (
        f"{CLASSES[value].name}, value {IMAGE[0, z, y, x]} · "
        f"R {x * SPACING[2]:.1f}, A {y * SPACING[1]:.1f}, S {z * SPACING[0]:.1f} mm"
    )
    ActionChains(page).move_to_element_with_offset(coronal, round(across), round(down)).click().perform()
    wait_for(page, f"window.wsisegViewer.planes.map(plane => plane.index).join() === '{z},{y},{x}'")


def test_the_wheel_and_the_keys_go_through_the_slices(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    page.execute_async_script("window.wsisegViewer.go({z: 20, y: 9, x: 7}).then(arguments[0])")
    page.execute_script(
        "const wheel = new WheelEvent('wheel', {deltaY: -1, cancelable: true});"
        "window.wsisegViewer.planes[2].element.dispatchEvent(wheel)"
    )
    wait_for(page, "window.wsisegViewer.planes[2].index === 8")
    body = page.find_element("tag name", "body")
    body.send_keys(Keys.ARROW_DOWN)
    wait_for(page, "window.wsisegViewer.planes[2].index === 7")
    body.send_keys(Keys.PAGE_UP)
    wait_for(page, "window.wsisegViewer.planes[2].index === 17")
    body.send_keys(Keys.PAGE_UP)
    wait_for(page, "window.wsisegViewer.planes[2].index === 22")  # the last


def test_outlines_are_where_classes_meet(page: Any) -> None:
    page.execute_async_script(
        "const view = window.wsisegViewer; view.contrast(0, 1e9); view.update({opacity: 1});"
        "document.getElementById('outline').click(); view.go({z: 3, y: 9, x: 7}).then(arguments[0])"
    )
    mask = checkers(SHAPE)[3].astype(int)
    border = np.zeros(mask.shape, bool)
    border[:-1] |= mask[:-1] != mask[1:]
    border[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    marked = drawn(page, 0)[::-1, ::-1, 1] == 0  # the grey below is 127
    page.execute_script("document.getElementById('outline').click()")
    np.testing.assert_array_equal(marked, border)


def test_a_case_that_cannot_be_shown_says_so_and_stops_no_other(tmp_path: Path) -> None:
    skip_without_browser()
    for name in ("v", "w"):
        stored(tmp_path / "out" / f"{name}.ome.zarr", checkers(SHAPE))
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "v.nii.gz").write_bytes(b"no such file")
    with open_viewer(tmp_path / "out", images=tmp_path / "scans") as server, browser() as driver:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        driver.get(server.url)
        said = "document.getElementById('message').textContent"
        wait_for(driver, f"{said}.startsWith('v cannot be shown: ')")
        assert "cannot be read as NIfTI" in driver.execute_script(f"return {said}")
        driver.find_elements("css selector", "#cases button")[1].click()
        wait_for(
            driver, "window.wsisegViewer?.facts?.name === 'w' && window.wsisegViewer.planes[0].index >= 0"
        )
        server.shutdown()


def test_a_polygon_that_was_begun_on_a_slide_is_not_kept_when_a_volume_is_opened(tmp_path: Path) -> None:
    skip_without_browser()
    from selenium.webdriver.common.action_chains import ActionChains

    mask = checkerboard((600, 700), side=50)
    finished(tmp_path / "a.ome.zarr", make_plan(shape=mask.shape, classes=SLIDE_CLASSES), mask)
    stored(tmp_path / "b.ome.zarr", checkers(SHAPE))
    with open_viewer(tmp_path) as server, browser() as driver:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        driver.get(server.url)
        wait_for(driver, "window.wsisegViewer?.items?.mask?.getFullyLoaded()")
        driver.find_element("id", "initials").send_keys("AB\t")
        driver.find_element("id", "draw").click()
        slide = driver.find_element("id", "slide")
        for right, down in ((0, 0), (60, 0), (60, 60)):
            ActionChains(driver).move_to_element_with_offset(slide, right, down).click().perform()
        wait_for(driver, "document.querySelectorAll('#drawing *').length > 0")
        driver.find_elements("css selector", "#cases button")[1].click()
        wait_for(driver, "window.wsisegViewer?.planes?.every(plane => plane.index >= 0)")
        assert driver.execute_script("return document.querySelectorAll('#drawing *').length") == 0
        assert list(tmp_path.glob("*.geojson")) == []
        server.shutdown()
