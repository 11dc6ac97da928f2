"""A batch to which random things happen, again and again: nothing may be lost, and no byte may differ.

    python -m benchmarks.faults FOLDER [--rounds 30] [--seed N] [--servers 1] [--json]

First the undisturbed run on the 20 good inputs of `benchmarks.inputs`. Then `wsiseg segment --jobs 2` with a
lease of 3 s on a folder of its own, in which at random moments something happens (`benchmarks.disturbances`):
processes are killed, or stopped for longer than their lease while another batch goes on; the disk is full or
read-only for a while, where a file system in memory can be mounted. A batch that ended is started again; one
that had finished everything is started on a new folder. At the end each folder is finished undisturbed, and
every mask is held against the undisturbed run byte for byte.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import wsiseg
from benchmarks.disturbances import (
    EVERYWHERE,
    LEASE_S,
    ON_A_DISK,
    ROOT,
    Batch,
    Place,
    kill_server,
    own_disk,
)
from benchmarks.inputs import make_inputs
from benchmarks.watched import segment_command

CONFIG = f"threads = 1\nlease_s = {LEASE_S}\nslab = 32\nchunk = 32\n"
SERVER = "server killed"


@dataclass
class Found:
    """What happened, and what came of it."""

    faults: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    folders: int = 0
    twice: list[str] = field(default_factory=list)
    slabs_again: int = 0
    losses: list[str] = field(default_factory=list)
    undisturbed_s: float = 0.0
    seconds: float = 0.0


def trial(
    arguments: Sequence[str], folder: Path, *, rounds: int, seed: int, kinds: Sequence[str] | None = None
) -> Found:
    """Disturb batches on inputs so many times; `kinds` are names of disturbances, by default all."""
    begun, found = time.monotonic(), Found()
    config, disk, log = folder / "config.toml", folder / "disk", folder / "log.txt"
    config.write_text(CONFIG)
    options = ["--config", str(config)]
    whole = folder / "whole"
    run([*arguments, "--out", str(whole), *options], log)
    found.undisturbed_s = time.monotonic() - begun
    mounted = own_disk(disk)
    known = EVERYWHERE | (ON_A_DISK if mounted else {})
    names = [name for name in known if kinds is None or name in kinds]
    rng = random.Random(seed)
    drawn: list[str] = []
    while len(drawn) < rounds:  # each kind as often as the others
        drawn += rng.sample(names, len(names))
    try:
        while sum(found.faults.values()) < rounds:
            found.folders += 1
            out = disk / f"out-{found.folders}"
            command = segment_command(*arguments, "--out", str(out), "--jobs", "2", *options)
            place = Place(out, disk if mounted else None, partial(Batch, command, log), log, rng)
            disturb(place, found, drawn[:rounds])
            run([*arguments, "--out", str(out), *options], log)
            found.losses += losses(out, whole)
            shutil.rmtree(out)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", disk], check=True)
    found.seconds = time.monotonic() - begun
    return found


def run(arguments: Sequence[str], log: Path) -> None:
    """A batch undisturbed, to its end; every case must be finished."""
    if (status := Batch(segment_command(*arguments), log).wait()) != 0:
        raise SystemExit(f"an undisturbed batch ended with status {status}; see {log}")


def disturb(place: Place, found: Found, drawn: Sequence[str]) -> None:
    """Let things happen until there were enough, or a batch has finished all cases."""
    known, written = EVERYWHERE | ON_A_DISK, stamps(place.out)
    while (number := sum(found.faults.values())) < len(drawn):
        batch = place.ensure()
        if not place.until_work(batch) and batch.wait() == 0:
            break
        time.sleep(place.rng.uniform(0, 1.5))
        if not batch.running:
            continue
        hit = known[drawn[number]](place, batch)
        found.faults[drawn[number]] += 1
        found.hits[drawn[number]] += hit
        print(f"{number + 1} of {len(drawn)}: {drawn[number]}", file=sys.stderr, flush=True)
        written = compare(written, stamps(place.out), found)
    for batch in place.batches:
        batch.wait()
    compare(written, stamps(place.out), found)
    found.restarts += place.restarts


def stamps(out: Path) -> dict[str, int]:
    """When the entries of all ledgers were written, by their place."""
    entries = [p for name in ("slab-*.json", "complete.json") for p in out.rglob(f"*.ome.zarr/ledger/{name}")]
    found = {}
    for path in entries:
        try:
            found[path.relative_to(out).as_posix()] = path.stat().st_mtime_ns
        except OSError:
            continue
    return found


def compare(before: dict[str, int], after: dict[str, int], found: Found) -> dict[str, int]:
    """Count what was written again; returns what is there now."""
    changed = [name for name, stamp in before.items() if after.get(name) != stamp]
    found.twice += [name for name in changed if name.endswith("complete.json")]
    found.slabs_again += sum(not name.endswith("complete.json") for name in changed)
    return after


def content(out: Path) -> dict[str, bytes]:
    """The bytes of all masks: every level in the stores, and those on the grids of volumes."""
    files = [path for store in out.rglob("*.ome.zarr") for path in (store / "labels").rglob("*")]
    files += list(out.rglob("*.mask.nii.gz"))
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files if path.is_file()}


def losses(out: Path, whole: Path) -> list[str]:
    """What is not as in the undisturbed run, in sentences."""
    made, expected = content(out), content(whole)
    wrong = [
        f"{out.name}: {name} differs"
        for name in made.keys() | expected.keys()
        if made.get(name) != expected.get(name)
    ]
    for store in out.rglob("*.ome.zarr"):
        wrong += [f"{out.name}: {store.name}: {problem}" for problem in wsiseg.open_store(store).verify()]
    wrong += [f"{out.name}: {path.name} is left" for path in out.rglob("*.failure.json")]
    if (out / ".claims").exists():
        wrong.append(f"{out.name}: claims are left")
    return wrong


def with_servers(inputs: Path, folder: Path, found: Found, *, count: int, seed: int) -> None:
    """A flow at work on the folder `inputs` whose Prefect server is killed, so many times; then a batch."""
    begun, config, log, out = time.monotonic(), folder / "config.toml", folder / "log.txt", folder / "flow"
    place = Place(out, None, partial(Batch, (), log), log, random.Random(seed))
    parameters: dict[str, object] = {
        "folder": str(inputs), "out": str(out), "config": str(config), "jobs": 2
    }  # fmt: skip
    for number in range(count):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        found.hits[SERVER] += kill_server(place, parameters, folder / f"prefect-{number}", port=port)
        found.faults[SERVER] += 1
    run([str(inputs), "--out", str(out), "--config", str(config)], log)
    expected = content(folder / "whole")
    found.losses += [f"flow: {name} differs" for name, data in content(out).items() if data != expected[name]]
    found.seconds += time.monotonic() - begun


def show(found: Found) -> None:
    """What a person reads."""
    print(f"{'fault':16} {'times':>6} {'in the middle of a case':>24}")
    for name, times in found.faults.items():
        print(f"{name:16} {times:6} {found.hits[name]:24}")
    print(f"{'all':16} {found.faults.total():6} {found.hits.total():24}")
    print(
        f"{found.restarts} starts of batches on {found.folders} folders; {len(found.twice)} cases done "
        f"twice, {found.slabs_again} slabs written again; {len(found.losses)} losses; undisturbed "
        f"{found.undisturbed_s:.0f} s, all {found.seconds:.0f} s"
    )
    for sentence in [*found.losses, *(f"done twice: {name}" for name in found.twice)]:
        print(f"  {sentence}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--servers", type=int, default=1, help="rounds with a Prefect server")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    for name in ("whole", "flow"):
        shutil.rmtree(folder / name, ignore_errors=True)
    inputs = make_inputs(folder / "inputs", shared=arguments.shared.resolve(), bad=False)
    found = trial(inputs.arguments(), folder, rounds=arguments.rounds, seed=arguments.seed)
    if arguments.servers:
        with_servers(inputs.folder / "in", folder, found, count=arguments.servers, seed=arguments.seed)
    if arguments.json:
        shown: dict[str, Any] = dict(vars(found))
        print(json.dumps(shown, indent=1))
    else:
        show(found)
    raise SystemExit(1 if found.losses else 0)


if __name__ == "__main__":
    main()
