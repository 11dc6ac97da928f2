"""What can go wrong for a reason that a user can mend.

    WsisegError
    ├── SourceError            the input image
    │   ├── UnreadableSource   cannot be opened as an image
    │   └── MissingSpacing     its pixel size is not known
    ├── ModelError             a card or its weights
    ├── StoreError             the result on disk
    │   ├── ConfigMismatch     begun with other settings
    │   ├── IncompleteStore    not finished, or damaged
    │   ├── CaseHeld           another process works on it
    │   ├── ClaimLost          another process has taken it over
    │   ├── ObjectStoreError   the object store, or the way to it, fails
    │   └── NoRoom             nothing more can be written where the results go
    ├── OutOfMemory            of the smallest plan too
    ├── AnnotationError        pathologists' marks
    ├── ManifestError          a table of cases, or a run file
    └── CasesFailed            some cases of a batch; the others are finished

Each message says what is wrong, with the value, and what to do about it.
"""


class WsisegError(Exception):
    """Base of every error that is the input's fault, not the program's."""


class SourceError(WsisegError):
    """An input image cannot be used."""


class UnreadableSource(SourceError):
    """A file is missing or cannot be opened as an image."""


class MissingSpacing(SourceError):
    """The physical pixel size is not in the file and was not given."""


class ModelError(WsisegError):
    """A model is unknown, or its card and weights do not fit together."""


class StoreError(WsisegError):
    """A result cannot be written or read."""


class ConfigMismatch(StoreError):
    """An unfinished result was begun with other settings."""


class IncompleteStore(StoreError):
    """A result is unfinished or is not what was written."""


class CaseHeld(StoreError):
    """Another process works on this case."""


class ClaimLost(StoreError):
    """Another process has taken this case over, and finishes it."""


class ObjectStoreError(StoreError, OSError):
    """An object store cannot be reached or used; an OSError too, whose number says whether it may pass."""

    def __str__(self) -> str:
        return str(self.strerror)


class NoRoom(StoreError):
    """Nothing more can be written where the results go: full, over quota, or read-only."""


class OutOfMemory(WsisegError):
    """There is not enough memory, and nothing that needs less is left to try."""


class AnnotationError(WsisegError):
    """An annotation cannot be used."""


class ManifestError(WsisegError):
    """A manifest or run file has a mistake at a place that the message names."""


class CasesFailed(WsisegError):
    """Some cases of a batch have no result; the others are finished."""


class UsageError(WsisegError):
    """The command itself was wrong, whatever the input holds (exit status 2)."""
