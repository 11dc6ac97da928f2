"""The plan of the house: imports point down, libraries stay in their rooms, names are kept."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

import wsiseg
from tests.conftest import REPOSITORY
from wsiseg.cli import app

PACKAGE = REPOSITORY / "wsiseg"

LAYERS = [
    {"bounded", "errors", "geometry", "classes", "groups", "config", "progress"},
    {"behind", "windows", "tissue", "metrics", "manifest", "memory", "names", "resample", "files", "surface",
     "reliability", "tallies", "objects", "s3", "copies", "outlines", "structure", "planes"},
    {"sources", "preprocess", "plan", "claims", "ledger", "store", "ngff", "pyramid", "models", "graph",
     "annotations"},
    {"backends", "predict", "execute", "overlay", "export", "volume_scores", "orthogonal", "comparing",
     "reviews"},
    {
        "prepare",
        "images",
        "execution",
        "smaller",
        "diagnosis",
        "finishing",
        "batch",
        "pipeline",
        "results",
        "scoring",
        "pictures",
        "exports",
        "report",
        "training",
        "demo",
        "viewer",
    },
    {"cli", "bars", "display", "prefect_plugin", "__main__"},
]  # fmt: skip
ROOMS = {
    "openslide": {"sources"},
    "tifffile": {"export", "sources"},
    "PIL": {"export", "sources", "viewer"},
    "zarr": {"sources", "store", "pyramid"},
    "ome_zarr_models": {"ngff"},
    "numba": {"execute"},
    "torch": {
        "backends",
        "graph",
        "memory",
        "models",
        "preprocess",
        "predict",
        "execute",
        "execution",
        "training",
    },
    "safetensors": {"models"},
    "shapely": {"annotations", "export", "reviews"},
    "skimage": {"tissue", "annotations", "training"},
    "scipy": {"outlines", "results", "structure", "tissue", "surface", "training"},
    "nibabel": {"sources"},
    "pydicom": {"export", "sources"},
    "highdicom": {"export"},
    "wsidicom": {"sources"},
    "SimpleITK": {"sources"},
    "matplotlib": {"overlay", "orthogonal", "training"},
    "jinja2": {"batch"},
    "s3fs": {"s3"},
    "aiohttp": {"s3"},
    "botocore": {"s3"},
    "typer": {"cli"},
    "rich": {"bars", "cli", "display"},
    "prefect": {"prefect_plugin"},
    "yaml": {"bounded", "training"},
    "anywidget": {"viewer"},
}


OF_MARKS = (
    "--class-names", "--annotation-overlap", "--unannotated", "--annotation-units", "--annotation-frame",
)  # fmt: skip


def place(path: Path) -> str:
    """The module or subpackage of wsiseg that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "wsiseg":
                found |= {f"wsiseg.{alias.name}" for alias in node.names}
    return found


def test_imports_only_point_down() -> None:
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    upward = [
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"
        for name in imports(path)
        if name.startswith("wsiseg.")
        and name.split(".")[1] not in wsiseg.__all__
        and level[name.split(".")[1]] > level[place(path)]
    ]
    assert upward == []


