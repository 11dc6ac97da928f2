"""Who works on a case: no two processes write one store, and one that is stopped for long does no harm.

A claim is a small file `.claims/CASE/000001.json` in the folder of the results, made only if it is not
there: the one step that file systems and object stores both do for one process alone. Its holder writes
it anew every few seconds. A holder is dead if its process is gone from this machine, or if its claim stayed
as it is for the length of the lease by the clock of whoever looks: clocks of machines are never compared.
Then a claim with the next number, the epoch, may be made. Before anything is written to a store its writer
looks whether its own claim is still the last (`Claim.check`): one that was stopped, and wakes after another
has taken over, finds that it is not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsiseg.bounded import parse_json
from wsiseg.errors import CaseHeld, ClaimLost
from wsiseg.files import create, remove_tree, to_json, writing
from wsiseg.objects import ObjectPath

logger = logging.getLogger(__name__)

FOLDER = ".claims"
LEASE_S = 60.0
"""A claim that stays as it is for so long is a dead one's: longer than a disk or a network stalls."""
BEATS = 6
"""Of a holder during a lease."""


@dataclass(frozen=True)
class Seen:
    """The last claim of a case as somebody sees it; a beat changes `content`."""

    epoch: int
    content: bytes

    @property
    def holder(self) -> dict[str, Any]:
        """Machine and process; nothing where the claim is only just being written."""
        try:
            found = parse_json(self.content or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def is_gone(self) -> bool:
        """True if its process was on this machine and is there no more."""
        holder = self.holder
        process = holder.get("process")
        if not isinstance(process, int) or holder.get("machine") != machine():
            return False
        return started(process) != holder.get("started")

    def __str__(self) -> str:
        holder = self.holder
        return f"process {holder.get('process', 'unknown')} on {holder.get('host', 'an unknown machine')}"


def machine() -> str:
    """This machine since its start and its space of process numbers: where a number means a process."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return f"{boot.read_text().strip()} {space.readlink()}"
    except OSError:
        return ""  # not Linux: whether a process lives is told by its beats alone


def started(process: int) -> str:
    """When a process of this machine was started, in ticks; empty if it is gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()  # after the name, which may hold anything
    return "" if fields[0] in "ZX" else fields[19]


def last_claim(out: Path, case: str) -> Seen | None:
    """The claim of the highest epoch, or None."""
    folder = out / FOLDER / case
    with writing(out):
        for path in sorted(folder.glob("[0-9]*.json"), reverse=True):
            # Given back this moment, or no claim at all.
            with contextlib.suppress(FileNotFoundError, ValueError):
                return Seen(int(path.stem), path.read_bytes())
    return None


class Watch:
    """What somebody who waits has seen of the claims of others."""

    def __init__(self, *, lease_s: float = LEASE_S) -> None:
        self._lease_s = lease_s
        self._since: dict[tuple[Path, str], tuple[Seen, float]] = {}

    def free_after(self, out: Path, case: str) -> int | None:
        """The epoch of a dead holder of a case, 0 if it never had one, None while one seems to live."""
        seen, key = last_claim(out, case), (out, case)
        if seen is None:
            return 0
        if seen.is_gone:
            return seen.epoch
        before, since = self._since.get(key, (None, 0.0))
        if before != seen:
            self._since[key] = (seen, time.monotonic())
            return None
        return seen.epoch if time.monotonic() - since > self._lease_s else None


@dataclass
class Claim:
    """A case that is this process's own until it is released, or another took it over."""

    out: Path
    case: str
    epoch: int
    lease_s: float = LEASE_S
    _token: str = field(default_factory=lambda: secrets.token_hex(8))
    _released: threading.Event = field(default_factory=threading.Event)

    @property
    def path(self) -> Path:
        """The file of the claim."""
        return self.out / FOLDER / self.case / f"{self.epoch:06}.json"

    def check(self) -> None:
        """Raises ClaimLost where another has taken the case over."""
        seen = last_claim(self.out, self.case)
        if seen is None or seen.epoch != self.epoch or seen.holder.get("token", self._token) != self._token:
            raise ClaimLost(f"{self.case} was taken over by {seen or 'another'}, who finishes it")

    def release(self) -> None:
        """Give the case back."""
        self._released.set()
        try:
            self.check()
        except ClaimLost:
            return
        _remove(self.path.parent)

    def __enter__(self) -> Claim:
        threading.Thread(target=self._beat, name=f"claim of {self.case}", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def content(self, beat: int) -> bytes:
        """What the file says."""
        process = os.getpid()
        return to_json(
            {
                "host": socket.gethostname(),
                "machine": machine(),
                "process": process,
                "started": started(process),
                "token": self._token,
                "beat": beat,
            }
        )

    def _beat(self) -> None:
        beat = 0
        while not self._released.wait(self.lease_s / BEATS):
            beat += 1
            try:
                self._renew(self.content(beat))
            except (ClaimLost, FileNotFoundError):
                return  # whoever writes next is told
            except OSError as err:
                logger.warning("%s: the claim cannot be renewed: %s", self.case, err)

    def _renew(self, content: bytes) -> None:
        """Write the claim anew, only where it still is: one that another removed must not come back."""
        path = self.path
        if isinstance(path, ObjectPath):
            version = path.version()
            self.check()
            path.replace_version(content, version=version)
            return
        self.check()
        with path.open("r+b") as stream:
            stream.write(content)
            stream.truncate()


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        remove_tree(folder)
        folder.parent.rmdir()  # unless other cases are in work


def forget_dead(out: Path, case: str) -> None:
    """Remove the claim of a finished case whose holder was killed before it could."""
    seen = last_claim(out, case)
    if seen is not None and seen.is_gone:
        _remove(out / FOLDER / case)


def wait_for(out: Path, case: str, *, lease_s: float = LEASE_S) -> int:
    """The epoch after which a case is free, at once or when its holder has not beaten for the lease.

    Raises CaseHeld as soon as the holder is seen to live.
    """
    watch = Watch(lease_s=lease_s)
    before = last_claim(out, case)
    while (epoch := watch.free_after(out, case)) is None:
        seen = last_claim(out, case)
        if seen != before:
            raise CaseHeld(f"{case} is in work by {seen}; its result comes to {out}")
        time.sleep(min(1.0, lease_s / BEATS / 2))
    return epoch


def take(out: Path, case: str, *, after: int, lease_s: float = LEASE_S) -> Claim:
    """The claim of a case that is free after an epoch; it beats once it is entered.

    Raises CaseHeld where another was faster, StoreError where none can be written.
    """
    claim = Claim(out, case, epoch=after + 1, lease_s=lease_s)
    held = f"{case} was taken by another this moment; its result comes to {out}"
    seen = last_claim(out, case)
    if (seen.epoch if seen else 0) != after:
        raise CaseHeld(held)
    with writing(out):
        claim.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            create(claim.path, claim.content(0))
        except (FileExistsError, FileNotFoundError):  # the latter: the folder went with its last holder
            raise CaseHeld(held) from None
    if seen is not None:
        logger.info("%s: %s is gone; its work goes on here", case, seen)
    return claim
