"""Every parser of this program, given any bytes: a value or a WsisegError, nothing else.

`python -m tests.fuzz_guided SECONDS` has atheris look for inputs that reach new code, from valid files on;
`tests/test_fuzz.py` does the same with hypothesis, without following the code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY
from wsiseg.annotations.polygons import polygon_region
from wsiseg.batch.outcome import read_outcome
from wsiseg.claims import last_claim
from wsiseg.classes import BREAST8
from wsiseg.config import make_config
from wsiseg.errors import WsisegError
from wsiseg.files import companions
from wsiseg.ledger import Ledger
from wsiseg.manifest import read_manifest
from wsiseg.models.card import read_card
from wsiseg.plan import StorePlan, plan_of
from wsiseg.training.run import read_run

PLAN = StorePlan(
    case="a", axes="yx", shape=(40, 30), spacing=(0.5, 0.5), unit="micrometer", image_shape=None,
    image_spacing=None, slab_rows=32, chunk=16, classes=BREAST8, inputs={}, execution={},
)  # fmt: skip
GRID = (40, 30)
LONGEST = 1 << 16
ENTRY = {"plan": PLAN.identity, "rows": [0, 32], "sha256": "0", "counts": {"7": 9}, "places": [[1, 2, 3, 4]]}
MARKS = {
    "features": [
        {
            "type": "Feature",
            "properties": {"classification": {"name": "blood"}},
            "geometry": {"type": "Polygon", "coordinates": [[[1, 2], [20, 3.5], [9, 30], [1, 2]]]},
        }
    ]
}
FAILURE = {"case": "a", "input": "a.svs", "error": "no", "kind": "SourceError", "attempts": 2}


def _polygons(path: Path) -> Any:
    return polygon_region(path, grid=GRID).read((slice(0, GRID[0]), slice(0, GRID[1])))


TARGETS: dict[str, tuple[str, Callable[[Path], Any], list[bytes]]] = {
    "manifest": (
        "cases.csv",
        read_manifest,
        [p.read_bytes()[:2000] for p in sorted((REPOSITORY / "data_manifests").glob("*.csv"))],
    ),
    "card": (
        "card.json",
        read_card,
        [p.read_bytes() for p in sorted((REPOSITORY / "wsiseg" / "zoo").glob("*.json"))],
    ),
    "run": (
        "run.yaml",
        read_run,
        [b"name: a\nout: out\ndata: {manifest: m.csv}\nnetwork: {name: espnet}\npatches: {size: 64}\n"],
    ),
    "yaml": (
        "c.yaml",
        lambda p: make_config({}, file=p),
        [b"core: 64\nhalo: 16\nexact: true\nviews: none\n"],
    ),
    "toml": ("c.toml", lambda p: make_config({}, file=p), [b'core = 64\nmpp = 0.5\ndevice = "cpu"\n']),
    "geojson": ("a.geojson", _polygons, [json.dumps(MARKS).encode()]),
    "plan": (
        "s/ledger/plan.json",
        lambda p: plan_of(p.parent.parent),
        [PLAN.model_dump_json().encode()],
    ),
    "slab": (
        "slab-00000.json",
        lambda p: Ledger(p.parent, plan=PLAN).slab(p.name),
        [json.dumps(ENTRY).encode()],
    ),
    "complete": (
        "complete.json",
        lambda p: Ledger(p.parent, plan=PLAN).entry(p.name),
        [json.dumps({"plan": PLAN.identity, "levels": {"1": "0"}}).encode()],
    ),
    "claim": (
        ".claims/a/000001.json",
        lambda p: [(s.holder, s.is_gone, str(s)) for s in [last_claim(p.parents[2], "a")] if s],
        [b'{"host": "h", "machine": "m", "process": 7, "started": "9", "token": "t", "beat": 0}'],
    ),
    "failure": ("a.failure.json", lambda p: read_outcome(p.parent, "a"), [json.dumps(FAILURE).encode()]),
    "report": ("a.report.json", lambda p: read_outcome(p.parent, "a"), [json.dumps({"case": "a"}).encode()]),
    "companions": ("a.vms", companions, [b"[Virtual Microscope Specimen]\nImageFile=a.jpg\nMapFile=b.jpg\n"]),
}
"""By name: the file that is read, its reader, and valid files to begin with."""


def feed(name: str, data: bytes, folder: Path) -> None:
    """Have a parser read bytes; anything that is no WsisegError comes out."""
    file, read, _ = TARGETS[name]
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    try:
        read(path)
    except WsisegError as err:
        if "\n" in str(err):
            raise ValueError(f"more than one line: {err}") from None