def test_every_module_has_its_place() -> None:
    found = {place(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert found == set().union(*LAYERS)


def test_each_outside_library_stays_in_its_room() -> None:
    strayed = [
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        for name in imports(path)
        if (room := ROOMS.get(name.split(".")[0])) is not None and place(path) not in room
    ]
    assert strayed == []


def test_what_stands_outside_uses_public_names_only() -> None:
    allowed = {f"wsiseg.{name}" for name in wsiseg.__all__} | {"wsiseg"}
    # Types and the demonstration are named by their module; a yardstick needs the same allocator.
    allowed |= {
        "wsiseg.metrics",
        "wsiseg.report",
        "wsiseg.demo",
        "wsiseg.display",
        "wsiseg.memory",
        "wsiseg.predict",
        "wsiseg.store",
    }
    # A benchmark may hold an executor without a file behind it against the bare network.
    streaming = {
        "wsiseg.execute.streaming",
        "wsiseg.geometry",
        "wsiseg.sources.array",
        "wsiseg.sources.cached",
    }
    # What a network costs is counted by the code that `models show` runs.
    own = {
        "streaming.py": streaming,
        # A mask of any size without an image behind it, and the viewer's server without a browser.
        "review.py": {
            "wsiseg.annotations",
            "wsiseg.classes",
            "wsiseg.geometry",
            "wsiseg.plan",
            "wsiseg.viewer.server",
            "wsiseg.viewer.tiles",
        },
        # A case of a batch is a task: the flow gives them out itself.
        "segment_folder.py": {
            "wsiseg.batch.run",
            "wsiseg.batch.segment",
            "wsiseg.batch.summary",
            "wsiseg.errors",
        },
        "segment_one.py": {
            "wsiseg.batch.discovery",
            "wsiseg.batch.run",
            "wsiseg.batch.workers",
            "wsiseg.claims",
        },
        # The device of a case says whose slot it holds.
        "segment_slide.py": {"wsiseg.config"},
        "common.py": {"wsiseg.errors"},
        "models.py": {"wsiseg.models.facts", "wsiseg.models.importing"},
        "volumes.py": {"wsiseg.models.importing", "wsiseg.preprocess"},
    }
    # Quality is measured by the trainer's own parts, case by case, and stored as the program stores.
    quality = {
        "wsiseg.errors",
        "wsiseg.files",
        "wsiseg.geometry",
        "wsiseg.manifest",
        "wsiseg.models.card",
        "wsiseg.models.facts",
        "wsiseg.models.importing",
        "wsiseg.models.registry",
        "wsiseg.models.zoo",
        "wsiseg.preprocess",
        "wsiseg.training.calibration",
        "wsiseg.training.cases",
        "wsiseg.training.checkpoint",
        "wsiseg.training.loop",
        "wsiseg.training.run",
        "wsiseg.training.sections",
        "wsiseg.training.validation",
        "wsiseg.training.watch",
        "wsiseg.volume_scores",
    }
    for folder in ("flows", "benchmarks"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            used = {name for name in imports(path) if name.split(".")[0] == "wsiseg"}
            more = quality if path.parent.name == "quality" else own.get(path.name, set())
            assert used <= allowed | more, path


def test_the_process_that_gives_out_the_cases_of_a_batch_does_not_wait_for_torch() -> None:
    code = "import sys, wsiseg.batch.segment, wsiseg.cli; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment) == "False\n"


def test_the_public_names_are_these() -> None:
    assert sorted(wsiseg.__all__) == [
        "WsisegError",
        "build_network",
        "evaluate",
        "load_network",
        "load_predictor",
        "open_source",
        "open_store",
        "review",
        "segment",
    ]
    for name in wsiseg.__all__:
        assert callable(getattr(wsiseg, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = wsiseg.nothing
    assert dir(wsiseg) == wsiseg.__all__


def options(command: Any) -> set[str]:
    return {name for p in command.params for name in (p.opts if p.param_type_name == "option" else [p.name])}


def test_the_command_line_is_this() -> None:
    root: Any = typer.main.get_command(app)
    models = root.commands["models"]
    found = {name: options(c) for name, c in root.commands.items() if name != "models"}
    found |= {f"models {name}": options(c) for name, c in models.commands.items()}
    assert found == {
        "info": {"input", "--mpp", "--json"},
        "segment": {
            "inputs", "--out", "--model", "--annotations", *OF_MARKS, "--region", "--device", "--mpp",
            "--executor", "--backend", "--precision", "--memory", "--taper", "--exact",
            "--image", "--confidence", "--structure",
            "--no-tissue-filter",
            "--allow-upsampling", "--trust-code", "--keep-identifiers", "--config", "--jobs", "--part",
            "--overwrite", "--json",
        },
        "evaluate": {
            "--prediction", "--truth", "--corrected", "--out", "--model", "--input", *OF_MARKS, "--json",
        },
        "compress": {
            "model", "manifest", "--out", "--root", "--split", "--allow-upsampling", "--trust-code",
            "--overwrite", "--json",
        },
        "verify": {"store", "--json"},
        "export": {
            "store", "--to", "--out", "--tolerance", "--min-area", "--merge", "--frame", "--background",
            "--input", "--colors", "--mpp", "--regions", "--structure", "--around", "--reviewer", "--patient",
            "--split", "--licence", "--overwrite", "--json",
        },
        "view": {
            "path", "--images", "--truth", "--mask", "--model", "--mpp", *OF_MARKS, "--port", "--host",
            "--read-only", "--json",
        },
        "train": {"run", "--json"},
        "demo": {"--out", "--json"},
        "models list": {"--json"},
        "models show": {"name", "--trust-code", "--json"},
        "models ensemble": {"models", "--out", "--overwrite", "--json"},
        "models import": {
            "checkpoint", "--out", "--network", "--arguments", "--trust-code", "--overwrite", "--json",
        },
        "models calibrate": {
            "model", "manifest", "--out", "--root", "--split", "--allow-upsampling", "--device",
            "--trust-code", "--overwrite", "--json",
        },
    }  # fmt: skip


def test_no_file_names_a_machine_or_an_index() -> None:
    pattern = re.compile(r"/(root|home|work|opt)/\w|pypi-more|index-url", re.IGNORECASE)
    tracked = [
        path
        for folder in ("wsiseg", "flows", "benchmarks", "docs", "data_manifests", ".ci")
        for path in (REPOSITORY / folder).rglob("*")
        if path.suffix in {".py", ".md", ".json", ".yaml", ".csv", ".toml", ""} and path.is_file()
    ]
    tracked += [
        REPOSITORY / name for name in ("README.md", "Makefile", "pyproject.toml", "requirements.lock")
    ]
    assert [str(p) for p in tracked if p.is_file() and pattern.search(p.read_text("utf-8"))] == []
