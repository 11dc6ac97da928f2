"""A command and all that it starts, watched while it runs: memory, end, and what it said."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLED_S = 0.2


@dataclass(frozen=True)
class Ran:
    """How a command ended; `peak_mb` is the most that it and all it started held together (PSS)."""

    status: int
    seconds: float
    peak_mb: float
    out: str
    err: str


def segment_command(*arguments: str) -> list[str]:
    """`wsiseg segment` with this interpreter."""
    return [sys.executable, "-m", "wsiseg", "segment", *arguments]


def watched(command: Sequence[str], **given: Any) -> Ran:
    """Run a command to its end."""
    begun, peak = time.monotonic(), 0.0
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="surrogateescape", **given
    )
    said: list[tuple[str, str]] = []
    reader = threading.Thread(target=lambda: said.append(process.communicate()))
    reader.start()
    while reader.is_alive():
        peak = max(peak, sum(map(held_mb, tree(process.pid))))
        reader.join(SAMPLED_S)
    return Ran(process.returncode, time.monotonic() - begun, peak, *said[0])


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    found = [root]
    for parent in found:
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, file.read_text().split())
            except OSError:
                continue
    return found


def held_mb(pid: int) -> float:
    """Memory of a process, shared pages by their share."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def listing(*folders: Path, without: Sequence[Path] = ()) -> dict[str, tuple[int, str]]:
    """Every file below some folders: when it was changed, and its hash."""
    found: dict[str, tuple[int, str]] = {}
    for folder in folders:
        for root, names, files in os.walk(folder):
            names[:] = [name for name in names if Path(root, name) not in without]
            for name in files:
                path = Path(root, name)
                shown = os.fsencode(path).decode("utf-8", "backslashreplace")
                found[shown] = (os.lstat(path).st_mtime_ns, _hash(path))
    return found


def _hash(path: Path) -> str:
    if path.is_symlink() or not path.is_file():
        return "no file"
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names that were added, removed or changed between two listings."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def claims_in(out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The claims of a folder of results at this moment: the case's own name, and what the claim says."""
    for folder, _, names in os.walk(out / ".claims"):  # passes over what goes away meanwhile
        for name in names:
            try:
                yield Path(folder).name, dict(json.loads((Path(folder) / name).read_bytes()))
            except (OSError, ValueError):
                continue  # being written or given back
