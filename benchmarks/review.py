"""What review waits for: annotations of a slide with many cells, and tiles of the mask of a large one.

python -m benchmarks.review FOLDER [--shapes 100000] [--side 100000] [--tiles 30]

annotations  a GeoJSON as QuPath writes it, polygons of 40 corners with 30 measurements each, made up,
             loaded in a process of its own: seconds and peak memory
tiles        of a made-up mask of side x side pixels, over HTTP from a store that was just written:
             milliseconds by level (0 is the finest)
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from wsiseg.classes import BREAST8
from wsiseg.plan import StorePlan
from wsiseg.store import CaseStore
from wsiseg.viewer.server import open_viewer
from wsiseg.viewer.tiles import TILE, top_level

CORNERS, MEASUREMENTS, PITCH_PX, COLUMNS = 40, 30, 90, 400
SLAB_ROWS, CHUNK = 1024, 512
LOADS = """
import json, resource, sys, time
from pathlib import Path
from wsiseg.annotations import open_truth
from wsiseg.classes import BREAST8
from wsiseg.geometry import Geometry
grid = Geometry(axes="yx", shape=(40_000, 40_000), spacing=(0.5, 0.5), unit="micrometer")
begun = time.perf_counter()
open_truth(Path(sys.argv[1]), geometry=grid, classes=BREAST8)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
print(json.dumps({"seconds": time.perf_counter() - begun, "peak_mb": peak}))
"""


def write_cells(path: Path, *, count: int) -> None:
    """Cells on a grid, each with an outline that goes up and down."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    with path.open("w", encoding="utf-8") as stream:
        stream.write('{"type": "FeatureCollection", "features": [')
        for n in range(count):
            middle = np.array([n % COLUMNS, n // COLUMNS]) * PITCH_PX + 50
            around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(20, 35, (CORNERS, 1))
            ring = np.round(middle + around, 2).tolist()
            measured = {f"Nucleus: measurement {k}": float(v) for k, v in enumerate(rng.random(MEASUREMENTS))}
            properties = {"classification": {"name": BREAST8[n % 8].name}, "measurements": measured}
            shape = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
            feature = {"type": "Feature", "geometry": shape, "properties": properties}
            stream.write(("," if n else "") + "\n" + json.dumps(feature))
        stream.write("]}")


def write_mask(path: Path, *, side: int) -> None:
    """A finished store whose mask is a board of fields in 8 classes; one that is there goes on."""
    plan = StorePlan(
        case=path.name, axes="yx", shape=(side, side), spacing=(0.25, 0.25), unit="micrometer",
        image_shape=None, image_spacing=None, slab_rows=SLAB_ROWS, chunk=CHUNK, classes=BREAST8, inputs={},
        execution={},
    )  # fmt: skip
    store = CaseStore.create_or_resume(path, plan)
    y, x = np.ogrid[:SLAB_ROWS, :side]
    board = ((y // 337 + x // 353) % 8).astype(np.uint8)
    for slab in store.pending():
        store.write(slab, board[: slab.rows.stop - slab.rows.start], record={})
    if store.completion() is None:
        store.complete({})


def tiles(path: Path, *, side: int, count: int) -> list[list[float]]:
    """Milliseconds of `count` tiles of every level."""
    name, rng = path.name.removesuffix(".ome.zarr"), random.Random(0)
    found = []
    with open_viewer(path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        connection = http.client.HTTPConnection(*server.server_address[:2])  # type: ignore[arg-type]
        for level in range(top_level((side, side)) + 1):
            most, spent = -(-side // 2**level // TILE), []
            for _ in range(count):
                row, column = rng.randrange(most), rng.randrange(most)
                begun = time.perf_counter()
                connection.request("GET", f"/tiles/mask/{level}/{row}/{column}/{name}")
                connection.getresponse().read()
                spent.append(1000 * (time.perf_counter() - begun))
            found.append(spent)
        connection.close()
        server.shutdown()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=100_000)
    parser.add_argument("--tiles", type=int, default=30)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    cells, mask = given.folder / "cells.geojson", given.folder / f"board-{given.side}.ome.zarr"
    write_cells(cells, count=given.shapes)
    done = subprocess.run([sys.executable, "-c", LOADS, str(cells)], check=True, stdout=subprocess.PIPE)
    said = json.loads(done.stdout)
    print(
        f"{given.shapes:,} shapes, {cells.stat().st_size / 1e6:.0f} MB: loaded in {said['seconds']:.1f} s, "
        f"peak {said['peak_mb']:.0f} MB",
        flush=True,
    )
    write_mask(mask, side=given.side)
    for level, spent in enumerate(tiles(mask, side=given.side, count=given.tiles)):
        print(f"level {level}: median {statistics.median(spent):.1f} ms, highest {max(spent):.1f} ms")


if __name__ == "__main__":
    main()
