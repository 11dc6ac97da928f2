"""A Prefect server that goes away in the middle of a batch: are all masks there, and the same bytes?

    python -m benchmarks.server_away 120            # seconds until it comes back
    python -m benchmarks.server_away never          # it stays away

Prints one JSON object. The batch is `--cases` shipped crops, enlarged `--size` times along each axis.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.cases import CROPS, NAMES
from tests.servers import Server, parameters

ENDS = ("Completed", "Failed", "Crashed")
MODEL = "demo-breast8"
SETTINGS = "threads = 1\nlease_s = 5.0\nslab = 64\nchunk = 64\n"
"""What fixes the floats of a mask, makes it in several slabs, and how long a case of a dead process waits."""


def make_folder(folder: Path, *, cases: int, size: int) -> Path:
    """Slides of one known pixel size, each another part of the shipped crops."""
    folder.mkdir(parents=True)
    for number in range(cases):
        with Image.open(CROPS / "images" / f"{NAMES[number % len(NAMES)]}.png") as opened:
            crop = np.roll(np.asarray(opened.convert("RGB")), 37 * number, axis=0)
        Image.fromarray(np.tile(crop, (size, size, 1))).save(folder / f"case-{number:02}.png")
    return folder


def bytes_of(out: Path) -> dict[str, dict[str, bytes]]:
    """Every stored byte of the masks of a folder of results, by case."""
    return {
        store.name: {
            str(f.relative_to(store)): f.read_bytes()
            for f in sorted(store.rglob("labels/**/c/**/*"))
            if f.is_file()
        }
        for store in sorted(out.glob("*.ome.zarr"))
    }


def finished(out: Path) -> int:
    """Cases that have their report, which is written last."""
    return len(list(out.glob("*.report.json")))


def state_of(server: Server, run: str) -> str:
    """The name of the state of a flow run."""
    body = json.dumps({"flow_runs": {"name": {"any_": [run]}}}).encode()
    asked = urllib.request.Request(
        f"{server.api}/flow_runs/filter", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return str(json.load(answer)[0]["state"]["name"])


def wait_for_state(server: Server, run: str, *states: str, limit_s: float) -> str:
    """The first of the states that a flow run comes to, or the one that it is in when time is up."""
    begun = time.monotonic()
    while (found := state_of(server, run)) not in states and time.monotonic() - begun < limit_s:
        time.sleep(0.5)
    return found


@dataclass(frozen=True)
class Job:
    """A folder of slides, the masks of an undisturbed run, and a server with a worker."""

    server: Server
    work: Path
    cases: int
    size: int = 2

    def prepare(self) -> None:
        """Make the slides, and segment them without Prefect."""
        make_folder(self.work / "in", cases=self.cases, size=self.size)
        (self.work / "wsiseg.toml").write_text(SETTINGS)
        options = ("--model", MODEL, "--mpp", "0.5", "--config", str(self.work / "wsiseg.toml"))
        plain = ("wsiseg", "segment", str(self.work / "in"), "--out", str(self.work / "plain"), *options)
        ran = self.server.run(*plain)
        assert ran.returncode == 0, ran.stderr

    def begin(self, name: str, **more: object) -> None:
        """Have the worker segment the folder into another one, by a flow run of the same name."""
        given = {
            "folder": self.work / "in",
            "out": self.work / name,
            "model": MODEL,
            "mpp": 0.5,
            "config": self.work / "wsiseg.toml",
        } | more
        run = ("prefect", "deployment", "run", "segment-folder/segment-folder", "--flow-run-name", name)
        ran = self.server.run(*run, *parameters(**given))
        assert ran.returncode == 0, ran.stderr + ran.stdout

    def wait_for(self, name: str, cases: int, *, limit_s: float) -> None:
        """Until so many cases are finished."""
        begun = time.monotonic()
        while finished(self.work / name) < cases:
            if time.monotonic() - begun > limit_s:
                raise TimeoutError(f"{finished(self.work / name)} of {cases} cases: {self.server.said()}")
            time.sleep(0.1)

    def is_as_undisturbed(self, name: str) -> bool:
        """True if every byte of every mask is."""
        made = bytes_of(self.work / name)
        return len(made) == self.cases and all(made.values()) and made == bytes_of(self.work / "plain")

    def measure(self, name: str, *, away_s: float | None, limit_s: float = 3600) -> dict[str, Any]:
        """One batch whose server goes away once a case is finished, and perhaps comes back."""
        self.begin(name)
        self.wait_for(name, 1, limit_s=limit_s)
        before, begun = finished(self.work / name), time.monotonic()
        self.server.go_away()
        state = None
        if away_s is not None:
            time.sleep(away_s)
            self.server.begin()
        back = finished(self.work / name)
        self.wait_for(name, self.cases, limit_s=limit_s)
        seconds = time.monotonic() - begun
        if away_s is not None:
            state = wait_for_state(self.server, name, *ENDS, limit_s=limit_s)
        return {
            "away_s": away_s,
            "cases": self.cases,
            "finished when the server went": before,
            "finished when it was back": None if away_s is None else back,
            "finished": finished(self.work / name),
            "equal to an undisturbed run": self.is_as_undisturbed(name),
            "seconds from then to the last mask": round(seconds, 1),
            "seconds from then to the end": round(time.monotonic() - begun, 1),
            "state of the run": state,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("seconds", help="until the server comes back, or never")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--size", type=int, default=3)
    parser.add_argument("--log", type=Path, help="where to keep what the processes said")
    parser.add_argument("--setting", action="append", default=[], help="of Prefect, NAME=VALUE")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        server = Server(Path(work), **dict(text.split("=", 1) for text in given.setting))
        job = Job(server, Path(work), given.cases, given.size)
        try:
            server.begin()
            server.deploy()
            job.prepare()
            away_s = None if given.seconds == "never" else float(given.seconds)
            print(json.dumps(job.measure("out", away_s=away_s), indent=1))
        finally:
            if given.log:
                given.log.write_text(server.log.read_text())
            server.stop()


if __name__ == "__main__":
    main()
