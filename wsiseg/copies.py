"""Copies of inputs that lie in an object store, for readers that need a local file.

    CACHE/
    ├── room.lock           held by whoever makes room
    ├── 1f0c...json         of a copy: its size; locked (shared) by all that read it, alone by who makes it
    └── 1f0c.../slide.mrxs  the copy and the files that belong to it: under this name once it is whole

Locks are the system's: they end with their process, however that ends. What nobody has locked may go, what
was used longest ago first.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from wsiseg.config import SegmentConfig
from wsiseg.errors import ObjectStoreError, SourceError, WsisegError
from wsiseg.files import companions, files_below
from wsiseg.objects import ObjectPath

ROOM_WAIT_S = 600.0
"""For others that use the cache to be done with their copies."""
ZARR = ("zarr.json", ".zgroup", ".zattrs")
DICOM = (".dcm", ".dicom")
DETACHED = {".nhdr": ("data file", ":"), ".mhd": ("elementdatafile", "=")}
"""Headers of volumes that name the file with the voxels, and how."""

_kept = ExitStack()
atexit.register(_kept.close)


@dataclass(frozen=True)
class Cache:
    """Where copies lie, and how many bytes they may take."""

    folder: Path
    limit: int

    @classmethod
    def of(cls, config: SegmentConfig) -> Cache:
        """That of the settings; by default a folder in the user's cache folder."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(config.cache or home / "wsiseg" / "inputs", int(config.cache_gb * 1e9))

    @contextmanager
    def copy(self, path: Path) -> Iterator[Path]:
        """A path to read from: itself, or that of a whole copy which stays as long as this context.

        Raises SourceError where there is no room for one. In messages of what fails inside, the copy has
        the name of what it is of.
        """
        if not isinstance(path, ObjectPath) or not path.exists() or _is_zarr(path):
            yield path
            return
        members = _members(path)
        entry = _Entry(self, path, members)
        with entry.held():
            local = entry.folder / path.name
            try:
                yield local
            except WsisegError as err:
                err.args = tuple(str(a).replace(str(local), str(path)) for a in err.args)
                raise

    def keep(self, path: Path) -> Path:
        """The same for the rest of this process."""
        return _kept.enter_context(self.copy(path))


def _is_zarr(path: ObjectPath) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in ZARR)


def _members(path: ObjectPath) -> dict[str, tuple[ObjectPath, int, str]]:
    """The objects that make up an input, by their names beside each other: with size and version."""
    if path.is_dir():
        files = [file for file, _ in files_below(path)]
    elif path.suffix.lower() in DICOM:
        files = [file for file in path.parent.iterdir() if file.is_file()]
    else:
        files = [path, *companions(path), *_detached(path)]
    found = {}
    for file in files:
        assert isinstance(file, ObjectPath)
        seen = file.info() or {}
        name = str(file.relative_to(path.parent))
        found[name] = (file, int(seen.get("size", 0)), str(seen.get("ETag")))
    return found


def _detached(path: ObjectPath) -> list[Path]:
    """The file of voxels that a header names, beside it."""
    if path.suffix.lower() not in DETACHED:
        return []
    key, sign = DETACHED[path.suffix.lower()]
    for line in path.read_bytes().decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(sign)
        value = value.strip()
        if name.strip().lower() == key and Path(value).name == value and (path.parent / value).is_file():
            return [path.parent / value]
    return []


class _Entry:
    """One copy. Its name is a hash of what it is of and in which version."""

    def __init__(
        self, cache: Cache, path: ObjectPath, members: dict[str, tuple[ObjectPath, int, str]]
    ) -> None:
        self._cache, self._path, self._members = cache, path, members
        said = repr((str(path), sorted((n, size, tag) for n, (_, size, tag) in members.items())))
        name = hashlib.sha256(said.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self.folder = cache.folder / name
        self._lock = cache.folder / f"{name}.json"
        self._size = sum(size for _, size, _ in members.values())

    @contextmanager
    def held(self) -> Iterator[None]:
        """The copy is there and whole, and nobody removes it."""
        if self._size > self._cache.limit:
            raise SourceError(
                f"{self._path} has {self._size / 1e9:.3g} GB and the local copies of inputs may take "
                f"{self._cache.limit / 1e9:.3g} GB; set cache_gb in the file of --config"
            )
        with self._writing():
            self._cache.folder.mkdir(parents=True, exist_ok=True)
        while True:
            with _locked(self._lock, fcntl.LOCK_SH) as file:
                # A lock file that was removed meanwhile locks nothing.
                if self.folder.is_dir() and _is_there(file, self._lock):
                    os.utime(self._lock)
                    yield
                    return
            self._make()

    def _make(self) -> None:
        """Make the copy, unless another has meanwhile."""
        with _locked(self._lock, fcntl.LOCK_EX) as file:
            if self.folder.is_dir() or not _is_there(file, self._lock):
                return
            self._take_room(file)
            partial = self.folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            try:
                with self._writing():
                    for name, (remote, _, version) in self._members.items():
                        (partial / name).parent.mkdir(parents=True, exist_ok=True)
                        remote.download(partial / name)
                        if remote.version() != version:
                            raise ObjectStoreError(errno.EAGAIN, f"{remote} was changed while it was copied")
                    partial.rename(self.folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                self._lock.unlink(missing_ok=True)
                raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except ObjectStoreError:
            raise
        except OSError as err:
            raise SourceError(
                f"{self._path} cannot be copied to {self._cache.folder}: {err.strerror}; set another "
                "cache in the file of --config"
            ) from err

    def _take_room(self, file: IO[bytes]) -> None:
        """Enter the size of the copy, once there is room for it."""
        deadline = time.monotonic() + ROOM_WAIT_S
        while True:
            with _locked(self._cache.folder / "room.lock", fcntl.LOCK_EX):
                if _made_room(self._cache, self._size, but=self._lock):
                    file.truncate(0)
                    file.write(json.dumps({"input": str(self._path), "bytes": self._size}).encode())
                    file.flush()
                    return
            if time.monotonic() > deadline:
                self._lock.unlink(missing_ok=True)
                raise SourceError(
                    f"{self._path} cannot be copied: all copies in {self._cache.folder} are in use and leave "
                    f"less than {self._size / 1e9:.3g} GB; set cache_gb in the file of --config"
                ) from OSError(errno.EAGAIN, "in use")
            time.sleep(0.5)


def _made_room(cache: Cache, num_bytes: int, *, but: Path) -> bool:
    """Remove what was used longest ago until there is room; False where the rest is in use."""
    entries = [(_stat(p), p) for p in cache.folder.glob("*.json") if p != but]
    known = sorted((stat.st_mtime_ns, p) for stat, p in entries if stat is not None)
    sizes = {p: _stated(p) for _, p in known}
    for _, lock in known:
        if sum(sizes.values()) + num_bytes <= cache.limit:
            break
        with suppress(BlockingIOError), _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for folder in (lock.with_suffix(""), lock.with_suffix(".partial")):
                shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)
            del sizes[lock]
    return sum(sizes.values()) + num_bytes <= cache.limit


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _stated(lock: Path) -> int:
    """The size of a copy, 0 where it is not even begun."""
    try:
        return int(json.loads(lock.read_bytes())["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _is_there(file: IO[bytes], path: Path) -> bool:
    seen = _stat(path)
    return seen is not None and seen.st_ino == os.fstat(file.fileno()).st_ino


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[IO[bytes]]:
    """A file, made if it is not there, with a lock. Raises BlockingIOError where asked not to wait."""
    with path.open("ab") as file:
        fcntl.flock(file, kind)
        yield file
