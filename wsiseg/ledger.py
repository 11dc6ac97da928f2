"""The ledger of a store: small files, each whole or not there, that say what was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsiseg.files import to_json, write_whole, writing
from wsiseg.plan import StorePlan

Guard = Callable[[], None]


def unguarded() -> None:
    """Lets every write pass: of a store that nobody else can know of."""


class Ledger:
    """The files in a store's folder `ledger`.

    `guard` is called before anything is written, and raises where this process may not write any more.
    """

    def __init__(self, folder: Path, *, plan: StorePlan, guard: Guard = unguarded) -> None:
        self.folder = folder
        self.plan = plan
        self.guard = guard

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all. Raises StoreError."""
        self.guard()
        with writing(self.folder.parent):
            write_whole(self.folder / name, data)

    def entry(self, name: str) -> dict[str, Any] | None:
        """What `record` wrote, if it is whole and was written under this plan."""
        try:
            data = json.loads(self.read(name) or b"null")
        except ValueError:
            return None
        good = isinstance(data, dict) and data.get("plan") == self.plan.identity
        return data if good else None

    def record(self, name: str, entry: dict[str, Any]) -> None:
        """Write an entry under this plan. Raises StoreError."""
        self.write(name, to_json({"plan": self.plan.identity, **entry}))

    def forget(self, name: str) -> None:
        """Remove an entry. Raises StoreError."""
        self.guard()
        with writing(self.folder.parent):
            (self.folder / name).unlink(missing_ok=True)
