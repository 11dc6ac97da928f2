"""Fuzzing that follows the code: `python -m tests.fuzz_guided SECONDS`, each parser for its share of them."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

# Only what is imported here is followed: torch and numpy would take minutes.
with atheris.instrument_imports(include=["wsiseg", "yaml"]):
    from tests.fuzz import LONGEST, TARGETS, feed


def watch(name: str, seconds: int) -> None:
    """Run atheris on one parser; it ends the process, with a status other than 0 where something came out."""
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    seeds = folder / "seeds"
    seeds.mkdir()
    for number, seed in enumerate(TARGETS[name][2]):
        (seeds / str(number)).write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=20", "-rss_limit_mb=4096"]
    quiet = ["-verbosity=0", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *limits, *quiet, str(seeds)], lambda data: feed(name, data, folder))
    atheris.Fuzz()


def main() -> int:
    """Each parser in a process of its own, forked from this one; returns in how many something came out."""
    share = max(1, int(sys.argv[1]) // len(TARGETS))
    found = []
    for name in TARGETS:
        child = os.fork()
        if child == 0:
            watch(name, share)
        if os.waitpid(child, 0)[1]:
            found.append(name)
    sys.stderr.write(f"{len(TARGETS)} parsers, {share} s each: {', '.join(found) or 'nothing'} found\n")
    return len(found)


if __name__ == "__main__":
    sys.exit(main())
