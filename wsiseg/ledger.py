"""The ledger of a store: small files, each whole or not there, that say what was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from wsiseg.bounded import LARGEST_RECORD, parse_json, read_bounded
from wsiseg.errors import IncompleteStore, StoreError
from wsiseg.files import to_json, write_whole, writing
from wsiseg.plan import StorePlan

Guard = Callable[[], None]


def unguarded() -> None:
    """Lets every write pass: of a store that nobody else can know of."""


_Value = Annotated[str, Field(pattern=r"^[0-9]{1,3}$")]
_Pair = Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]


class SureEntry(BaseModel):
    """What the entry of a slab says of its confidence."""

    model_config = ConfigDict(strict=True)

    sha256: str
    sums: dict[_Value, _Pair]


class SlabEntry(BaseModel):
    """What is relied on in the entry of a slab; there is more in it."""

    model_config = ConfigDict(strict=True)

    rows: _Pair
    sha256: str
    counts: dict[_Value, NonNegativeInt]
    unreadable: NonNegativeInt = 0
    places: list[list[NonNegativeInt]] = []
    outside_region: NonNegativeInt = 0
    computed: NonNegativeInt = 0
    repeated: NonNegativeInt = 0
    image: list[Annotated[tuple[NonNegativeInt, NonNegativeInt, str], Field(strict=False)]] | None = None
    confidence: SureEntry | None = None


class Ledger:
    """The files in a store's folder `ledger`.

    `guard` is called before anything is written, and raises where this process may not write any more.
    """

    def __init__(self, folder: Path, *, plan: StorePlan, guard: Guard = unguarded) -> None:
        self.folder = folder
        self.plan = plan
        self.guard = guard

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Writes to the store pass here. Raises what `guard` does, and StoreError."""
        self.guard()
        try:
            with writing(self.folder.parent):
                yield
        except StoreError:
            self.guard()  # whoever has taken the store over may be why it fails
            raise

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None. Raises IncompleteStore for one that no ledger of ours has."""
        path = self.folder / name
        try:
            return read_bounded(path, most=LARGEST_RECORD) if path.is_file() else None
        except ValueError as err:
            raise IncompleteStore(f"{path} is damaged: {err}; use --overwrite to start again") from None

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all. Raises StoreError."""
        with self.writing():
            write_whole(self.folder / name, data, guard=self.guard)

    def entry(self, name: str) -> dict[str, Any] | None:
        """What `record` wrote, if it is whole and was written under this plan."""
        try:
            data = parse_json(self.read(name) or b"null")
        except (ValueError, IncompleteStore):
            return None
        good = isinstance(data, dict) and data.get("plan") == self.plan.identity
        return data if good else None

    def slab(self, name: str) -> dict[str, Any] | None:
        """As `entry`, of a slab: also None where what it says is not of the kinds that a slab's entry has."""
        found = self.entry(name)
        if found is None:
            return None
        try:
            said = SlabEntry.model_validate(found)
        except ValidationError:
            return None
        lacks_image = self.plan.image_shape is not None and said.image is None
        return None if lacks_image or (self.plan.confidence and said.confidence is None) else found

    def record(self, name: str, entry: dict[str, Any]) -> None:
        """Write an entry under this plan. Raises StoreError."""
        self.write(name, to_json({"plan": self.plan.identity, **entry}))

    def forget(self, name: str) -> None:
        """Remove an entry. Raises StoreError."""
        with self.writing():
            (self.folder / name).unlink(missing_ok=True)
