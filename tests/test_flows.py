"""The flows: on the embedded server's test harness, and on a real server with a worker."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import wsiseg
from tests.conftest import REPOSITORY, SLIDE
from tests.servers import Server

pytestmark = [pytest.mark.server, pytest.mark.timeout(420)]

CROPS = REPOSITORY / "wsiseg" / "samples" / "ynet-breast8"
NAME = "1222_1_7200_3600_2"
CROP, TRUTH = CROPS / "images" / f"{NAME}.png", CROPS / "masks" / f"{NAME}.png"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("prefect"))
    try:
        started.begin()
        started.deploy()
        yield started
    finally:
        started.stop()


def test_the_literal_command_gives_the_mask_of_the_command_line(server: Server, tmp_path: Path) -> None:
    ran = server.run(
        "prefect", "deployment", "run", "segment-slide",
        "--param", f"slide={SLIDE}", "--param", f"out={tmp_path / 'flow'}", "--watch",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr + ran.stdout + server.said()
    report = wsiseg.segment(SLIDE, tmp_path / "direct")
    flow_store = wsiseg.open_store(tmp_path / "flow" / f"{SLIDE.stem}.ome.zarr")
    np.testing.assert_array_equal(flow_store.mask()[:], wsiseg.open_store(report.store).mask()[:])


def test_annotations_are_scored_and_published_as_a_table(server: Server, tmp_path: Path) -> None:
    parameters = {
        "slide": CROP,
        "out": tmp_path / "flow",
        "model": "demo-breast8",
        "mpp": 0.5,
        "annotations": TRUTH,
    }
    given = [part for name, value in parameters.items() for part in ("--param", f"{name}={value}")]
    ran = server.run("prefect", "deployment", "run", "segment-slide", *given, "--watch")
    assert ran.returncode == 0, ran.stderr + ran.stdout + server.said()
    report = wsiseg.segment(CROP, tmp_path / "direct", "demo-breast8", mpp=0.5, annotations=TRUTH)
    flow_store = wsiseg.open_store(tmp_path / "flow" / f"{NAME}.ome.zarr")
    np.testing.assert_array_equal(flow_store.mask()[:], wsiseg.open_store(report.store).mask()[:])
    written = json.loads((tmp_path / "flow" / f"{NAME}.report.json").read_text())
    assert report.scores is not None
    assert written["scores"] == report.scores.model_dump(mode="json")
    tables = server.run("prefect", "artifact", "ls", "--all")
    assert re.search(r"iou-1222", tables.stdout), tables.stdout


def test_a_volume_goes_through_its_own_deployment(server: Server, tmp_path: Path) -> None:
    volumes = REPOSITORY / "wsiseg" / "samples" / "msd-hippocampus"
    volume, truth = (volumes / part / "hippocampus_149.nii.gz" for part in ("images", "labels"))
    ran = server.run(
        "prefect", "deployment", "run", "segment-volume",
        "--param", f"volume={volume}", "--param", f"out={tmp_path / 'flow'}",
        "--param", f"annotations={truth}", "--watch",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr + ran.stdout + server.said()
    plain = wsiseg.segment(volume, tmp_path / "plain")
    made = (tmp_path / "flow" / "hippocampus_149.mask.nii.gz").read_bytes()
    assert plain.nifti is not None
    assert made == plain.nifti.read_bytes()


def test_a_folder_is_segmented_a_case_a_task_and_its_failures_fail_the_run(
    server: Server, tmp_path: Path
) -> None:
    folder, marks = tmp_path / "in", tmp_path / "marks"
    for place in (folder, marks):
        place.mkdir()
    shutil.copy(CROP, folder)
    shutil.copy(TRUTH, marks)
    volume = REPOSITORY / "wsiseg" / "samples" / "msd-hippocampus" / "images" / "hippocampus_149.nii.gz"
    shutil.copy(volume, folder)
    (folder / "broken.svs").write_text("text")
    ran = server.run(
        "prefect", "deployment", "run", "segment-folder",
        "--param", f"folder={folder}", "--param", f"out={tmp_path / 'flow'}", "--param", "jobs=2",
        "--param", f"annotations={marks}", "--param", "mpp=0.5", "--param", "model=demo-breast8", "--watch",
    )  # fmt: skip
    assert ran.returncode != 0
    summary = json.loads((tmp_path / "flow" / "summary.json").read_text())
    assert {row["case"]: row["status"] for row in summary["cases"]} == {
        "broken": "failed", NAME: "finished", "hippocampus_149": "failed",
    }  # fmt: skip
    rows = {row["case"]: row for row in summary["cases"]}
    assert "model demo-breast8 is for 3 channels on axes yx" in rows["hippocampus_149"]["error"]
    report = wsiseg.segment(CROP, tmp_path / "direct", "demo-breast8", mpp=0.5)
    assert summary["agreement"][0]["pooled"]["mean"]["value"] > 0.1
    flow_store = wsiseg.open_store(tmp_path / "flow" / f"{NAME}.ome.zarr")
    np.testing.assert_array_equal(flow_store.mask()[:], wsiseg.open_store(report.store).mask()[:])
    table = server.run("prefect", "artifact", "inspect", "batch-flow")
    assert "broken" in table.stdout, table.stderr
    assert "1 of 3 cases are finished, 2 failed" in server.log.read_text()


def test_the_full_name_and_evaluate_work_too_and_bad_input_fails_the_run(
    server: Server, tmp_path: Path
) -> None:
    store = wsiseg.segment(CROP, tmp_path, "demo-breast8", mpp=0.5).store
    ran = server.run(
        "prefect", "deployment", "run", "evaluate/evaluate",
        "--param", f"prediction={store}", "--param", f"truth={TRUTH}",
        "--param", f"out={tmp_path / 's.json'}", "--watch",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr + ran.stdout + server.said()
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores == wsiseg.evaluate(store, TRUTH).model_dump(mode="json")
    failed = server.run(
        "prefect", "deployment", "run", "segment-slide",
        "--param", f"slide={tmp_path / 'none.svs'}", "--param", f"out={tmp_path}", "--watch",
    )  # fmt: skip
    assert failed.returncode != 0
    unknown = server.run("prefect", "deployment", "run", "no-such-flow")
    assert unknown.returncode != 0


def test_flow_parameters_have_the_names_of_the_command_lines_options() -> None:
    from typing import Any

    import typer.main

    from flows.segment_folder import segment_folder
    from flows.segment_slide import segment_slide
    from flows.segment_volume import segment_volume
    from wsiseg.cli import app
    from wsiseg.config import AnnotationRules

    root: Any = typer.main.get_command(app)
    every = {p.name for p in root.commands["segment"].params} - {"json", "inputs", "no_tissue_filter"}
    assert set(segment_folder.parameters.properties) == every - {"region"} | {
        "folder",
        "tissue_filter",
        "dask",
    }
    options = every - {"jobs", "part"}
    assert set(segment_slide.parameters.properties) == options | {"slide", "tissue_filter"}
    of_slides = {"slide", "mpp", "region", "allow_upsampling", "structure", *AnnotationRules.model_fields}
    given = set(segment_slide.parameters.properties) - of_slides | {"volume"}
    assert set(segment_volume.parameters.properties) == given
