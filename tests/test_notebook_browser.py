"""`wsiseg.review` in a real JupyterLab, at an address as JupyterHub gives it."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.browsers import WAIT_S, browser, skip_without_browser, wait_for
from tests.conftest import REPOSITORY
from tests.test_store import finished, make_plan
from tests.test_viewer import CLASSES, checkerboard
from tests.test_viewer_volumes import SHAPE, checkers, stored
from tests.volume_files import random_voxels

pytestmark = pytest.mark.browser

MASK = checkerboard((600, 700), side=50)
START_S = 60.0


def write_notebook(path: Path, code: str) -> None:
    cell: dict[str, Any] = {
        "cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None,
        "source": code,
    }  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    found = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(found))


@contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """The address of a JupyterLab for a folder, below the path of one user of a hub."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/user/someone/"
    own = {f"JUPYTER_{name}_DIR": str(folder / ".jupyter" / name.lower()) for name in ("CONFIG", "RUNTIME")}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
        "--ServerApp.base_url=/user/someone/", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}",
        "--LabApp.news_url=None",
    ]  # fmt: skip
    environment = {**os.environ, **own, "PYTHONPATH": str(REPOSITORY), "IPYTHONDIR": str(folder / ".ipython")}
    with (folder / "jupyter.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            end = time.monotonic() + START_S
            while True:
                try:
                    with urllib.request.urlopen(f"{url}api", timeout=5):
                        break
                except OSError:
                    assert process.poll() is None, (folder / "jupyter.log").read_text()[-2000:]
                    assert time.monotonic() < end, "JupyterLab does not start"
                    time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=WAIT_S)


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser inside the frame that a cell has shown."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    skip_without_browser()
    if importlib.util.find_spec("jupyterlab") is None:
        pytest.skip("jupyterlab is not installed: pip install '.[dev]'")
    folder = tmp_path_factory.mktemp("notebook")
    finished(folder / "out" / "a.ome.zarr", make_plan(shape=MASK.shape, classes=CLASSES), MASK)
    stored(folder / "out" / "v.ome.zarr", checkers(SHAPE), image=random_voxels((1, *SHAPE)))
    write_notebook(folder / "trial.ipynb", "import wsiseg\nwsiseg.review('out')")
    with jupyterlab(folder) as url, browser() as driver:
        driver.get(f"{url}lab/tree/trial.ipynb")
        wait_for(driver, "document.querySelector('.jp-Notebook .jp-Cell .cm-content')")
        wait_for(
            driver, "document.querySelector('.jp-NotebookPanel-toolbar')?.textContent.includes('Python 3')"
        )
        driver.find_element("css selector", ".jp-Notebook .jp-Cell .cm-content").click()
        ActionChains(driver).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
        wait_for(driver, "document.querySelector('iframe[sandbox]')")
        driver.switch_to.frame(driver.find_element("css selector", "iframe[sandbox]"))
        yield driver


def test_tiles_of_a_slide_come_through_the_kernel(frame: Any) -> None:
    wait_for(frame, "window.wsisegViewer?.items?.mask?.getFullyLoaded()")
    assert frame.execute_script("return [...document.images].every(one => one.naturalWidth > 0)")
    frame.execute_script("window.wsisegViewer.update({opacity: 1})")
    canvas = "window.wsisegViewer.osd.drawer.canvas"
    wait_for(
        frame,
        "(() => { const view = window.wsisegViewer, at = view.items.mask.imageToViewerElementCoordinates("
        f"new OpenSeadragon.Point(75.5, 25.5)), ratio = {canvas}.width / view.osd.container.clientWidth;"
        f"return [...{canvas}.getContext('2d').getImageData(at.x * ratio, at.y * ratio, 1, 1).data].join()"
        f" === '{','.join(map(str, CLASSES[MASK[25, 75]].color))},255'; }})()",
    )


def test_slices_of_a_volume_come_through_the_kernel(frame: Any) -> None:
    frame.find_elements("css selector", "#cases button")[1].click()
    wait_for(frame, "window.wsisegViewer?.planes?.every(plane => plane.index >= 0)")
    index = frame.execute_script("return window.wsisegViewer.planes[0].index")
    values = frame.execute_script("return Array.from(window.wsisegViewer.planes[0].values.mask)")
    np.testing.assert_array_equal(np.reshape(values, SHAPE[1:]), checkers(SHAPE)[index])
    assert frame.execute_script("return document.getElementById('message').hidden")


def test_the_page_in_a_notebook_reaches_nothing_but_its_kernel(frame: Any) -> None:
    assert frame.execute_script("return window.origin") == "null"
    told = frame.execute_async_script(
        "fetch('//127.0.0.1:1/x').then(answer => answer.status).then(arguments[0])"
    )
    assert told == 404  # the kernel's own server was asked
