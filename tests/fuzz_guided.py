"""Fuzzing that follows the code: `python -m tests.fuzz_guided SECONDS`, each parser for its share of them."""

from __future__ import annotations

import subprocess
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
    """Each parser in a process of its own; the number of those in which something was found."""
    seconds = int(sys.argv[1])
    if len(sys.argv) > 2:
        watch(sys.argv[2], seconds)
    share = str(max(1, seconds // len(TARGETS)))
    command = [sys.executable, "-m", "tests.fuzz_guided", share]
    found = [name for name in TARGETS if subprocess.run([*command, name], check=False).returncode]
    sys.stderr.write(f"{len(TARGETS)} parsers, {share} s each: {', '.join(found) or 'nothing'} found\n")
    return len(found)


if __name__ == "__main__":
    sys.exit(main())
