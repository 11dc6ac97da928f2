"""Object stores: paths such as s3://bucket/slides/a.svs that are used like those of files.

A store has neither folders nor renaming nor writing in place: what is written is one whole object, and a
folder is there while something is in it. `to_path` says where a path leads; whatever an `ObjectPath` does
not do itself is refused by `__fspath__`, so that nothing reads or writes a local file of that name.
"""

from __future__ import annotations

import errno
import fnmatch
import io
import os
import posixpath
import re
import stat
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PosixPath
from typing import Any, cast

from wsiseg.errors import UsageError

SCHEME = "s3"
BLOCK = 1 << 16
"""Bytes read ahead of an object that is read in pieces: what tells formats apart is at its beginning."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://?(.*)", re.DOTALL)


def to_path(given: str | Path) -> Path:
    """A local path, or one in an object store where `given` begins with s3://. Raises UsageError."""
    if isinstance(given, Path):
        return given
    match = _URL.fullmatch(given)
    if match is None or "://" not in given:
        return Path(given)
    scheme, rest = match[1].lower(), match[2]
    # Neither is ever part of a message or a report.
    if "@" in rest.partition("/")[0] or re.search(r"\?[^/]*=", rest):
        raise UsageError(
            f"a {scheme}:// path must hold no credentials and no query; credentials come from the "
            "environment or from the files of the AWS command line"
        )
    if scheme != SCHEME:
        raise UsageError(f"paths of {scheme}:// are not known; object stores are named s3://BUCKET/PATH")
    if not rest.strip("/"):
        raise UsageError(f"{given} names no bucket; object stores are named s3://BUCKET/PATH")
    if find_spec("s3fs") is None:
        raise UsageError("s3:// paths need the package s3fs: pip install 'wsiseg[s3]'")
    return ObjectPath("/" + rest)


def resolved(path: Path) -> Path:
    """Where a path leads. Unlike `resolve` it takes a link that leads to itself. Raises ValueError."""
    return path.resolve() if isinstance(path, ObjectPath) else Path(os.path.realpath(path))


class ObjectPath(PosixPath):
    """A path in an object store, /BUCKET/KEY inside and s3://BUCKET/KEY wherever it is shown."""

    _listed: dict[str, Any] | None = None
    """What the listing said in which this path was found: asking again for each would take long."""

    def __str__(self) -> str:
        shown = super().__str__()
        return f"{SCHEME}:/{shown}" if shown.startswith("/") else shown

    def __fspath__(self) -> str:
        raise OSError(errno.ENOTSUP, f"{self} is in an object store and no local file")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and super().__eq__(other)

    __hash__ = PosixPath.__hash__

    @property
    def fs(self) -> Any:
        """The file system, for this thread and process."""
        from wsiseg.s3 import Objects

        return Objects.shared()

    @property
    def key(self) -> str:
        """Bucket and key."""
        return super().__str__().lstrip("/")

    def info(self) -> dict[str, Any] | None:
        """What the store says of an object or folder, None where there is none."""
        if self._listed is not None:
            return self._listed
        try:
            return cast("dict[str, Any]", self.fs.info(self.key))
        except FileNotFoundError:
            return None

    # What pathlib's functions do.

    def exists(self, **_: Any) -> bool:
        return self.info() is not None

    def is_file(self, **_: Any) -> bool:
        return (self.info() or {}).get("type") == "file"

    def is_dir(self, **_: Any) -> bool:
        return (self.info() or {}).get("type") == "directory"

    def is_symlink(self) -> bool:
        return False

    def absolute(self) -> ObjectPath:
        return self

    def resolve(self, strict: bool = False) -> ObjectPath:
        return ObjectPath(posixpath.normpath(super().__str__()))

    def stat(self, **_: Any) -> os.stat_result:
        """Size and time; instead of the number of the file a hash of its content."""
        info = self.info()
        if info is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", str(self))
        mode = stat.S_IFDIR if info["type"] == "directory" else stat.S_IFREG
        changed = info.get("LastModified")
        seconds = int(changed.timestamp()) if changed else 0
        content = hash(info.get("ETag")) & 0x7FFFFFFF
        return os.stat_result((mode | 0o600, content, 0, 1, 0, 0, info["size"], seconds, seconds, seconds))

    def open(self, mode: str = "r", *_: Any, **more: Any) -> Any:
        """A stream to read; what is written is written whole."""
        if mode not in ("r", "rb"):
            raise OSError(errno.ENOTSUP, f"{self} is in an object store, where nothing is written in pieces")
        stream = self.fs.open(self.key, "rb", block_size=BLOCK)
        return stream if mode == "rb" else io.TextIOWrapper(stream, **more)

    def read_bytes(self) -> bytes:
        return cast("bytes", self.fs.cat_file(self.key))

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:
        self.fs.pipe_file(self.key, bytes(data))
        return len(data)

    def iterdir(self) -> Iterator[ObjectPath]:  # type: ignore[override]
        for info in self.fs.ls(self.key, detail=True):
            if (found := self._found(info)) != self:
                yield found

    def glob(self, pattern: str, **_: Any) -> Iterator[ObjectPath]:  # type: ignore[override]
        if self.is_dir():
            yield from (p for p in self.iterdir() if fnmatch.fnmatchcase(p.name, pattern))

    def rglob(self, pattern: str, **_: Any) -> Iterator[ObjectPath]:  # type: ignore[override]
        """Objects below this path; folders are none."""
        for info in self.fs.find(self.key, detail=True).values():
            if fnmatch.fnmatchcase((found := self._found(info)).name, pattern):
                yield found

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Nothing: a folder is there as soon as something is in it."""

    def rmdir(self) -> None:
        """Nothing: a folder goes with the last that is in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        self.fs.rm_file(self.key)

    # What a store can that files do in other ways.

    def create(self, data: bytes) -> None:
        """Write an object that is not there. Raises FileExistsError: of several, one gets through."""
        self.fs.pipe_file(self.key, data, mode="create")

    def version(self) -> str:
        """Of the object as it is now. Raises FileNotFoundError."""
        return str(self.fs.info(self.key)["ETag"])

    def replace_version(self, data: bytes, *, version: str) -> None:
        """Overwrite an object that is still of a version. Raises FileNotFoundError, else OSError."""
        self.fs.pipe_file(self.key, data, IfMatch=version)

    def remove_tree(self) -> None:
        """Remove an object, or all below a folder."""
        self.fs.rm(self.key, recursive=True)

    def upload(self, file: Path) -> None:
        """Make this object of a local file."""
        self.fs.put_file(str(file), self.key)

    def download(self, file: Path) -> None:
        """Make a local file of this object."""
        self.fs.get_file(self.key, str(file))

    def matching(self) -> list[ObjectPath]:
        """What this path fits as a pattern, in the order of names."""
        return sorted(self._found(info) for info in self.fs.glob(self.key, detail=True).values())

    def group(self) -> Any:
        """This folder as what zarr takes for a store."""
        from wsiseg.s3 import Objects

        return Objects.shared(asynchronous=True).get_mapper(self.key)

    def _found(self, info: dict[str, Any]) -> ObjectPath:
        found = ObjectPath("/" + info["name"])
        found._listed = info
        return found


def zarr_place(path: Path) -> Any:
    """A path as zarr takes it."""
    return path.group() if isinstance(path, ObjectPath) else path
