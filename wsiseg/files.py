"""Files: errors of a disk as one sentence, small ones whole or not at all, hashes of content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.errors import NoRoom, ObjectStoreError, StoreError
from wsiseg.objects import ObjectPath

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what a disk says into one sentence. Raises StoreError."""
    try:
        yield
    except ObjectStoreError:
        raise
    except OSError as err:
        reasons = {
            errno.ENOSPC: "the disk is full; make room and run the same command again, it continues",
            errno.EDQUOT: "the quota is used up; make room and run the same command again, it continues",
            errno.EROFS: "the file system is read-only; choose another folder with --out",
            errno.EACCES: "permission denied; choose another folder with --out",
            errno.ENOTDIR: "a part of the path is a file; choose another folder with --out",
        }
        reason = reasons.get(err.errno or 0, err.strerror or str(err))
        kind = NoRoom if err.errno in NO_ROOM else StoreError
        raise kind(f"cannot write {path}: {reason}") from None


RESERVE = 8 << 20
"""Bytes that stay free: for the ledger, the report and the picture of a case, and for the summary."""


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, which need not be there yet; a bucket has no end. Raises OSError."""
    if isinstance(folder, ObjectPath):
        return sys.maxsize
    folder = folder.absolute()
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


def write_whole(path: Path, data: bytes, *, guard: Callable[[], None] | None = None) -> None:
    """Write a small file so that it is there whole or not at all; where `guard` raises, not at all."""
    if isinstance(path, ObjectPath):
        path.write_bytes(data)
        return
    # A name of its own: a process that is stopped here may wake while another writes the same file.
    with whole(path, partial=f"{path.name}.{secrets.token_hex(4)}.partial") as stream:
        stream.write(data)
        if guard is not None:
            guard()


@contextmanager
def whole(path: Path, *, partial: str | None = None) -> Iterator[IO[bytes]]:
    """A stream to a file that appears when all is written.

    Until then it is called `partial`; by default one name for all that write it, so that what a kill leaves
    of a large file is replaced by the next try.
    """
    if isinstance(path, ObjectPath):
        with tempfile.NamedTemporaryFile() as local:
            yield local
            local.flush()
            path.upload(Path(local.name))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(partial or path.name + ".partial")
    try:
        with unfinished.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def create(path: Path, data: bytes) -> None:
    """Write a small file that is not there. Raises FileExistsError: of several, one gets through."""
    if isinstance(path, ObjectPath):
        path.create(data)
        return
    with path.open("xb") as stream:
        stream.write(data)


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it."""
    if isinstance(folder, ObjectPath):
        folder.remove_tree()
    else:
        shutil.rmtree(folder)


def files_below(folder: Path) -> Iterator[tuple[Path, int]]:
    """The files in a folder and those in it, each with its size."""
    for file in folder.rglob("*"):
        if file.is_file():
            yield file, file.stat().st_size


def to_json(data: Any) -> bytes:
    """Indented JSON in UTF-8."""
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()


def content_hash(array: NDArray[np.uint8]) -> str:
    """SHA-256 of the shape and values of an array."""
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def shown(path: Path | str) -> str:
    """A path as text that can be written: bytes of a name that are not UTF-8 as \\x and two digits."""
    return os.fsencode(str(path)).decode("utf-8", "backslashreplace")


def shortened(name: str, *, num_bytes: int) -> str:
    """The name; if it takes more bytes in UTF-8, its beginning and a hash of the whole."""
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) <= num_bytes:
        return name
    ending = "-" + hashlib.sha256(encoded).hexdigest()[:8]
    return encoded[: num_bytes - len(ending)].decode("utf-8", "ignore") + ending


WHOLE_HASH_BYTES = 1 << 30
_PIECE = 1 << 20


def companions(path: Path) -> list[Path]:
    """The files of a slide beside its own: those in a MIRAX slide's folder, those that a VMS or VMU names."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        folder = path.with_suffix("")
        return sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
    if suffix in (".vms", ".vmu") and path.is_file():
        lines = path.read_text("utf-8", errors="surrogateescape").splitlines()
        named = {value.strip() for _, equals, value in (line.partition("=") for line in lines) if equals}
        beside = (path.parent / name for name in sorted(named) if name and Path(name).name == name)
        return [file for file in beside if file.is_file()]
    return []


def fingerprint(path: Path, *, files: Sequence[Path] = ()) -> dict[str, str]:
    """What identifies an input: the sha256 of a file of up to 1 GiB, else a fingerprint.

    The fingerprint of a larger file hashes its size and 64 pieces of 1 MiB spread over it; that of
    a folder, of a slide with companions, or of several `files` (of the folder that `path` lies in) the
    names and sizes of all of them.
    """
    digest = hashlib.sha256()
    if path.is_dir():
        members = sorted(files_below(path))
    else:
        several = list(files) if len(files) > 1 else [*companions(path), path]
        members = [(file, file.stat().st_size) for file in several]
    if path.is_dir() or len(members) > 1:
        for file, num_bytes in members:
            line = f"{file.relative_to(path.parent)}\0{num_bytes}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return {"fingerprint": digest.hexdigest()}
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= WHOLE_HASH_BYTES:
            return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
        digest.update(str(size).encode())
        for piece in range(64):
            stream.seek(piece * (size - _PIECE) // 63)
            digest.update(stream.read(_PIECE))
    return {"fingerprint": digest.hexdigest()}
